"""What guidance does: arrows and clouds in the plane, sweeps of pictures, and measures against the scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from PIL import Image, ImageDraw
from torch import Tensor

from diffusion_book.system.errors import BookError
from diffusion_book.viz.plots import CYCLE
from diffusion_book.viz.style import COLOURS, new_figure, styled
from diffusion_book.viz.tables import show_table

GREYS = ("#CFCFCC", "#8F8F8C")  # of the data: other classes, the class asked for
ASKED = COLOURS["ldm-concat"]


# In the plane


def places(limit: float = 2.5, count: int = 13) -> Tensor:
    """Points on a square grid: (count * count, 2), float64, row by row from the bottom left.

    Args:
        limit: of both axes, on both sides of zero.
        count: points a side, at least 2.
    """
    side = torch.linspace(-limit, limit, count, dtype=torch.float64)
    up, right = torch.meshgrid(side, side, indexing="ij")
    return torch.stack([right, up], dim=-1).reshape(-1, 2)


def show_arrows(
    panels: dict[str, Tensor], at: Tensor, background: Tensor, asked: Tensor, length: float = 0.25, limit: float = 2.8
) -> Figure:
    """Fields in the plane, one panel a field, all drawn to the same scale.

    Args:
        panels: title -> arrows, (N, 2).
        at: where they start, (N, 2).
        background: where the data lie, (M, 2).
        asked: which of them are of the class asked for, (M,), bool; drawn darker.
        length: of an arrow of length 1, on the axes.
        limit: of both axes, on both sides of zero.
    """
    figure, axes = _plane(panels, background, asked, limit)
    for axis, arrows in zip(axes, panels.values(), strict=True):
        axis.quiver(*at.T, *arrows.T, color=ASKED, angles="xy", scale_units="xy", scale=1 / length, width=0.008)
    return figure


def show_clouds(
    panels: dict[str, Tensor],
    background: Tensor,
    asked: Tensor,
    contours: dict[str, Tensor] | None = None,
    limit: float = 2.8,
) -> Figure:
    """Samples in the plane over the data, one panel a way of drawing them.

    Args:
        panels: title -> samples, (N, 2).
        background: where the data lie, (M, 2).
        asked: which of them are of the class asked for, (M,), bool; drawn darker.
        contours: title -> a density on the grid of `places(limit, R)`, (R * R,): its contours are drawn in that panel,
            around half and nine tenths of what it holds.
        limit: of both axes, on both sides of zero.
    """
    figure, axes = _plane(panels, background, asked, limit)
    for axis, (title, points) in zip(axes, panels.items(), strict=True):
        axis.scatter(*points.T, s=5, color=ASKED, linewidths=0, label="samples")
        if contours and title in contours:
            density = contours[title]
            count = round(len(density) ** 0.5)
            side = torch.linspace(-limit, limit, count, dtype=torch.float64)
            levels = [level_around(density, share) for share in (0.9, 0.5)]
            axis.contour(side, side, density.reshape(count, count), levels, colors=COLOURS["ddpm"], linewidths=1.5)
    return figure


def cloud_frames(
    clouds: Sequence[Tensor], background: Tensor, asked: Tensor, limit: float = 2.8, size: int = 320
) -> Tensor:
    """Samples in the plane over the data as frames for a scrubber: (T, size, size), bytes, the samples black.

    Args:
        clouds: the samples of each frame, (N, 2).
        background: where the data lie, (M, 2).
        asked: which of them are of the class asked for, (M,), bool; drawn darker.
        limit: of both axes, on both sides of zero; what lies outside is not drawn.
        size: pixels a side.
    """
    fine = 3 * size  # drawn larger and then averaged, so that dots are round

    def dot(draw: ImageDraw.ImageDraw, points: Tensor, radius: float, grey: int) -> None:
        for right, up in points.tolist():
            x, y = (right / limit + 1) * fine / 2, (1 - up / limit) * fine / 2
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=grey)

    frames = []
    for cloud in clouds:
        image = Image.new("L", (fine, fine), 247)  # the paper
        draw = ImageDraw.Draw(image)
        for points, radius, grey in ((background[~asked], 4, 207), (background[asked], 4, 143), (cloud, 5, 0)):
            dot(draw, points, radius, grey)
        frames.append(torch.from_numpy(np.array(image.resize((size, size), Image.Resampling.BOX))))
    return torch.stack(frames)


def level_around(density: Tensor, share: float) -> float:
    """The density above which this share of all of it lies: of its values on an even grid, (N,)."""
    falling = density.sort(descending=True).values
    held = falling.cumsum(0) / falling.sum()
    return falling[min(int((held < share).sum()), len(falling) - 1)].item()


@styled
def _plane(panels: dict[str, Tensor], background: Tensor, asked: Tensor, limit: float):
    """A row of square axes with the data in grey."""
    if not panels:
        raise BookError("a figure of the plane needs at least one panel")
    side = min(2.6, 7.8 / len(panels))  # inches; more would be shrunk to the page's width
    figure, axes = new_figure(max(3.4, side * len(panels)), side + 0.3, 1, len(panels), sharey=True, squeeze=False)
    for axis, title in zip(axes[0], panels, strict=True):
        for colour, chosen in zip(GREYS, (~asked, asked), strict=True):
            axis.scatter(*background[chosen].T, s=4, color=colour, linewidths=0)
        axis.set(title=title, xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    return figure, axes[0]


# Pictures


def show_sweep(
    pictures: Tensor, rows: Sequence, scales: Sequence[float], title: str | None = None, scale: float = 2.0
) -> Figure:
    """A figure of what `sweep` drew: (rows, columns, 1, H, W), with each row's label and w above the columns."""
    return show_table(pictures, [str(row) for row in rows], [f"w = {value:g}" for value in scales], title, scale)


# Measures


@styled
def plot_against_scale(
    scales: Sequence[float],
    panels: dict[str, dict[str, Sequence[float]]],
    real: dict[str, float | tuple[float, float]] | None = None,
    log: Sequence[str] = (),
    columns: int | None = None,
) -> Figure:
    """What was measured against the guidance scale, side by side.

    Args:
        scales: w, evenly spaced on the axis whatever they are, so that small ones do not crowd.
        panels: title -> name of a curve -> one number for each scale; a model's name gives the curve its colour.
        real: name of a curve or of a panel -> what real pictures reach, drawn dotted: a number, or the mean and the
            standard deviation of several draws of them, the latter as a band on both sides.
        log: titles of the panels whose numbers are shown on a logarithmic axis.
        columns: panels in a row; None puts all in one.

    Raises:
        BookError: there are no panels, or a curve has not one number for each scale.
    """
    if not panels:
        raise BookError("plot_against_scale needs at least one panel")
    real = real or {}
    columns = min(columns or len(panels), len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(max(4.5, 3.1 * columns), 0.4 + 2.8 * rows, rows, columns, squeeze=False)
    positions = range(len(scales))
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis in axes.flat[max(0, len(panels) - columns) : len(panels)]:  # with no panel below
        axis.set_xlabel("guidance scale w")
    for axis, (title, curves) in zip(axes.flat, panels.items(), strict=False):
        spare = iter([colour for colour in CYCLE if colour != ASKED])
        for name, values in curves.items():
            if len(values) != len(scales):
                raise BookError(f"{len(values)} numbers of '{name}' for {len(scales)} scales: give one each")
            colour = COLOURS.get(name) or next(spare)
            axis.plot(positions, values, "o-", color=colour, label=name, markersize=4)
            if name in real:
                _show_real(axis, real[name], colour)
        if title in real:
            _show_real(axis, real[title], COLOURS["data"], "real pictures")
        axis.set(title=title, yscale="log" if title in log else "linear")
        if title in log:
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.minorticks_off()
        axis.set_xticks(positions, [f"{value:g}" for value in scales])
        axis.legend()
    return figure


def _show_real(axis: Axes, reached: float | tuple[float, float], colour: str, label: str | None = None) -> None:
    """A dotted line at what real pictures reach, and a band of one standard deviation where it is known."""
    mean, std = reached if isinstance(reached, tuple) else (reached, 0.0)
    axis.axhline(mean, color=colour, linestyle=":", linewidth=1.5, label=label)
    if std:
        axis.axhspan(mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
