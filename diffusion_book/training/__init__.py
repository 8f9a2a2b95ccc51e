"""How a model is trained: the loop, what it learns from, and the folder that it fills."""

from diffusion_book.system.lazy import submodules

__getattr__ = submodules(__name__, __path__)
