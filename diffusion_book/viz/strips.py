"""The way from noise to picture as a row of stills."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from matplotlib.figure import Figure
from torch import Tensor

from diffusion_book.samplers import State
from diffusion_book.system.errors import BookError, positive, whole
from diffusion_book.viz.grids import TITLE, grid, place
from diffusion_book.viz.style import DPI, new_figure, styled


def denoising_strip(states: Iterable[State], pipe, frames: int = 10, what: str = "x") -> tuple[list[float], Tensor]:
    """Pick evenly spaced stills out of a sampler's states, the first and the last among them.

    Args:
        states: of `Pipeline.states`, as they come or collected in a list.
        pipe: the Pipeline that made them; turns states into pictures.
        frames: how many stills; fewer where there are fewer states.
        what: "x" for the noisy x_t, "x0" for the picture predicted at each step (the noise that the
            sampler starts from has none, so this one starts a step later).

    Returns:
        The times, and the pictures (B, frames, C, H, W) in [-1, 1], of digits (B, frames, 1, 28, 28).

    Raises:
        BookError: no states, fewer than one frame, or another `what`.
    """
    if what not in ("x", "x0"):
        raise BookError(f"unknown kind of still '{what}': choose one of x, x0")
    if what == "x":
        pairs = [(state.t, state.x) for state in states]
    else:
        pairs = [(state.t, state.prediction.x0) for state in states if state.prediction is not None]
    if not pairs or whole("frames", frames) < 1:
        raise BookError(f"{frames} stills of {len(pairs)} states: both must be at least 1")
    frames = min(frames, len(pairs))
    chosen = torch.linspace(0, len(pairs) - 1, frames).round().long().tolist()
    pictures = torch.stack([pipe.to_images(pairs[index][1]) for index in chosen], dim=1)  # (B, frames, C, H, W)
    return [pairs[index][0] for index in chosen], pictures


@styled
def show_strip(times: list[float], pictures: Tensor, title: str | None = None, scale: float = 2.0) -> Figure:
    """A figure with one row a sample and one column a time, as `denoising_strip` gives them.

    Args:
        times: of the columns, in [0, 1].
        pictures: (B, frames, 1 or 3, H, W), floats in [-1, 1].
        title: written above.
        scale: screen pixels a pixel.

    Raises:
        BookError: not one picture a time.
    """
    if pictures.ndim != 5 or pictures.shape[1] != len(times):
        raise BookError(
            f"a strip of {len(times)} times needs pictures (B, frames, 1, H, W), not {tuple(pictures.shape)}"
        )
    padding = 2
    columns, width = pictures.shape[1], pictures.shape[-1] + padding
    picture = grid(pictures.flatten(0, 1), columns=columns, padding=padding)
    inches_high, inches_wide = (positive("scale", scale) * size / DPI for size in picture.shape[:2])
    total = inches_high + 0.3 + (TITLE if title else 0.0)  # the times stand above the pictures
    figure, axes = new_figure(inches_wide, total, layout="none")
    place(axes, picture, (0, 0, 1, inches_high / total))
    digits = 2 if len({f"{time:.2f}" for time in times}) == len(times) else 3
    axes.set_xticks(
        [padding / 2 + width * (column + 0.5) - 0.5 for column in range(columns)],
        [f"{time:.{digits}f}" for time in times],
    )
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axes.grid(False)
    if title:
        figure.suptitle(title, fontsize=11, y=1 - 0.1 / total)
    return figure
