"""Pictures of what `diagnose` measures: distances of classes, gradients by layer, branches over time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from diffusion_book.viz.style import COLOURS, new_figure, styled


@styled
def plot_distances(distances: Tensor, names: Sequence[str], title: str | None = None) -> Figure:
    """A square of numbers, one for each pair.

    Args:
        distances: (N, N).
        names: N, of rows and columns.
        title: written above.
    """
    size = len(names)
    figure, axes = new_figure(0.5 * size + 1.4, 0.5 * size + 1.0)
    axes.imshow(distances.numpy(), cmap="Blues", vmin=0)
    middle = distances.max().item() / 2
    for i in range(size):
        for j in range(size):
            value = distances[i, j].item()
            ink = "white" if value > middle else COLOURS["data"]
            axes.text(j, i, f"{value:.3g}" if value else "0", ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(size), names)
    axes.set_yticks(range(size), names)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    if title:
        axes.set_title(title)
    return figure


@styled
def plot_gradients(norms: dict[str, float], limit: float) -> Figure:
    """Size of the gradient layer by layer, the first at the top; layers without a gradient are marked.

    Args:
        norms: layer -> root mean square of its gradient.
        limit: below it a layer hardly learns.
    """
    positive = [value for value in norms.values() if math.isfinite(value) and value > 0]
    low = min([*positive, limit]) / 3 if positive else 1e-12
    figure, axes = new_figure(7.5, 0.16 * len(norms) + 1.2)
    for place, value in enumerate(norms.values()):
        if math.isfinite(value) and value > 0:
            axes.plot([low, value], [place, place], color=COLOURS["ddpm"], linewidth=1)
            axes.plot(value, place, "o", color=COLOURS["ddpm"], markersize=4)
        else:
            axes.plot(low, place, "X", color=COLOURS["ddim"], markersize=8, clip_on=False)
            axes.text(low * 1.3, place, "0" if value == 0 else "not finite", va="center", fontsize=8)
    axes.axvline(
        limit, color=COLOURS["data"], linestyle=":", linewidth=1.5, label="limit: below it a layer hardly learns"
    )
    axes.set(xscale="log", xlabel="root mean square of the gradient", ylim=(len(norms), -1))
    axes.set_xlim(left=low)
    axes.set_yticks(range(len(norms)), norms, fontsize=7)
    figure.legend(loc="outside upper center")
    return figure


@styled
def plot_branches(times: Sequence[float], shares: Sequence[float], limit: float) -> Figure:
    """How far the class moves the predicted noise, over time.

    Args:
        times: t.
        shares: |eps_c - eps_u| / |eps_u| at each.
        limit: below it everywhere, guidance has nothing to push along.
    """
    figure, axes = new_figure(6.5, 3.2)
    axes.plot(times, shares, ".-", color=COLOURS["ldm-concat"])
    axes.axhline(limit, color=COLOURS["data"], linestyle=":", linewidth=1.5, label=f"limit: {limit:g}, somewhere")
    axes.set(
        xlabel="time t (1 = noise, 0 = picture)", ylabel=r"$|\epsilon_c - \epsilon_u|\ /\ |\epsilon_u|$", xlim=(1, 0)
    )
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


@styled
def plot_numbers(
    values: dict[str, float], xlabel: str, limits: Sequence[float] = (), high: float | None = None
) -> Figure:
    """One bar a name.

    Args:
        values: name -> number.
        xlabel: what the numbers are.
        limits: drawn as lines.
        high: end of the axis.
    """
    figure, axes = new_figure(6.5, 0.3 * len(values) + 0.9)
    axes.barh(range(len(values)), list(values.values()), color=COLOURS["ddpm"])
    for limit in limits:
        axes.axvline(limit, color=COLOURS["data"], linestyle=":", linewidth=1.5)
    axes.set_yticks(range(len(values)), values, fontsize=8)
    axes.set(xlabel=xlabel, xlim=(0, high), ylim=(len(values) - 0.5, -0.5))
    return figure
