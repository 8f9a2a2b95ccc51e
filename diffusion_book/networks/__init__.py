"""The networks: they map arrays to arrays, and know nothing of diffusion."""

from diffusion_book.system.lazy import submodules

__getattr__ = submodules(__name__, __path__)
