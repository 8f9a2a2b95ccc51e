"""A guidance sweep on one page: digits downwards, scales to the right, several samples in every cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from diffusion_book.system.errors import BookError
from diffusion_book.viz.grids import GAP, place, to_bytes
from diffusion_book.viz.style import DPI, new_figure, styled

HEAD = 0.6  # inches above the pictures, for the model and its scales
MARGIN = 0.35  # inches beside the pictures, for rows named by a digit
LETTER = 0.09  # inches more for each further letter
WHITE = 247  # between cells, 0 to 255: the paper
ROOM = 6  # pixels between cells


@styled
def show_cells(panels: dict[str, Tensor], rows: Sequence[str], scales: Sequence[float], scale: float = 1.5) -> Figure:
    """Tables of pictures side by side, each cell a block of several.

    Args:
        panels: title -> pictures (R, C, K, 1 or 3, H, W), floats in [-1, 1].
        rows: R names.
        scales: C guidance scales.
        scale: screen pixels a pixel.

    Raises:
        BookError: no panels, or pictures that do not make such a table.
    """
    if not panels or any(each.ndim != 6 or each.shape[:2] != (len(rows), len(scales)) for each in panels.values()):
        raise BookError(f"show_cells needs pictures of shape ({len(rows)}, {len(scales)}, K, 1, H, W), a table a panel")
    tables = [_table(pictures) for pictures in panels.values()]
    high, wide = (scale * size / DPI for size in tables[0].shape[:2])  # inches
    margin = MARGIN + LETTER * (max(map(len, rows)) - 1)
    whole_high, whole_wide = high + HEAD, (wide + margin) * len(tables)
    figure, axes = new_figure(whole_wide, whole_high, 1, len(tables), squeeze=False, layout="none")
    for number, (axis, title, table) in enumerate(zip(axes[0], panels, tables, strict=True)):
        left = margin + number * (wide + margin)
        place(axis, table, (left / whole_wide, 0, wide / whole_wide, high / whole_high))
        for set_ticks, size, names in (
            (axis.set_xticks, table.shape[1], [f"w = {value:g}" for value in scales]),
            (axis.set_yticks, table.shape[0], rows),
        ):
            step = (size + ROOM) / len(names)
            set_ticks([step * (number + 0.5) - ROOM / 2 - 0.5 for number in range(len(names))], names)
        axis.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
        axis.grid(False)
        middle = (left + wide / 2) / whole_wide
        figure.text(middle, 1 - 0.06 / whole_high, title, ha="center", va="top", fontsize=11)
    return figure


def _table(pictures: Tensor) -> Tensor:
    """(R, C, K, 1 or 3, H, W) -> one picture of bytes, (height, width) or (height, width, 3).

    Each cell is as square a block as K allows.
    """
    if pictures.shape[3] == 3:
        return torch.stack([_table(pictures[:, :, :, [channel]]) for channel in range(3)], dim=-1)
    rows, columns, count, _, height, width = pictures.shape
    across = math.ceil(math.sqrt(count))
    down = math.ceil(count / across)
    cells = F.pad(to_bytes(pictures)[:, :, :, 0], (0, 1, 0, 1), value=GAP)  # a grey line after every picture
    cells = F.pad(cells, (0, 0, 0, 0, 0, down * across - count), value=WHITE)  # (R, C, down * across, H + 1, W + 1)
    cells = cells.reshape(rows, columns, down, across, height + 1, width + 1)
    cells = cells.permute(0, 1, 2, 4, 3, 5).reshape(rows, columns, down * (height + 1), across * (width + 1))
    cells = F.pad(cells[..., :-1, :-1], (0, ROOM, 0, ROOM), value=WHITE)
    whole = cells.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)  # (R, C, h, w) -> (R h, C w)
    return whole[:-ROOM, :-ROOM].to(torch.uint8)
