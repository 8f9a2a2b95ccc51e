"""Where points go: paths on a line, tracks in the plane, and pairs of states."""

from __future__ import annotations

import itertools

from matplotlib.figure import Figure
from torch import Tensor

from diffusion_book.viz.plots import CYCLE
from diffusion_book.viz.style import COLOURS, PAPER, new_figure, styled


@styled
def show_line_paths(
    panels: dict[str, tuple[Tensor, Tensor]],
    xlabel: str = "time t",
    ylabel: str = "x",
    xlim: tuple[float, float] = (1.0, 0.0),
    ylim: tuple[float, float] | None = None,
) -> Figure:
    """Points on a line as they move, one panel a way of moving them.

    Args:
        panels: title -> (where along the axis, (S,); the N points there, (S, N)). A path is coloured by
            the side of zero on which it ends, and marked at every step where there are few of them.
        xlabel, ylabel: what the axes are.
        xlim: of the axis, in the order of travel: (1, 0) runs from noise to data.
        ylim: of the points; None fits them.
    """
    figure, axes = new_figure(max(6.5, 3.6 * len(panels) + 0.4), 3.3, 1, len(panels), sharey=True, squeeze=False)
    for axis, (title, (positions, points)) in zip(axes[0], panels.items(), strict=True):
        marker = "." if len(positions) <= 25 else None
        for path in points.T:
            colour = COLOURS["ddpm"] if path[-1] > 0 else COLOURS["ddim"]
            axis.plot(positions, path, color=colour, linewidth=0.9, alpha=0.7, marker=marker, markersize=5)
        axis.set(title=title, xlabel=xlabel, xlim=xlim)
    axes[0, 0].set(ylabel=ylabel, ylim=ylim)
    return figure


@styled
def show_plane_paths(
    panels: dict[str, Tensor],
    background: Tensor,
    limit: float = 3.2,
    line: Tensor | None = None,
    labels: tuple[str, str] = ("start", "end"),
) -> Figure:
    """Points in the plane as they move, one panel a way of moving them.

    Args:
        panels: title -> the points at each step, (S, N, 2), each in its colour; a ring marks each start, a dot each end.
        background: (M, 2), drawn in grey behind them: where the data lies.
        limit: of both axes, on both sides of zero.
        line: a direction, (2,); the line through zero along it is drawn too.
        labels: what the rings and the dots are called in the legend.
    """
    figure, axes = new_figure(3.2 * len(panels), 3.5, 1, len(panels), sharey=True, squeeze=False)
    for axis, (title, points) in zip(axes[0], panels.items(), strict=True):
        axis.scatter(*background.T, s=4, color="#BBBBB8", linewidths=0)
        if line is not None:
            axis.axline((0, 0), line.tolist(), color=COLOURS["data"], linewidth=1, zorder=1)
        for colour, track in zip(itertools.cycle(CYCLE), points.unbind(1), strict=False):
            axis.plot(*track.T, color=colour, linewidth=0.6 if len(track) > 100 else 1.2, alpha=0.8)
        axis.scatter(*points[0].T, s=36, facecolors=PAPER, edgecolors=COLOURS["data"], label=labels[0], zorder=3)
        axis.scatter(*points[-1].T, s=30, color=COLOURS["data"], label=labels[1], zorder=3)
        axis.set(title=title, xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    axes[0, -1].legend(loc="lower right", framealpha=0.8, frameon=True)
    return figure


@styled
def show_pairs(panels: dict[str, tuple[Tensor, Tensor]], xlabel: str, ylabel: str) -> Figure:
    """How two numbers hang together, with the histogram of each at the edge: one panel a way of drawing them.

    Args:
        panels: title -> two sets of numbers, (N,) each.
        xlabel, ylabel: what the two are.
    """
    options = {"height_ratios": (1, 4), "width_ratios": (4, 1) * len(panels), "squeeze": False}
    figure, axes = new_figure(2.9 * len(panels), 2.9, 2, 2 * len(panels), **options)
    low = min(values.min().item() for pair in panels.values() for values in pair)
    high = max(values.max().item() for pair in panels.values() for values in pair)
    for column, (title, (first, second)) in enumerate(panels.items()):
        above, corner, middle, beside = axes[:, 2 * column : 2 * column + 2].flat
        middle.scatter(first, second, s=3, alpha=0.3, color=COLOURS["ddim"], linewidths=0)
        above.hist(first.numpy(), bins=40, range=(low, high), color=COLOURS["data"])
        beside.hist(second.numpy(), bins=40, range=(low, high), color=COLOURS["data"], orientation="horizontal")
        middle.set(xlim=(low, high), ylim=(low, high), xlabel=xlabel, ylabel=ylabel)
        above.set(xlim=(low, high), title=title)
        beside.set(ylim=(low, high))
        for edge in (above, beside, corner):
            edge.axis("off")
    return figure
