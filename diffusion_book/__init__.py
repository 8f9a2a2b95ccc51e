"""The Diffusion Book: diffusion models on handwritten digits, written to be read.

>>> import diffusion_book
>>> pipe = diffusion_book.load("ddpm")
>>> images = pipe.sample(16, seed=0)
"""

from diffusion_book.errors import BookError
from diffusion_book.pipelines import Pipeline, list_models, load

__version__ = "0.1.0"
__all__ = ["BookError", "Pipeline", "list_models", "load"]
