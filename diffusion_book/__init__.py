"""The Diffusion Book: diffusion models on handwritten digits, written to be read.

>>> import diffusion_book
>>> pipe = diffusion_book.load("ddpm")
>>> images = pipe.sample(16, seed=0)
"""

import os
from typing import TYPE_CHECKING

# Read by libgomp when torch is loaded. By default a thread that has finished its part spins for milliseconds while it
# waits for the others; beside any other busy program it then holds the core that they need.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from diffusion_book.system.errors import BookError
from diffusion_book.system.lazy import submodules

if TYPE_CHECKING:
    from diffusion_book.models.pipelines import Pipeline, list_models, load

__version__ = "0.1.0"
__all__ = ["BookError", "Pipeline", "list_models", "load"]

_submodule = submodules(__name__, __path__)


def __getattr__(name: str):
    # Loaded when first used: importing torch takes seconds, and `diffusion-book --help` needs none of it.
    if name in ("Pipeline", "list_models", "load"):
        from diffusion_book.models import pipelines

        return getattr(pipelines, name)
    return _submodule(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
