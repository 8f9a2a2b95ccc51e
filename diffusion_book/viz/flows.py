"""Flows: tracks in the plane, where they end, how far they bend, and what a solver makes of them."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from diffusion_book.viz.plots import CYCLE
from diffusion_book.viz.style import COLOURS, new_figure, styled

SIDES = (COLOURS["ddim"], COLOURS["ddpm"])  # of points that end left and right of zero, as in `paths.show_line_paths`
MARKERS = ("o", "s", "^", "D", "v")


def colour_of(model: str) -> str | None:
    """A model's colour; one without its own has that of the model that its name begins with. None: neither is known."""
    known = [name for name in COLOURS if model == name or model.startswith(f"{name}-")]
    return COLOURS[max(known, key=len)] if known else None


@styled
def show_tracks(panels: dict[str, Tensor], limit: float = 3.2) -> Figure:
    """Many points in the plane as they move, one panel a way of moving them.

    Args:
        panels: title -> the points at each step, (S, N, 2). A track is coloured by the side of zero on which it ends,
            and a dot marks its end.
        limit: of both axes, on both sides of zero.
    """
    figure, axes = new_figure(3.2 * len(panels), 3.4, 1, len(panels), sharey=True, squeeze=False)
    for axis, (title, points) in zip(axes[0], panels.items(), strict=True):
        for track in points.unbind(1):
            colour = SIDES[int(track[-1, 0] > 0)]
            axis.plot(*track.T, color=colour, linewidth=0.9, alpha=0.6)
            axis.plot(*track[-1], marker=".", color=colour, markersize=5)
        axis.set(title=title, xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    return figure


@styled
def show_points(panels: dict[str, Tensor], limit: float = 3.2) -> Figure:
    """Points in the plane, one panel a set.

    Args:
        panels: title -> points, (N, 2).
        limit: of both axes, on both sides of zero.
    """
    figure, axes = new_figure(2.4 * len(panels), 2.7, 1, len(panels), sharey=True, squeeze=False)
    for axis, (title, points) in zip(axes[0], panels.items(), strict=True):
        axis.scatter(*points.T, s=4, color=COLOURS["data"], alpha=0.4, linewidths=0)
        axis.set(title=title, xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    return figure


def off_the_chord(times: Tensor, states: Tensor) -> Tensor:
    """How far each path is from where constant speed on a straight line would have it: (S + 1, N).

    In units of the line's length: 0 at both ends, and all the way on a straight path.

    Args:
        times: (S + 1,), from 1 down to 0.
        states: (S + 1, N, ...).
    """
    t = times.to(states).reshape(-1, *[1] * (states.ndim - 1))  # (S + 1, 1, ...)
    line = torch.lerp(states[-1], states[0], t)  # (S + 1, N, ...)
    length = (states[0] - states[-1]).flatten(1).norm(dim=1)  # (N,)
    return (states - line).flatten(2).norm(dim=2) / length


@styled
def show_bends(paths: dict[str, tuple[Tensor, Tensor]]) -> Figure:
    """How far paths bend away from their chords: a thin line for each, a thick one for their mean.

    Args:
        paths: name -> (times, (S + 1,), and states, (S + 1, N, ...)); a model's name gives the lines their colour.
    """
    figure, axes = new_figure(6.5, 3.0)
    spare = iter([colour for colour in CYCLE if colour not in {colour_of(name) for name in paths}])
    taken: set[str] = set()
    for name, (times, states) in paths.items():
        colour = colour_of(name)
        if colour is None or colour in taken:
            colour = next(spare)
        taken.add(colour)
        off = off_the_chord(times, states)
        axes.plot(times, off, color=colour, linewidth=0.6, alpha=0.25)
        axes.plot(times, off.mean(1), color=colour, label=name)
    axes.set(xlabel="time t", ylabel="distance from the chord /\nlength of the chord", xlim=(1, 0))
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


@styled
def plot_orders(errors: dict[str, list[tuple[int, float]]], slopes: tuple[int, ...] = (1, 2)) -> Figure:
    """A solver's error against its work, both on a logarithmic axis, where an order is a slope.

    Args:
        errors: solver -> (function evaluations, error) pairs.
        slopes: dotted lines to compare with, each through the first point of the first solver.
    """
    figure, axes = new_figure(6.5, 3.6)
    for colour, marker, (name, pairs) in zip(CYCLE, MARKERS, errors.items(), strict=False):
        axes.plot(*zip(*pairs, strict=True), marker=marker, color=colour, label=name, markersize=5)
    (first, start), *_ = next(iter(errors.values()))
    work = np.array(sorted({evaluations for pairs in errors.values() for evaluations, _ in pairs}), dtype=float)
    for slope in slopes:
        line = start * (first / work) ** slope
        axes.plot(work, line, color="#999999", linestyle=":", linewidth=1)
        axes.annotate(f"order {slope}", (work[-1], line[-1]), xytext=(4, 0), textcoords="offset points", va="center")
    axes.set(xscale="log", yscale="log", xlabel="function evaluations", ylabel="error of the end point")
    axes.legend()
    return figure


@styled
def plot_solvers(points: dict[tuple[str, str], list[tuple[int, float]]], floor: float | None, ylabel: str) -> Figure:
    """Quality against work for several models, each with several solvers: a model has a colour, a solver a marker.

    Args:
        points: (model, solver) -> (function evaluations, quality) pairs.
        floor: what real pictures reach, drawn as a line; None draws none.
        ylabel: what is measured.
    """
    figure, axes = new_figure(6.5, 3.8)
    solvers = list(dict.fromkeys(solver for _, solver in points))
    lines = ("-", "--", "-.", (0, (6, 1.5)), (0, (3, 1, 1, 1, 1, 1)))  # none like the floor's
    for (model, solver), pairs in points.items():
        number = solvers.index(solver)
        style = {"marker": MARKERS[number % len(MARKERS)], "linestyle": lines[number % len(lines)]}
        evaluations, values = zip(*sorted(pairs), strict=True)
        axes.plot(evaluations, values, color=colour_of(model), label=f"{model}, {solver}", markersize=5, **style)
    if floor is not None:
        axes.axhline(floor, color=COLOURS["data"], linestyle=":", label="real pictures")
    often = Counter(evaluations for pairs in points.values() for evaluations, _ in pairs)
    apart: list[int] = []  # numbers that would touch a more frequent one are left out
    for work, _ in sorted(often.items(), key=lambda item: (-item[1], item[0])):
        if all(abs(math.log(work / other)) > 0.2 for other in apart):
            apart.append(work)
    axes.set(xscale="log", yscale="log", xlabel="function evaluations", ylabel=ylabel)
    axes.set_xticks(apart, [f"{work:,}" for work in apart])
    axes.minorticks_off()
    figure.legend(loc="outside upper center", ncols=3)  # above the axes: lines may run anywhere in them
    return figure


CLOCKS = ("ddpm", "rf", "ddim")  # whose colours the paths have, as in `diagrams.clocks`


@styled
def show_clocks(paths: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]], noisiest: float = 4.0) -> Figure:
    """The same flow on several Gaussian paths: a panel for each in its own coordinates, and one for all in common ones.

    Args:
        paths: name -> (times, alpha and sigma at these times, each (S + 1,), and the points on a line, (S + 1, N)).
        noisiest: the largest sigma / alpha of the last panel, in which x / alpha stands over sigma / alpha.
    """
    figure, axes = new_figure(6.5, 5.6, -(-(len(paths) + 1) // 2), 2, squeeze=False)
    *own, common = axes.flat[: len(paths) + 1]
    widths = (5.0, 2.4, 1.0)  # in the common panel the lines lie on each other: a thin one on a broad one
    for number, (axis, (name, (times, alpha, sigma, points))) in enumerate(zip(own, paths.items(), strict=True)):
        colour = COLOURS[CLOCKS[number % len(CLOCKS)]]
        axis.plot(times, points, color=colour, linewidth=1.2)
        axis.set(title=name, xlabel="time t", ylabel="$x_t$", xlim=(1, 0))
        seen = sigma <= noisiest * alpha
        level, unshrunk = (sigma / alpha)[seen], (points / alpha[:, None])[seen]
        lines = common.plot(
            level, unshrunk, color=colour, linewidth=widths[number % 3], alpha=(0.35, 0.75, 1)[number % 3]
        )
        lines[0].set_label(name)
    common.set(
        title="all of them", xlabel=r"noise level $\sigma / \alpha$", ylabel=r"$x_t / \alpha$", xlim=(noisiest, 0)
    )
    common.legend(loc="upper right")  # towards the data, where the points are close together
    return figure
