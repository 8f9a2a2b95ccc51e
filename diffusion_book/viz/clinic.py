"""Pictures of broken set-ups: sick, diagnosed, cured; loss by time; and what each supposition explains."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from diffusion_book.system.errors import BookError
from diffusion_book.viz.grids import grid, place
from diffusion_book.viz.style import COLOURS, DPI, new_figure, styled

HEALTHY, BROKEN = COLOURS["ddpm"], COLOURS["ddim"]
LINES = ("-", "--", "-.", ":")
SHOWN, TICKS = (0.2, 10.0), (0.3, 0.5, 1, 2, 5, 10)  # of an axis of relative errors
CHART, TITLE, FOOT = 3.1, 0.3, 0.55  # inches: width of the middle panel, room for titles, for the name of its axis


@styled
def show_case(
    sick: Tensor,
    cured: Tensor,
    measured: dict[str, float | tuple[Sequence, Sequence]],
    xlabel: str,
    ylabel: str = "",
    **options,
) -> Figure:
    """A case as a triptych: samples of the sick set-up, the measurement that finds the fault, samples after the cure.

    Args:
        sick, cured: pictures (N, 1, H, W), floats in [-1, 1], the same N.
        measured: name -> a number, drawn as a bar, or x and y of a curve. The first is the healthy one.
        xlabel, ylabel: what the axes are; bars need no second name.
        options: for `Axes.set` of the measurement, such as yscale="log".

    Raises:
        BookError: not as many sick pictures as cured ones, or nothing measured.
    """
    if len(sick) != len(cured) or not measured:
        raise BookError(
            f"{len(sick)} sick and {len(cured)} cured pictures, {len(measured)} measurements: see `show_case`"
        )
    pictures = {title: grid(images, columns=2) for title, images in (("sick", sick), ("cured", cured))}
    wide, high = (2.0 * size / DPI for size in reversed(pictures["sick"].shape))
    bars = not isinstance(next(iter(measured.values())), tuple)
    names = 0.085 * max(map(len, measured)) + 0.15 if bars else 0.65  # inches left of the axes
    whole_wide, whole_high = 2 * wide + names + CHART + 0.3, high + TITLE
    figure, axes = new_figure(whole_wide, whole_high, 1, 3, layout="none")
    for axis, left, (title, picture) in zip(
        (axes[0], axes[2]), (0.0, whole_wide - wide), pictures.items(), strict=True
    ):
        place(axis, picture, (left / whole_wide, 0, wide / whole_wide, high / whole_high))
        axis.set_title(title)
    chart = axes[1]
    left = (wide + names) / whole_wide
    chart.set_position((left, FOOT / whole_high, (CHART - 0.1) / whole_wide, (high - FOOT) / whole_high))
    colours = (HEALTHY, BROKEN, COLOURS["ldm"], COLOURS["ldm-concat"])
    if bars:
        values = list(measured.values())
        chart.barh(range(len(values)), values, 0.6, color=[HEALTHY, *[BROKEN] * (len(values) - 1)])
        chart.set_yticks(range(len(values)), list(measured))
        chart.set_ylim(len(values) - 0.4, -0.6)
        chart.axvline(0, color=COLOURS["data"], linewidth=0.8)
        chart.grid(False, axis="y")
    else:
        for colour, line, (name, (x, y)) in zip(colours, LINES, measured.items(), strict=False):
            chart.plot(x, y, line, color=colour, label=name)
        chart.legend()
    chart.set(xlabel=xlabel, ylabel=ylabel, title="diagnosis", **options)
    return figure


@styled
def plot_loss_by_time(times: Sequence[float], band: Tensor, curves: dict[str, Sequence[float]], ylabel: str) -> Figure:
    """Losses against time, over the band in which those of healthy networks lie.

    Args:
        times: T of them.
        band: (K, T), of K healthy sets of pictures; their lowest and highest are its edges.
        curves: name -> one number for each time.
        ylabel: what the loss is.
    """
    figure, axes = new_figure(7.0, 3.6)
    axes.fill_between(times, band.amin(0), band.amax(0), color=HEALTHY, alpha=0.25, linewidth=0, label="healthy band")
    axes.plot(times, band.mean(0), color=HEALTHY, linewidth=1)
    colours = (BROKEN, COLOURS["ldm"], COLOURS["rf"], COLOURS["ldm-concat"], COLOURS["vae"])
    for colour, line, (name, values) in zip(colours, (*LINES, "-"), curves.items(), strict=False):
        axes.plot(times, values, line, color=colour, label=name)
    axes.set(xlabel="time t", ylabel=ylabel, xlim=(0, 1), ylim=(0, None))
    figure.legend(loc="outside upper center", ncols=3)
    return figure


@styled
def plot_suppositions(ratios: dict[str, dict[str, float]], believed: float, columns: int = 2) -> Figure:
    """For each patient: how large the error would be under each supposition, relative to that without any.

    Args:
        ratios: patient -> supposition -> ratio; the same suppositions for all. What lies outside of `SHOWN` stands at its edge.
        believed: ratio below which a supposition is believed.
        columns: patients beside each other.
    """
    names = list(next(iter(ratios.values())))
    rows = -(-len(ratios) // columns)
    figure, axes = new_figure(
        2.4 + 2.7 * columns, rows * (0.19 * len(names) + 0.7), rows, columns, sharex=True, sharey=True, squeeze=False
    )
    for panel, (patient, found) in zip(axes.flat, ratios.items(), strict=False):
        best = min(found, key=found.__getitem__)
        for row, name in enumerate(names):
            chosen = name == best and found[name] < believed
            colour = BROKEN if chosen else HEALTHY
            ratio = min(max(found[name], SHOWN[0]), SHOWN[1])
            panel.plot([1, ratio], [row, row], color=colour, linewidth=1.5)
            panel.plot(ratio, row, "D" if chosen else "o", color=colour, markersize=6 if chosen else 4)
        panel.axvline(1, color=COLOURS["data"], linewidth=1)
        panel.set(xscale="log", title=patient, xlim=(0.9 * SHOWN[0], 1.1 * SHOWN[1]))
        panel.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
        panel.minorticks_off()
        panel.set_yticks(range(len(names)), names, fontsize=9)
        panel.set_ylim(len(names) - 0.5, -0.5)
    for panel in axes[-1]:
        panel.set_xlabel("error of $x_0$, relative")
    for panel in axes.flat[len(ratios) :]:
        panel.set_visible(False)
    return figure
