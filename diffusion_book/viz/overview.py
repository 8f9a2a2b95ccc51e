"""The map of the models: what each draws, and which grew out of which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor

from diffusion_book.models.recipes import MODELS, RECIPES, Model
from diffusion_book.viz.grids import grid
from diffusion_book.viz.style import COLOURS, new_figure, styled

WIDTH, HEIGHT = 2.25, 1.82  # inches of a box
ACROSS, DOWN = 0.4, 0.38  # inches between boxes
HEADING = 0.35  # inches above each column
COLUMNS = 5  # pictures a row in a box
LETTERS = 10  # points: on a phone, where a wide figure is shown at four fifths of its size, 11 pixels


@dataclass(frozen=True)
class Place:
    """Where a model stands on the map.

    Attributes:
        column, row: of the map.
        parents: models whose idea or weights it builds on.
        idea: what is new in it, in a few words.
        chapter: of the book.
    """

    column: int
    row: int
    parents: tuple[str, ...]
    idea: str
    chapter: int


HEADINGS = ("in pixels", "in latents", "in latents, with a class")

# Columns and rows, chosen so that every arrow is straight and crosses no box. The rows from the third on are flows.
_CELLS = {
    "ddpm": (0, 0), "vae": (1, 0), "ldm-cross-attention": (2, 0),
    "ddim": (0, 1), "ldm": (1, 1), "ldm-concat": (2, 1),
    "rf": (0, 2), "latent-rf": (1, 2), "latent-rf-class": (2, 2),
    "rf-reflow": (0, 3),
    "rf-one-step": (0, 4), "latent-rf-class-one-step": (2, 4),
}  # fmt: skip

_DDIM = Model(RECIPES["ddpm"], 2, COLOURS["ddim"], "same weights, fewer steps", ("ddpm",))  # a sampler


def _places() -> dict[str, Place]:
    """Models with an idea. One without a cell of its own stands below the others of its column."""
    places: dict[str, Place] = {}
    models = {"ddpm": MODELS["ddpm"], "ddim": _DDIM, **MODELS}
    for name, model in models.items():
        if model.idea:
            recipe = model.recipe
            column = 2 if recipe.condition else int(recipe.is_latent or recipe.vae is not None)
            taken = [*_CELLS.values(), *((place.column, place.row) for place in places.values())]
            below = 1 + max(row for at, row in taken if at == column)
            column, row = _CELLS.get(name, (column, below))
            places[name] = Place(column, row, model.builds_on, model.idea, model.chapter)
    return places


PLACES = _places()
"""every model and sampler that has a place on the map"""


@styled
def model_map(samples: Mapping[str, Tensor], minutes: Mapping[str, float] | None = None) -> Figure:
    """A box for each model with what it drew, and arrows from the models it builds on.

    Args:
        samples: name, one of PLACES -> ten pictures (10, 1, H, W), floats in [-1, 1] or bytes. Places without pictures
            are left out, and their arrows with them.
        minutes: name -> how long it was trained, with all that it needs.
    """
    shown = {name: PLACES[name] for name in PLACES if name in samples}
    columns = 1 + max(place.column for place in shown.values())
    rows = 1 + max(place.row for place in shown.values())
    width = columns * WIDTH + (columns - 1) * ACROSS + 0.1
    height = HEADING + rows * HEIGHT + (rows - 1) * DOWN + 0.1
    figure, axes = new_figure(width, height, layout="none")
    axes.set(position=(0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], frame_on=False)
    axes.grid(False)
    for column, heading in enumerate(HEADINGS[:columns]):
        axes.text(_left(column) + WIDTH / 2, HEADING / 2 + 0.03, heading, ha="center", va="center", style="italic")
    for name, place in shown.items():
        _box(axes, name, place, samples[name], (minutes or {}).get(name))
        for parent in place.parents:
            if parent in shown:
                _arrow(axes, shown[parent], place)
    return figure


def _left(column: int) -> float:
    return 0.05 + column * (WIDTH + ACROSS)


def _top(row: int) -> float:
    return HEADING + 0.05 + row * (HEIGHT + DOWN)


def _box(axes, name: str, place: Place, pictures: Tensor, minutes: float | None) -> None:
    left, top, colour = _left(place.column), _top(place.row), COLOURS[name]
    box = FancyBboxPatch(
        (left, top), WIDTH, HEIGHT, boxstyle="round,pad=0,rounding_size=0.08", fc="white", ec=colour, lw=2
    )
    axes.add_patch(box)
    words = {"va": "center", "fontsize": LETTERS}
    axes.text(left + 0.1, top + 0.19, name, color=colour, weight="bold", **words)
    axes.text(left + 0.1, top + 0.42, place.idea, **words)
    picture = grid(pictures[: 2 * COLUMNS], columns=COLUMNS)
    wide = WIDTH - 0.2
    high = wide * picture.shape[0] / picture.shape[1]
    extent = (left + 0.1, left + 0.1 + wide, top + 0.6 + high, top + 0.6)
    axes.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=255, extent=extent, aspect="auto", zorder=3)
    foot = top + HEIGHT - 0.17
    axes.text(left + 0.1, foot, f"chapter {place.chapter}", color="#555555", **words)
    if minutes is not None:
        axes.text(left + WIDTH - 0.1, foot, f"{minutes:.0f} min", color="#555555", ha="right", **words)


def _arrow(axes, start: Place, end: Place) -> None:
    """Up or down within a column, sideways between columns."""
    ends = _ends(start, end)
    axes.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=14, lw=1.5, color="#555555"))


def _ends(start: Place, end: Place) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where an arrow begins and ends, on the edges of its two boxes."""
    if start.column == end.column:
        middle, down = _left(start.column) + WIDTH / 2, end.row > start.row
        return (middle, _top(start.row) + HEIGHT * down), (middle, _top(end.row) + HEIGHT * (not down))
    right = end.column > start.column
    return (
        (_left(start.column) + WIDTH * right, _top(start.row) + HEIGHT / 2),
        (_left(end.column) + WIDTH * (not right), _top(end.row) + HEIGHT / 2),
    )
