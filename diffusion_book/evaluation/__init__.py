"""How good pictures are, and what ails a model that draws bad ones."""

from diffusion_book.system.lazy import submodules

__getattr__ = submodules(__name__, __path__)
