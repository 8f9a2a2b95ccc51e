"""One look for every figure of the book."""

from __future__ import annotations

import functools
import re
import textwrap
import warnings

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.colors import hsv_to_rgb, to_hex
from matplotlib.figure import Figure

from diffusion_book.models.recipes import MODELS
from diffusion_book.system.errors import BookError

# One colour a model, the same on every page. Most are from Okabe & Ito's palette or lie close to it, so they stay apart
# for colour-blind readers. The flows that learned from flows are close to their parents. The data is nearly black.
COLOURS: dict[str, str] = {
    **{name: model.colour for name, model in MODELS.items() if model.colour},
    "ddim": "#D55E00",
    "data": "#333333",
}

# One colour a digit, 0 to 9. Digits that look alike (4 and 9; 3, 5 and 8; 1 and 7) lie far apart in colour.
DIGIT_COLOURS: list[str] = [
    "#7B2D9E", "#E6550D", "#009E73", "#E377C2", "#E3B505", "#56B4E9", "#7A8B0F", "#7B3F1D", "#2B2B2B", "#0062C4",
]  # fmt: skip

# From few steps (or much noise) to many steps (or none): light to dark, also in grey print.
SEQUENCE: list[str] = ["#E8C547", "#C9A257", "#A08A70", "#757478", "#475F7C", "#1F4B7F", "#00275C"]

GREY = "#999999"  # of a model without a colour, and of what belongs to no model

PAPER = "#F7F7F5"  # an opaque, nearly white card: dark text on it is legible on light and on dark pages

DPI = 100
MOST_INCHES = 2**16 / DPI  # more pixels matplotlib does not draw

_STYLE = {
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "savefig.bbox": "tight",  # as notebooks show figures: no label is cut off
    "axes.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "legend.fontsize": 10,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDA",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 2.0,
    "legend.frameon": False,
    "image.cmap": "gray",
    "image.interpolation": "nearest",
    "svg.hashsalt": "diffusion_book",  # the same figure gives the same file
}


def use_style() -> None:
    """Set matplotlib's defaults to the look of the book: at most 100 dpi, legible on light and dark pages."""
    plt.rcParams.update(_STYLE)


def styled(draw):
    """Have a function draw in the look of the book, whatever the reader has set; what is set stays as it was."""

    @functools.wraps(draw)
    def drawn(*arguments, **named):
        quiet = warnings.catch_warnings(action="ignore", category=matplotlib.MatplotlibDeprecationWarning)
        with quiet, plt.style.context(_STYLE, after_reset=True):
            return draw(*arguments, **named)

    return drawn


def colour_of_label(label: int) -> str:
    """The colour of a class: a digit's own, and for others one that lies far from the last ones."""
    if label < len(DIGIT_COLOURS):
        return DIGIT_COLOURS[label]
    return to_hex(hsv_to_rgb((label * 0.618 % 1, 0.75, 0.8 if label % 2 else 0.55)))  # the golden section


class DescribedFigure(Figure):
    """A figure whose text form says what there is to see.

    A notebook keeps it beside the picture, and the site reads it to those who do not see the picture.
    """

    def __repr__(self) -> str:
        parts = [self.get_suptitle(), *map(describe, self.axes), *(text.get_text() for text in self.texts)]
        words = "; ".join(dict.fromkeys(filter(None, parts)))  # panels repeat names: once each
        words = re.sub(r"\\mathrm|[$\\{}]", "", words)  # mathematics is read out as it is written
        kind = "A grid of pictures" if any(axes.images for axes in self.axes) else "Chart"
        return textwrap.shorten(f"{kind}: {words}" if words else kind, 300, placeholder=" ...")

    @styled
    def draw(self, renderer) -> None:
        """As matplotlib does."""
        super().draw(renderer)

    @styled
    def savefig(self, *arguments, **named) -> None:
        """As matplotlib does."""
        super().savefig(*arguments, **named)


def describe(axes) -> str:
    """The words of a panel: its title, its axes' names, its lines' names, and the names of a table's rows and columns."""
    lines = axes.get_legend_handles_labels()[1]
    named = [label.get_text() for axis in (axes.xaxis, axes.yaxis) for label in axis.get_ticklabels() if axes.images]
    return ", ".join(filter(None, [axes.get_title(), axes.get_ylabel(), axes.get_xlabel(), *lines, *named]))


@styled
def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **options) -> tuple[Figure, object]:
    """A figure in the book's style and its axes, which pyplot does not show by itself.

    Args:
        width, height: inches.
        rows, columns: of axes.
        options: for `plt.subplots`.

    Returns:
        The figure, and what `plt.subplots` gives: one Axes, or an array of them.

    Raises:
        BookError: it would be too large, or have no area.
    """
    if not (0 < width <= MOST_INCHES and 0 < height <= MOST_INCHES):
        raise BookError(f"a figure of {width:.3g} x {height:.3g} inches cannot be drawn: give another scale")
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), FigureClass=DescribedFigure, **options)
    plt.close(figure)  # else a notebook shows it twice: as the cell's value and as an open figure
    return figure, axes
