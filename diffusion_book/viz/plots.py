"""Charts: schedules, losses, quality against work, points on a line."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor

from diffusion_book.schedules import Schedule, signal_to_noise
from diffusion_book.viz.style import COLOURS, GREY, SEQUENCE, new_figure, styled

CYCLE = [COLOURS[name] for name in ("ddpm", "ddim", "ldm", "rf", "ldm-concat")]


@styled
def plot_schedule(schedules: dict[str, Schedule]) -> Figure:
    """How picture and noise share x_t, and the logarithm of their ratio, over time.

    Args:
        schedules: name -> schedule.
    """
    figure, (shares, ratio) = new_figure(8.0, 3.4, 1, 2)
    t = torch.linspace(0.001, 1, 1000, dtype=torch.float64)
    for colour, (name, schedule) in zip(CYCLE, schedules.items(), strict=False):
        alpha, sigma = schedule(t)
        shares.plot(t, alpha, color=colour)
        shares.plot(t, sigma, color=colour, linestyle="--")
        ratio.plot(t, signal_to_noise(schedule, t).log10(), color=colour, label=name)
    shares.set(xlabel="time t", ylabel=r"solid $\alpha_t$: picture, dashed $\sigma_t$: noise", ylim=(-0.02, 1.05))
    ratio.set(xlabel="time t", ylabel=r"$\log_{10}$ SNR")
    ratio.axhline(0, color="#999999", linewidth=1)
    ratio.legend()
    return figure


@styled
def plot_loss(steps: Sequence[int], losses: Sequence[float] | dict[str, Sequence[float]], smooth: int = 20) -> Figure:
    """A training's loss, step by step and as a running mean.

    Args:
        steps: of the optimiser.
        losses: one for each step; or name -> losses, to compare.
        smooth: steps that the running mean covers.
    """
    figure, axes = new_figure(6.5, 3.0)
    curves = losses if isinstance(losses, dict) else {"loss": losses}
    for colour, (name, values) in zip(CYCLE, curves.items(), strict=False):
        values = np.asarray(values, dtype=float)
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
        window = min(smooth, len(values))
        mean = np.convolve(values, np.ones(window) / window, mode="valid")
        first = (window - 1) // 2  # each mean stands in the middle of its steps, or it would lag behind
        axes.plot(steps[first : first + len(mean)], mean, color=colour, label=f"{name}, mean of {window} steps")
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.legend()
    return figure


@styled
def plot_quality(
    points: dict[str, list[tuple[float, ...]]], floor: float | None = None, ylabel: str = "cFID (lower is better)"
) -> Figure:
    """Quality against work: how good the samples are after so many function evaluations.

    Args:
        points: name -> (function evaluations, cFID) or (function evaluations, cFID, its standard error); a model's name
            gives the line its colour.
        floor: what real pictures reach, drawn as a line.
        ylabel: what is measured.
    """
    figure, axes = new_figure(6.5, 3.6)
    spare = iter([colour for name, colour in COLOURS.items() if name not in points and name != "data"])
    for name, pairs in points.items():
        evaluations, values, *errors = zip(*sorted(pairs), strict=True)
        colour = COLOURS.get(name) or next(spare)
        axes.plot(evaluations, values, "o-", color=colour, label=name, markersize=5)
        if errors:
            axes.errorbar(evaluations, values, errors[0], fmt="none", ecolor=colour, capsize=4)
    if floor is not None:
        axes.axhline(floor, color=COLOURS["data"], linestyle=":", label="real pictures")
    every = sorted({evaluations for pairs in points.values() for evaluations, *_ in pairs})
    axes.set(xscale="log", yscale="log", xlabel="function evaluations", ylabel=ylabel)
    axes.set_xticks(every, [f"{number:,}" for number in every])
    low, high = axes.get_ylim()
    few = (1, 2, 5) if high / low > 5 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8)  # else a short axis has one tick
    axes.yaxis.set_major_locator(LogLocator(subs=few, numticks=12))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    figure.legend(loc="outside upper center", ncols=4)  # above the axes: lines may run anywhere in them
    return figure


@styled
def plot_bins(
    edges: Sequence[float],
    values: dict[str, Sequence[float]],
    xlabel: str,
    ylabel: str,
    level: float | None = None,
) -> Figure:
    """Bars over bins of an axis, one colour a name, side by side.

    Args:
        edges: of the bins, one more than there are bins.
        values: name -> one number a bin.
        xlabel, ylabel: what the axes are.
        level: where a line is drawn across, for comparison.
    """
    figure, axes = new_figure(6.5, 3.0)
    edges = np.asarray(edges, dtype=float)
    width = np.diff(edges) / len(values) * 0.9
    for number, (colour, (name, heights)) in enumerate(zip(CYCLE, values.items(), strict=False)):
        axes.bar(
            edges[:-1] + 0.05 * np.diff(edges) + number * width, heights, width, align="edge", color=colour, label=name
        )
    if level is not None:
        axes.axhline(level, color=GREY)
    axes.set(xlabel=xlabel, ylabel=ylabel, xticks=edges)
    if len(values) > 1:
        axes.legend()
    return figure


@styled
def plot_curves(x: Sequence[float], curves: dict[str, Sequence[float]], xlabel: str, ylabel: str, **options) -> Figure:
    """Lines over one axis.

    Args:
        x: where they are known.
        curves: name -> one number for each x; a model's name gives the line its colour.
        xlabel, ylabel: what the axes are.
        options: for `Axes.set`, such as yscale="log".
    """
    figure, axes = new_figure(6.5, 3.0)
    spare = iter([colour for colour in CYCLE if colour not in {COLOURS.get(name) for name in curves}])
    for name, values in curves.items():
        axes.plot(x, values, color=COLOURS.get(name) or next(spare), label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel, **options)
    axes.legend()
    return figure


@styled
def plot_line_histograms(
    rows: dict[str, Tensor],
    limits: tuple[float, float] = (-3.5, 3.5),
    bins: int = 71,
    densities: dict[str, tuple[Tensor, Tensor]] | None = None,
) -> Figure:
    """Histograms of points on a line, one below the other, on one axis.

    Args:
        rows: label -> points, (N,).
        limits: of the axis.
        bins: of each histogram.
        densities: label -> (x, density there), drawn as a line over the row of that label.
    """
    figure, axes = new_figure(6.5, 0.75 * len(rows) + 0.5, len(rows), sharex=True, squeeze=False)
    shades = [SEQUENCE[-1 - round(row * (len(SEQUENCE) - 1) / max(1, len(rows) - 1))] for row in range(len(rows))]
    for row, shade, (label, points) in zip(axes[:, 0], shades, rows.items(), strict=True):
        row.hist(points.flatten().numpy(), bins=bins, range=limits, color=shade, density=True)
        if label in (densities or {}):
            row.plot(*(values.flatten() for values in densities[label]), color=COLOURS["data"], linewidth=1.2)
        row.set(yticks=[], xlim=limits)
        row.spines["left"].set_visible(False)
        row.set_ylabel(label, rotation=0, ha="right", va="center")
    axes[-1, 0].set_xlabel("x")
    return figure


@styled
def plot_race(
    runs: dict[str, tuple[Sequence[float], Sequence[float]]], ylabel: str, shipped: dict[str, tuple[float, float]]
) -> Figure:
    """Quality against training time, both axes logarithmic.

    Args:
        runs: name -> seconds and values. The first run is solid, and so is the second; the third is dashed.
        ylabel: what is measured.
        shipped: name of a run -> seconds and value of the shipped model of its kind, a diamond of the run's colour.
    """
    figure, axes = new_figure(4.6, 4.4)
    for colour, line, (name, (seconds, values)) in zip(CYCLE, ("-", "-", "--"), runs.items(), strict=False):
        axes.plot(seconds, values, line, color=colour, marker="o", markersize=5, label=name)
        if name in shipped:
            axes.plot(*shipped[name], "D", color=colour, markersize=7, label=f"{name}, shipped")
    axes.set(xscale="log", yscale="log", xlabel="training (seconds of one core)", ylabel=ylabel)
    figure.legend(loc="outside upper left")
    return figure
