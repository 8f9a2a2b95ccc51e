"""What a picture costs, as bars made of parts."""

from __future__ import annotations

from matplotlib.figure import Figure

from diffusion_book.system.errors import BookError
from diffusion_book.viz.style import COLOURS, new_figure


def plot_costs(bars: dict[str, dict[str, float]], xlabel: str) -> Figure:
    """Lying bars, the first one on top, each made of parts that are laid end to end.

    Args:
        bars: label -> part -> cost, 0 or more; a part is a model's name, which gives it its colour.
        xlabel: what is counted.

    Raises:
        BookError: a part is no model of the book.
    """
    unknown = {part for parts in bars.values() for part in parts} - set(COLOURS)
    if unknown:
        raise BookError(f"no colour for {', '.join(sorted(unknown))}: name the parts after {', '.join(COLOURS)}")
    figure, axes = new_figure(6.5, 0.5 * len(bars) + 1.2)
    named = set()
    for row, parts in enumerate(bars.values()):
        start = 0.0
        for part, cost in parts.items():
            axes.barh(row, cost, 0.6, left=start, color=COLOURS[part], label=None if part in named else part)
            named.add(part)
            start += cost
    axes.set(xlabel=xlabel, ylim=(len(bars) - 0.5, -0.5))
    axes.set_yticks(range(len(bars)), list(bars))
    axes.grid(False, axis="y")
    figure.legend(loc="outside upper center", ncols=4)
    return figure
