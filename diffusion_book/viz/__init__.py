"""Pictures of what the library does: grids, strips, animations, scrubbers, charts.

Every `show_...` and `plot_...` function returns a matplotlib Figure that pyplot has already let go
of: as the last value of a cell it appears once, and in a script it is saved with `figure.savefig`.
"""

from typing import TYPE_CHECKING

from diffusion_book.system.lazy import submodules

if TYPE_CHECKING:
    from diffusion_book.viz.explorer import guidance_explorer

__all__ = ["guidance_explorer"]

_submodule = submodules(__name__, __path__)


def __getattr__(name: str):
    # Loaded when first used: a command that draws one grid needs no control.
    if name == "guidance_explorer":
        from diffusion_book.viz.explorer import guidance_explorer

        return guidance_explorer
    return _submodule(name)
