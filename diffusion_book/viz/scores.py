"""The scoreboard to look at: a table, bars with their errors, quality against work, spreads of distances."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure
from torch import Tensor

from diffusion_book.evaluation.scoreboard import Row, one_number
from diffusion_book.system.errors import BookError
from diffusion_book.viz.flows import colour_of
from diffusion_book.viz.html import Html
from diffusion_book.viz.style import COLOURS, GREY, new_figure, styled

MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", (0, (6, 1.5)), (0, (3, 1, 1, 1, 1, 1)))  # none like the floor's


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        heading: what stands above it.
        value: row -> number; None leaves the cell empty.
        form: how the number is written, as in `format`.
        better: "low" or "high": the best of a group is set in bold; "" where no end is better.
        error: row -> standard error of the number, written behind it; None where it is not known. Of numbers with an
            error, all that are less than two errors of the difference behind the best are bold.
    """

    heading: str
    value: Callable[[Row], float | None]
    form: str
    better: str = ""
    error: Callable[[Row], float | None] = lambda row: None


def measure_column(heading: str, key: str, form: str, better: str) -> Column:
    """A column of one of a row's measures, with its error where it has one."""
    return Column(
        heading, lambda row: row.measures.get(key), form, better, lambda row: row.measures.get(f"{key}_error")
    )


COLUMNS = (
    Column("evaluations", lambda row: row.evaluations, ",", "low"),
    measure_column("R", "ratio", ".2f", "low"),
    measure_column("doubtful", "doubtful", ".1%", "low"),
    measure_column("cFID", "cfid", ".3f", "low"),
    measure_column("KID", "kid", ".3f", "low"),
    measure_column("precision", "precision", ".1%", "high"),
    measure_column("recall", "recall", ".1%", "high"),
    measure_column("right class", "class_accuracy", ".1%", "high"),
    Column("parameters", lambda row: row.parameters / 1e6, ".2f M", "low"),
    Column("training", lambda row: row.minutes, ".0f min", "low"),
)


def setting_name(row: Row) -> str:
    """How a row's samples were drawn, in a few characters."""
    setting = row.setting
    eta = f", η = {setting['eta']:g}" if setting["sampler"] == "ddim" and setting.get("eta") else ""
    scale = f", w = {setting['guidance_scale']:g}" if "guidance_scale" in setting else ""
    return f"{setting['sampler']} {setting['steps']}{eta}{scale}"


# The colour behind the first column hides what scrolls under it: that of the site, of JupyterLab, of VS Code, or of the
# browser's page. All other colours are the text's own, so the table follows light and dark pages.
_STYLE = """\
<style>
table.scores{display:block;overflow-x:auto;border-collapse:collapse;font-size:0.88em;line-height:1.35;\
font-variant-numeric:tabular-nums;color:inherit;margin:0}
table.scores :is(th,td){padding:0.25em 0.6em;text-align:right;white-space:nowrap;border:0;background:none;color:inherit}
table.scores tbody tr{background:none}
table.scores tbody :is(th,td){border-top:1px solid rgba(128,128,128,0.3)}
table.scores :is(thead,tbody) th:first-child{text-align:left;font-weight:normal;position:sticky;left:0;background:\
var(--pst-color-background,var(--jp-layout-color0,var(--vscode-editor-background,Canvas)))}
table.scores th:first-child small{display:block;opacity:0.75;font-size:0.88em}
table.scores thead th{vertical-align:bottom}
table.scores tbody th.group{padding-top:0.9em;font-weight:bold}
table.scores td b{background:rgba(0,158,115,0.22);border-radius:0.25em;padding:0.1em 0.25em;margin:0 -0.25em}
table.scores .swatch{display:inline-block;width:0.7em;height:0.7em;border-radius:50%;margin-right:0.45em}
</style>"""


def score_table(groups: dict[str, list[Row]], columns: tuple[Column, ...] = COLUMNS, fold: str | None = None) -> Html:
    """Rows of the scoreboard as a table. It scrolls sideways on a narrow screen, and the model's name stays in view.

    Args:
        groups: heading -> rows, in their order, all of one number of samples; the heading "" is not written. The best
            numbers of a group are bold.
        columns: what is told of a row beside its model and setting.
        fold: hide the table behind this line until it is clicked; None shows it.

    Raises:
        BookError: there are no rows, or of several numbers of samples.
    """
    count = sum(len(rows) for rows in groups.values())
    if not count:
        raise BookError("a table of scores needs at least one row")
    one_number([row for rows in groups.values() for row in rows])
    lines = []
    for heading, rows in groups.items():
        if heading:
            rest = f'<td colspan="{len(columns)}"></td>'
            lines.append(f'<tr><th class="group" scope="rowgroup">{html.escape(heading)}</th>{rest}</tr>')
        lines += _lines(rows, columns)
    heads = "".join(f'<th scope="col">{html.escape(column.heading)}</th>' for column in columns)
    table = (
        f'{_STYLE}\n<table class="scores" tabindex="0">\n<thead><tr><th scope="col">model</th>{heads}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(lines)}\n</tbody>\n</table>"
    )
    if fold is not None:
        table = f"<details><summary>{html.escape(fold)}</summary>\n{table}\n</details>"
    return Html(table, f"scores of {len({row.model for rows in groups.values() for row in rows})} models, {count} rows")


def _lines(rows: list[Row], columns: tuple[Column, ...]) -> list[str]:
    """One group of the table."""
    cells = [[_written(column, row) for column in columns] for row in rows]
    for number, column in enumerate(columns):
        known = [row for row in rows if column.value(row) is not None]
        if column.better and len(known) > 1:
            best = (min if column.better == "low" else max)(known, key=column.value)
            for line, row in zip(cells, rows, strict=True):
                if row in known and _tied(column, row, best):
                    line[number] = f"<b>{line[number]}</b>"
    return [
        f'<tr><th scope="row"><span class="swatch" style="background:{colour_of(row.model) or GREY}"></span>'
        f"{html.escape(row.model)}<small>{html.escape(setting_name(row))}</small></th>"
        + "".join(f"<td>{cell}</td>" for cell in line)
        + "</tr>"
        for row, line in zip(rows, cells, strict=True)
    ]


def _tied(column: Column, row: Row, best: Row) -> bool:
    """Whether a number is as good as the best: it reads the same, or their errors do not tell them apart."""
    if _written(column, row) == _written(column, best):
        return True
    errors = column.error(row), column.error(best)
    return None not in errors and abs(column.value(row) - column.value(best)) < 2 * math.hypot(*errors)


def _written(column: Column, row: Row) -> str:
    value, error = column.value(row), column.error(row)
    if value is None:
        return ""
    form, _, unit = column.form.partition(" ")
    text = f"{value:{form}}"
    if error is not None:
        text = f"{text.removesuffix('%')} ± {error:{form}}"
    return html.escape(f"{text} {unit}".strip().replace("-", "−"))  # a minus sign as wide as a digit


def looks(names: list[str]) -> dict[str, dict]:
    """A colour, a marker and a line for each model: those of one colour differ in marker and line."""
    seen: Counter[str] = Counter()
    by_model = {}
    for name in names:
        colour = colour_of(name) or GREY
        number = seen[colour]
        seen[colour] += 1
        by_model[name] = {
            "color": colour,
            "marker": MARKERS[number % len(MARKERS)],
            "linestyle": LINES[number % len(LINES)],
        }
    return by_model


PANELS = (
    ("ratio", "R, times the distance of real digits", 1.0),
    ("doubtful", "doubtful digits in a hundred", 100.0),
)
"""key of the measure, label, factor"""


@styled
def plot_bars(rows: list[Row]) -> Figure:
    """What to take away of each row: R and the share of doubtful digits, as lying bars with their standard errors.

    Args:
        rows: of one number of samples, the first one on top.

    Raises:
        BookError: there are no rows, or of several numbers of samples.
    """
    if not rows:
        raise BookError("plot_bars needs at least one row")
    one_number(rows)
    figure, axes = new_figure(9.2, 0.42 * len(rows) + 1.0, 1, 2, sharey=True)
    places = range(len(rows))
    for axis, (key, label, factor) in zip(axes, PANELS, strict=True):
        values = [factor * row.measures[key] for row in rows]
        errors = [factor * (row.measures[f"{key}_error"] or 0) for row in rows]
        axis.barh(places, values, 0.66, xerr=errors, color=[colour_of(row.model) or GREY for row in rows])
        axis.axvline(factor * rows[0].measures.get(f"{key}_real", 1.0), color=COLOURS["data"], linestyle=":")
        for place, (value, error) in enumerate(zip(values, errors, strict=True)):
            ground = {"facecolor": axis.get_facecolor(), "edgecolor": "none", "pad": 1}  # the dotted line ends there
            axis.text(value + error, place, f" {value:.1f}", va="center", fontsize=9, bbox=ground)
        axis.set(
            xlabel=f"{label} (dotted: real)", xlim=(0, 1.2 * max(v + e for v, e in zip(values, errors, strict=True)))
        )
        axis.grid(False, axis="y")
    axes[0].set_yticks(places, [f"{row.model}\n{setting_name(row)}" for row in rows], fontsize=8)
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    return figure


@styled
def plot_frontier(rows: list[Row]) -> Figure:
    """Quality against work: the lowest R of each model at each number of evaluations, and the envelope of all.

    Args:
        rows: of one number of samples.

    Raises:
        BookError: there are no rows, or of several numbers of samples.
    """
    if not rows:
        raise BookError("plot_frontier needs at least one row")
    one_number(rows)
    figure, axes = new_figure(7.4, 4.4)
    points: dict[str, dict[int, float]] = {}
    for row in rows:
        known = points.setdefault(row.model, {})
        known[row.evaluations] = min(row.measures["ratio"], known.get(row.evaluations, math.inf))
    for name, look in looks(list(points)).items():
        axes.plot(*zip(*sorted(points[name].items()), strict=True), **look, label=name, markersize=6)
    work = sorted({evaluations for known in points.values() for evaluations in known})
    bound = [min(v for known in points.values() for e, v in known.items() if e <= limit) for limit in work]
    axes.step(work, bound, where="post", color=GREY, linewidth=6, alpha=0.3, zorder=0, label="the best so far")
    axes.axhline(1.0, color=COLOURS["data"], linestyle=":", label="real pictures")
    apart: list[int] = []  # numbers that would touch another are left out
    for number in work:
        if not apart or math.log(number / apart[-1]) > 0.25:
            apart.append(number)
    axes.set(
        xscale="log", yscale="log", xlabel="function evaluations a picture", ylabel="R = cFID / floor (lower is better)"
    )
    axes.set_xticks(apart, [f"{number:,}" for number in apart])
    low, high = axes.get_ylim()
    ticks = [m * 10**e for e in range(-3, 5) for m in (1, 2, 5) if low <= m * 10**e <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    figure.legend(loc="outside upper center", ncols=3)  # above the axes: lines may run anywhere in them
    return figure


@styled
def plot_sweep(rows: list[Row], measures: dict[str, str]) -> Figure:
    """Measures against the guidance scale, a panel each, with a line for each model.

    Args:
        rows: of one number of samples, with a guidance scale each. The scales are spaced evenly, whatever they are, so that small ones do not crowd.
        measures: title of the panel -> key of the measure; where real pictures have a figure too, it is dotted.

    Raises:
        BookError: there are no rows or no measures, or a row has no guidance scale.
    """
    if not rows or not measures or any("guidance_scale" not in row.setting for row in rows):
        raise BookError("plot_sweep needs measures, and rows that were drawn with a guidance scale")
    one_number(rows)
    scales = sorted({row.setting["guidance_scale"] for row in rows})
    names = list(dict.fromkeys(row.model for row in rows))
    figure, axes = new_figure(3.1 * len(measures), 3.3, 1, len(measures), squeeze=False)
    for axis, (title, key) in zip(axes[0], measures.items(), strict=True):
        for name, look in looks(names).items():
            values = {row.setting["guidance_scale"]: row.measures[key] for row in rows if row.model == name}
            pairs = sorted((scales.index(scale), value) for scale, value in values.items())
            axis.plot(*zip(*pairs, strict=True), **look, label=name, markersize=4)
        real = 1.0 if key == "ratio" else rows[0].measures.get("floor" if key == "cfid" else f"{key}_real")
        if real is not None:
            axis.axhline(real, color=COLOURS["data"], linestyle=":", linewidth=1.5, label="real pictures")
        axis.set(title=title, xlabel="guidance scale w")
        axis.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


@styled
def plot_spreads(sets: dict[str, Tensor], xlabel: str) -> Figure:
    """How numbers spread, one box a set, the first one on top: its middle half, its median, and 5 % to 95 %.

    Args:
        sets: name -> numbers, (N,); a model's name gives the box its colour.
        xlabel: what the numbers are.

    Raises:
        BookError: there are no sets.
    """
    if not sets:
        raise BookError("plot_spreads needs at least one set of numbers")
    figure, axes = new_figure(6.5, 0.42 * len(sets) + 1.1)
    boxes = axes.boxplot(
        [values.tolist() for values in sets.values()],
        orientation="horizontal",
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        widths=0.6,
        medianprops={"color": COLOURS["data"], "linewidth": 2},
    )
    for box, name in zip(boxes["boxes"], sets, strict=True):
        box.set(facecolor=colour_of(name) or GREY, alpha=0.75)
    axes.set_yticks(range(1, len(sets) + 1), list(sets))
    axes.set(xlabel=xlabel, ylim=(len(sets) + 0.6, 0.4))
    axes.set_xlim(left=0)
    axes.grid(False, axis="y")
    return figure
