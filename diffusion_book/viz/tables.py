"""Pictures in rows and columns that both have names."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from diffusion_book.system.errors import BookError
from diffusion_book.viz.grids import TITLE, grid, place
from diffusion_book.viz.style import DPI, new_figure, styled

HEAD = 0.3  # inches above the pictures for the columns' names


@styled
def show_table(
    pictures: Tensor, rows: Sequence[str], columns: Sequence[str], title: str | None = None, scale: float = 2.0
) -> Figure:
    """A figure of pictures that differ by one thing from row to row and by another from column to column.

    Args:
        pictures: (R, C, 1 or 3, H, W), floats in [-1, 1] or bytes.
        rows, columns: what they are called: R and C short texts.
        title: written above.
        scale: screen pixels a pixel.

    Raises:
        BookError: not one name for each row and column.
    """
    if tuple(pictures.shape[:2]) != (len(rows), len(columns)):
        raise BookError(
            f"pictures of shape {tuple(pictures.shape)} in {len(rows)} rows and {len(columns)} columns: "
            "they must be (rows, columns, 1, H, W)"
        )
    padding = 2
    picture = grid(pictures.flatten(0, 1), columns=len(columns), padding=padding)
    high, wide = (scale * size / DPI for size in picture.shape[:2])  # inches
    margin = 0.09 * max(len(label) for label in rows) + 0.1  # for the rows' names
    whole_high, whole_wide = high + HEAD + (TITLE if title else 0.0), wide + margin
    figure, axes = new_figure(whole_wide, whole_high, layout="none")
    place(axes, picture, (margin / whole_wide, 0, wide / whole_wide, high / whole_high))
    for count, size, set_ticks, labels in (
        (len(columns), pictures.shape[-1], axes.set_xticks, columns),
        (len(rows), pictures.shape[-2], axes.set_yticks, rows),
    ):
        step = size + padding
        set_ticks([padding / 2 + step * (number + 0.5) - 0.5 for number in range(count)], labels)
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axes.grid(False)
    if title:
        figure.suptitle(title, fontsize=11, y=1 - 0.1 / whole_high)
    return figure
