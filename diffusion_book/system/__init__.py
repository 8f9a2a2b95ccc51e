"""What the book asks of the machine it runs on: files and folders, devices, processes, and one kind of error."""

from diffusion_book.system.lazy import submodules

__getattr__ = submodules(__name__, __path__)
