"""Pictures of broken set-ups: samples beside healthy ones and their losses, and what each supposition explains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from diffusion_book.system.errors import BookError
from diffusion_book.viz.grids import grid
from diffusion_book.viz.style import COLOURS, DPI, new_figure, styled

HEALTHY, BROKEN = COLOURS["ddpm"], COLOURS["ddim"]
CURVE = 2.6  # inches of width for the losses


@styled
def show_case(rows: dict[str, Tensor], losses: dict[str, Sequence[float]], smooth: int = 20) -> Figure:
    """Labelled rows of pictures on the left, and on the right the loss curves of the trainings that they come from.

    Args:
        rows: label -> pictures (N, 1, H, W), floats in [-1, 1], N the same in all.
        losses: label -> loss of each step; the first curve is the healthy one.
        smooth: steps that the running mean covers.

    Raises:
        BookError: no rows or no losses.
    """
    if not rows or not losses:
        raise BookError("show_case needs rows of pictures and losses")
    pictures = [grid(images, columns=len(images)) for images in rows.values()]
    wide, high = (2.0 * size / DPI for size in reversed(pictures[0].shape))
    margin = 0.09 * max(len(line) for label in rows for line in label.split("\n")) + 0.1
    whole_wide, whole_high = margin + wide + 0.7 + CURVE, max(len(rows) * (high + 0.05), 2.0)
    figure, axes = new_figure(whole_wide, whole_high, 1, len(rows) + 1, layout="none")
    top = (whole_high + len(rows) * (high + 0.05)) / 2
    for row, (label, picture) in zip(axes, zip(rows, pictures, strict=True), strict=False):
        top -= high + 0.05
        row.imshow(picture.numpy(), vmin=0, vmax=255, aspect="auto")
        row.set(xticks=[], yticks=[], frame_on=False)
        row.set_position((margin / whole_wide, top / whole_high, wide / whole_wide, high / whole_high))
        row.set_ylabel(label, rotation=0, ha="right", va="center")
    curves = axes[-1]
    left = margin + wide + 0.7
    curves.set_position((left / whole_wide, 0.5 / whole_high, CURVE / whole_wide, 1 - 0.6 / whole_high))
    for colour, style, (label, values) in zip((HEALTHY, BROKEN, COLOURS["ldm"]), ("-", "--", ":"), losses.items()):
        steps, mean = running_mean(values, smooth)
        curves.plot(steps, mean, color=colour, linestyle=style, label=label)
    curves.set(xlabel="step", ylabel="loss")
    curves.legend()
    return figure


@styled
def show_curves(losses: dict[str, Sequence[float]], xlabel: str, ylabel: str, smooth: int = 20) -> Figure:
    """Smoothed losses of several trainings that are not to be told apart by name: each has its letter at its end.

    Args:
        losses: letter -> one number a step.
        xlabel, ylabel: what the axes are.
        smooth: steps that the running mean covers.
    """
    figure, axes = new_figure(6.5, 3.2)
    names = ("ddpm", "ddim", "ldm", "rf", "ldm-concat")
    ends = []
    for colour, (name, values) in zip((COLOURS[name] for name in names), losses.items(), strict=False):
        steps, mean = running_mean(values, smooth)
        axes.plot(steps, mean, color=colour)
        ends.append([mean[-1], name, colour, steps[-1]])
    low, high = axes.get_ylim()
    place = -np.inf
    for value, name, colour, step in sorted(ends):
        place = max(value, place + 0.07 * (high - low))  # letters must not lie on each other
        axes.annotate(name, (step, value), (step * 1.03, place), color=colour, va="center", fontweight="bold")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return figure


@styled
def plot_suppositions(shares: dict[str, dict[str, float]], believed: float, columns: int = 2) -> Figure:
    """For each patient: how large the error would be under each supposition, as a share of that without any.

    Args:
        shares: patient -> supposition -> share; the same suppositions for all.
        believed: share below which a supposition is believed.
        columns: patients beside each other.
    """
    names = list(next(iter(shares.values())))
    rows = -(-len(shares) // columns)
    figure, axes = new_figure(
        2.4 + 2.7 * columns, rows * (0.17 * len(names) + 0.7), rows, columns, sharex=True, sharey=True, squeeze=False
    )
    for place, (patient, ratios) in zip(axes.flat, shares.items(), strict=False):
        best = min(ratios, key=ratios.__getitem__)
        for row, name in enumerate(names):
            chosen = name == best and ratios[name] < believed
            colour = BROKEN if chosen else HEALTHY
            place.plot([1, ratios[name]], [row, row], color=colour, linewidth=1.5)
            place.plot(ratios[name], row, "D" if chosen else "o", color=colour, markersize=6 if chosen else 4)
        place.axvline(1, color=COLOURS["data"], linewidth=1)
        place.set(xscale="log", title=patient, xlim=(0.01, 100))
        place.set_yticks(range(len(names)), names, fontsize=8)
        place.set_ylim(len(names) - 0.5, -0.5)
    for place in axes[-1]:
        place.set_xlabel("error of x0 under this supposition")
    for place in axes.flat[len(shares) :]:
        place.set_visible(False)
    return figure


def running_mean(values: Sequence[float], smooth: int) -> tuple[np.ndarray, np.ndarray]:
    """The middle steps of all windows of `smooth` steps (or fewer, if there are fewer), and the means in them."""
    values = np.asarray(values, dtype=float)
    window = min(smooth, len(values))
    mean = np.convolve(values, np.ones(window) / window, mode="valid")
    return np.arange(len(mean)) + (window - 1) // 2 + 1, mean
