"""The map of the models: what each draws, and which grew out of which."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor

from diffusion_book.models.recipes import MODELS, RECIPES, Model
from diffusion_book.viz.grids import grid
from diffusion_book.viz.style import COLOURS, new_figure, styled

WIDTH, HEIGHT = 2.05, 1.6  # inches of a box
ACROSS, DOWN = 0.35, 0.35  # inches between boxes
HEADING = 0.35  # inches above each column
COLUMNS = 5  # pictures a row in a box


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


HEADINGS = ("diffusion in pixels", "in latents", "straight paths", "straight paths in latents")

_DDIM = Model(RECIPES["ddpm"], 2, COLOURS["ddim"], "same weights, fewer steps", ("ddpm",))  # a sampler


def _places() -> dict[str, Place]:
    """Models with an idea, in columns by path and space; within each in the order of the book."""
    places: dict[str, Place] = {}
    models = {"ddpm": MODELS["ddpm"], "ddim": _DDIM, **MODELS}
    for name, model in models.items():
        if model.idea:
            recipe = model.recipe
            column = 2 * recipe.is_flow + (recipe.is_latent or recipe.vae is not None)
            row = sum(place.column == column for place in places.values())
            places[name] = Place(column, row, model.builds_on, model.idea, model.chapter)
    return places


PLACES = _places()
"""every model and sampler that has a place on the map"""


@styled
def model_map(samples: dict[str, Tensor]) -> Figure:
    """A box for each model with what it drew, and arrows from the models it builds on.

    Args:
        samples: name, one of PLACES -> ten pictures (10, 1, H, W), floats in [-1, 1] or bytes. Places without pictures
            are left out, and their arrows with them.
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
        _box(axes, name, place, samples[name])
        for parent in place.parents:
            if parent in shown:
                _arrow(axes, shown[parent], place)
    return figure


def _left(column: int) -> float:
    return 0.05 + column * (WIDTH + ACROSS)


def _top(row: int) -> float:
    return HEADING + 0.05 + row * (HEIGHT + DOWN)


def _box(axes, name: str, place: Place, pictures: Tensor) -> None:
    left, top, colour = _left(place.column), _top(place.row), COLOURS[name]
    box = FancyBboxPatch(
        (left, top), WIDTH, HEIGHT, boxstyle="round,pad=0,rounding_size=0.08", fc="white", ec=colour, lw=2
    )
    axes.add_patch(box)
    size = 10.5 if len(name) < 18 else 9  # the longest name must fit
    axes.text(left + 0.1, top + 0.19, name, color=colour, weight="bold", va="center", fontsize=size)
    axes.text(left + 0.1, top + 0.42, place.idea, va="center", fontsize=9)
    picture = grid(pictures[: 2 * COLUMNS], columns=COLUMNS)
    wide = WIDTH - 0.2
    high = wide * picture.shape[0] / picture.shape[1]
    extent = (left + 0.1, left + 0.1 + wide, top + 0.6 + high, top + 0.6)
    note = {"ha": "right", "va": "center", "fontsize": 8.5, "color": "#555555"}
    axes.text(left + WIDTH - 0.1, top + HEIGHT - 0.12, f"chapter {place.chapter}", **note)
    axes.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=255, extent=extent, aspect="auto", zorder=3)


def _arrow(axes, start: Place, end: Place) -> None:
    """Down within a column, sideways between columns."""
    if start.column == end.column:
        middle = _left(start.column) + WIDTH / 2
        ends = (middle, _top(start.row) + HEIGHT), (middle, _top(end.row))
    else:
        ends = (
            (_left(start.column) + WIDTH, _top(start.row) + HEIGHT / 2),
            (_left(end.column), _top(end.row) + HEIGHT / 2),
        )
    axes.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=14, lw=1.5, color="#555555"))
