"""Maps of what a model draws beside what is real, and the ways of single samples across such a map."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from torch import Tensor

from diffusion_book.data import CROP_SIZE, quantise
from diffusion_book.system.errors import BookError
from diffusion_book.viz.grids import channels_last
from diffusion_book.viz.html import ASLEEP, Html, data_uri, script
from diffusion_book.viz.style import COLOURS, DIGIT_COLOURS, PAPER, colour_of_label, new_figure, styled

DIGITS = tuple("0123456789")
MARKERS = "ox+^svD*P"  # the first, for what is real, is a dot that others can lie on
QUALITY = 40  # of WebP
SIDE = 440  # screen pixels of a map on the page of ways
MARGIN = 0.04  # of a map, around its outermost points

MEANING = (
    "UMAP keeps neighbours together. How far apart two groups lie, how large and how dense they are, and the axes "
    "mean nothing."
)


def pixels(images: Tensor) -> Tensor:
    """Pictures (N, C, H, W), floats in [-1, 1] or bytes, as points: (N, C * H * W) in [-1, 1], rounded to bytes."""
    images = images if images.dtype == torch.uint8 else quantise(images)
    return (images.float() / 127.5 - 1).flatten(1).cpu()


@styled
def plot_distributions(
    maps: dict[str, dict[str, Tensor]],
    labels: dict[str, Tensor],
    colours: dict[str, str] = COLOURS,
    names: Sequence[str] = DIGITS,
) -> Figure:
    """Several sets of pictures on one map, or on several: at the left coloured by set, at the right by digit or class.

    Args:
        maps: what was compared, such as "pixels" -> set -> places (N, 2), as `JointMap.places` has them. The first set
            is the real one; it is drawn with dots, below the others.
        labels: set -> digits (N,), 0 to 9, or classes.
        colours: of the sets; a set whose name begins with that of a colour takes it.
        names: of the classes.

    Raises:
        BookError: there are no maps, they are of different sets, or there are too many sets to tell apart.
    """
    sets, kind = list(labels), kind_of(names)
    if not maps or not sets or any(list(places) != sets for places in maps.values()):
        raise BookError("plot_distributions needs at least one map, and each map and the labels with the same sets")
    if len(sets) > len(MARKERS):
        raise BookError(f"{len(sets)} sets on a map cannot be told apart: take at most {len(MARKERS)}")
    figure, axes = new_figure(11.6, 4.9 * len(maps) + 0.5, len(maps), 2, squeeze=False)
    paint = {name: colour_of_set(name, number, colours) for number, name in enumerate(sets)}
    for row, (space, places) in zip(axes, maps.items(), strict=True):
        for axis, by in zip(row, ("by set", f"by {kind}"), strict=True):
            for number, name in enumerate(sets):
                by_digit = [colour_of_label(label) for label in labels[name].tolist()]
                scatter(axis, places[name], paint[name] if by == "by set" else by_digit, number)
            axis.set(title=f"{space}, {by}", xticks=[], yticks=[])
    figure.legend(handles=set_handles(labels, paint), loc="outside right upper", handletextpad=0.3)
    figure.legend(handles=digit_handles(labels, names), loc="outside right lower", title=counts_title(sets, kind))
    figure.supxlabel(MEANING, x=0.01, ha="left", fontsize=10)  # beside the legend, not below it
    return figure


@styled
def plot_multiples(places: dict[str, Tensor], labels: dict[str, Tensor], columns: int = 3) -> Figure:
    """One map, drawn once for each set but the first: its points, coloured by digit, over those of the first in grey.

    Args:
        places: set -> places (N, 2), as `JointMap.places` has them. The first set is the real one.
        labels: set -> digits (N,), 0 to 9.
        columns: panels beside each other.

    Raises:
        BookError: fewer than two sets, or not the same sets in both.
    """
    if len(places) < 2 or list(places) != list(labels):
        raise BookError("plot_multiples needs the real set and at least one other, and labels for the same sets")
    real, *others = places
    columns = min(columns, len(others))
    rows = -(-len(others) // columns)
    figure, axes = new_figure(2.9 * columns, 3.0 * rows + 0.4, rows, columns, squeeze=False)
    for axis, name in zip(axes.flat, others, strict=False):
        axis.scatter(*places[real].T, c="#C4C4C0", s=8, linewidths=0)
        axis.scatter(*places[name].T, c=[colour_of_label(digit) for digit in labels[name].tolist()], s=9, linewidths=0)
        axis.set(title=name, xticks=[], yticks=[])
    for axis in axes.flat[len(others) :]:
        axis.set_visible(False)
    digits = [
        Line2D([], [], color=colour, marker="o", linestyle="", markersize=6, label=f"{digit}")
        for digit, colour in enumerate(DIGIT_COLOURS)
    ]
    figure.legend(handles=digits, loc="outside upper center", ncols=10, handletextpad=0.1, columnspacing=0.9)
    return figure


def scatter(axis, places: Tensor, colours: str | list[str], number: int, size: float = 12.0) -> None:
    """The points of a set; `number` 0 is the real one."""
    size = min(size, max(size / 3, size * 1500 / max(1, len(places))))  # the more of them, the smaller
    if number == 0:
        axis.scatter(*places.T, c=colours, s=size, marker=MARKERS[0], alpha=0.5, linewidths=0)
    else:
        marker = MARKERS[number]
        axis.scatter(*places.T, c=colours, s=size, marker=marker, alpha=0.6, linewidths=0.6 if marker in "x+" else 0)


def colour_of_set(name: str, number: int, colours: dict[str, str] = COLOURS) -> str:
    """The colour of a set: its own, or that of the longest name that it begins with; the first is the data's."""
    if name in colours:
        return colours[name]
    if number == 0:
        return COLOURS["data"]
    known = max((key for key in colours if name.startswith(key)), key=len, default=None)
    return colours[known] if known else DIGIT_COLOURS[number % 10]


def kind_of(names: Sequence[str]) -> str:
    """What the classes of these names are, in a word."""
    return "digit" if tuple(names) == DIGITS else "class"


def counts(labels: Tensor, number: int = 10) -> list[int]:
    """How many there are of each digit, 0 to 9, or of each of so many classes."""
    return torch.bincount(labels, minlength=number).tolist()


def set_handles(labels: dict[str, Tensor], paint: dict[str, str]) -> list[Line2D]:
    """Marker, colour and number of pictures of every set."""
    return [
        Line2D([], [], color=paint[name], marker=marker, linestyle="", markersize=7, label=f"{name} ({len(each):,})")
        for (name, each), marker in zip(labels.items(), MARKERS, strict=False)
    ]


def digit_handles(labels: dict[str, Tensor], names: Sequence[str] = DIGITS) -> list[Line2D]:
    """The colour of every digit or class and, of at most three sets, how many they have of it."""
    columns = [counts(each, len(names)) for each in labels.values()] if len(labels) <= 3 else []
    texts = [
        f"{name}:  {' / '.join(str(column[number]) for column in columns)}".strip(": ")
        for number, name in enumerate(names)
    ]
    return [
        Line2D([], [], color=colour_of_label(number), marker="s", linestyle="", markersize=7, label=text)
        for number, text in enumerate(texts)
    ]


def counts_title(sets: Sequence[str], kind: str = "digit") -> str:
    """What stands above the digits of the legend."""
    return kind if len(sets) > 3 else f"{kind}:  " + " / ".join(name.split(" ")[0] for name in sets)


# Ways across a map


_HANDLER = script("ways.js")
_PLAY = script("play.js")

_TEMPLATE = """\
<figure data-ways="{data}" oninput="{handler}" style="margin:0;max-width:{width}px;color:inherit;--sheet:url({sheet})">
<div style="display:flex;flex-wrap:wrap;gap:1em">{maps}</div>
<div style="display:flex;flex-wrap:wrap;gap:0.5em;margin-top:0.8em">{digits}</div>
<div style="display:flex;flex-wrap:wrap;gap:0.8em;align-items:center;margin-top:0.6em">
<button type="button" onclick="{play}" style="font:inherit;min-width:4.5em">Play</button>
<input type="range" min="0" max="{last}" value="{last}" autocomplete="off" aria-label="step from noise to digit" \
aria-valuetext="{caption}" style="flex:1;min-width:8em;height:2em">
<output style="min-width:min({caption_width}ch,100%);font-variant-numeric:tabular-nums">{caption}</output>
</div>
{asleep}
<figcaption style="font-size:0.9em;margin-top:0.6em">{note}</figcaption>
</figure>"""

_MAP = """\
<div style="flex:1;min-width:min(280px,100%)"><div>{title}</div>
<div data-map style="position:relative;height:0;padding-bottom:100%;overflow:hidden">
<img src="{source}" alt="{alt}" style="position:absolute;width:100%;height:100%;margin:0;max-width:none">
<svg viewBox="0 0 100 100" aria-hidden="true" style="position:absolute;width:100%;height:100%">{lines}</svg>
{thumbs}</div></div>"""

_LINE = '<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="0.6" stroke-linejoin="round"/>'

_DIGIT = (
    '<span data-way="{number}" role="img" aria-label="{alt}" style="{place}width:{side}px;height:{side}px;'
    "border:2px solid {colour};box-sizing:content-box;background-image:var(--sheet);background-size:{wide}% {high}%;"
    'background-origin:content-box;background-clip:content-box;background-position:100% {top}%;image-rendering:pixelated"></span>'
)

NOTE = (
    "Every way shows what the model takes its finished picture to be, at times t from 1 (noise) to 0 (the picture); "
    "colours are those of the finished digits. The map was made of finished pictures alone: a prediction that is unlike "
    "all of them is still put beside those that it is nearest to. " + MEANING
)


def ways_across(
    maps: dict[str, dict[str, Tensor]],
    ways: dict[str, Tensor],
    stills: Tensor,
    labels: dict[str, Tensor],
    digits: Tensor,
    captions: Sequence[str],
    names: Sequence[str] = DIGITS,
) -> Html:
    """Samples on their way across one map or several: a slider and a button move them, with the picture at each point.

    It needs no kernel, no network and no other file.

    Args:
        maps: as in `plot_distributions`.
        ways: what was compared -> places (K, T, 2) on that map.
        stills: the pictures at these places, (K, T, 1 or 3, H, W), floats in [-1, 1] or bytes.
        labels: set -> digits (N,), 0 to 9, or classes.
        digits: what the finished pictures show, (K,), 0 to 9, or their classes.
        captions: T short texts.
        names: of the classes.

    Raises:
        BookError: there are no ways, or they do not fit together.
    """
    count, frames = stills.shape[:2]
    fits = [each.shape == (count, frames, 2) for each in ways.values()]
    if not ways or list(ways) != list(maps) or not all(fits) or len(captions) != frames or len(digits) != count:
        raise BookError("ways, stills, digits and captions do not fit together: see `ways_across` for their shapes")
    if count < 1 or frames < 2:
        raise BookError(f"{count} ways of {frames} points: there must be at least 1 way of 2 points")
    painted = [colour_of_label(digit) for digit in digits.tolist()]
    article = "a " if kind_of(names) == "digit" else ""
    called = [f"sample {number}, {article}{names[digit]}" for number, digit in enumerate(digits.tolist())]

    def digit(number: int, place: str, side: int) -> str:
        top = 100 * number / max(1, count - 1)
        return _DIGIT.format(
            number=number, alt=html.escape(called[number]), place=place, side=side, colour=painted[number],
            wide=100 * frames, high=100 * count, top=f"{top:g}",
        )  # fmt: skip

    panels, places = [], []
    for space, sets in maps.items():
        picture, box = backdrop(sets, labels, ways[space])
        at = percent(ways[space], box)  # (K, T, 2)
        places.append(at)
        lines = [
            _LINE.format(points=" ".join(f"{x},{y}" for x, y in way), colour=colour)
            for way, colour in zip(at, painted, strict=True)
        ]
        ends = [f"position:absolute;left:{way[-1][0]}%;top:{way[-1][1]}%;transform:translate(-50%,-50%);" for way in at]
        thumbs = [digit(number, end, CROP_SIZE) for number, end in enumerate(ends)]
        alt = f"Map of {space}: dots are {next(iter(labels))}, crosses are drawn, coloured by {kind_of(names)}"
        panels.append(
            _MAP.format(
                title=html.escape(space),
                source=data_uri(picture, quality=70),
                alt=html.escape(alt),
                lines="".join(lines),
                thumbs="".join(thumbs),
            )
        )
    rows = stills if stills.dtype == torch.uint8 else quantise(stills)  # (K, T, C, H, W)
    sheet = channels_last(rows.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2))  # (C, K, H, T, W) -> (K * H, T * W)
    captions, note = [str(caption) for caption in captions], NOTE
    if kind_of(names) == "class":
        note = note.replace("colours are those of the finished digits", "colours are those of their classes")
    text = _TEMPLATE.format(
        data=html.escape(json.dumps({"maps": places, "captions": captions}, ensure_ascii=False, separators=(",", ":"))),
        asleep=ASLEEP,
        handler=_HANDLER,
        play=_PLAY,
        width=(SIDE + 16) * len(panels),
        sheet=data_uri(Image.fromarray(sheet.cpu().contiguous().numpy()), quality=QUALITY),
        maps="".join(panels),
        digits="".join(digit(number, "", 2 * CROP_SIZE) for number in range(count)),
        last=frames - 1,
        caption=html.escape(captions[-1]),
        caption_width=max(len(caption) for caption in captions),
        note=html.escape(note),
    )
    return Html(text, f"{count} samples on their way across a map ({frames} frames)")


@styled
def backdrop(
    sets: dict[str, Tensor], labels: dict[str, Tensor], ways: Tensor
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """A map as a square picture without axes, and its box: left, bottom, width and height in the map's own units."""
    everything = torch.cat([*sets.values(), ways.flatten(0, 1)])
    low, high = everything.min(dim=0).values, everything.max(dim=0).values
    span = (high - low).clamp(min=1e-6)
    left, bottom = (low - MARGIN * span).tolist()
    width, height = ((1 + 2 * MARGIN) * span).tolist()
    figure, axis = new_figure(SIDE / 50, SIDE / 50, layout="none")  # two pixels a screen pixel
    for number, (name, places) in enumerate(sets.items()):
        scatter(axis, places, [colour_of_label(label) for label in labels[name].tolist()], number, size=24.0)
    axis.set(xlim=(left, left + width), ylim=(bottom, bottom + height), position=(0, 0, 1, 1))
    axis.axis("off")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # not savefig, which would cut the margins off
    picture = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")
    return Image.blend(picture, Image.new("RGB", picture.size, PAPER), 0.15), (
        left,
        bottom,
        width,
        height,
    )


def percent(places: Tensor, box: tuple[float, float, float, float]) -> list:
    """Places (..., 2) as lists of per cent of a box, from its left and from its top."""
    left, bottom, width, height = box
    right = (places[..., 0] - left) / width
    down = 1 - (places[..., 1] - bottom) / height
    return [[[round(x, 2), round(y, 2)] for x, y in way] for way in (100 * torch.stack([right, down], dim=-1)).tolist()]


def page(control: Html, title: str) -> str:
    """A whole HTML page with one control on it, which asks for nothing outside itself."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n"
        "<style>body{margin:1.5em auto;max-width:940px;padding:0 1em;background:#F7F7F5;color:#222;"
        "font:16px/1.45 sans-serif}h1{font-size:1.3em}</style>\n"
        f"</head>\n<body>\n<h1>{html.escape(title)}</h1>\n{control.text}\n</body>\n</html>\n"
    )
