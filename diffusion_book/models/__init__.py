"""What a model is: its recipe, its checkpoint or shipped weights, and the pipeline that draws with it."""

from diffusion_book.system.lazy import submodules

__getattr__ = submodules(__name__, __path__)
