"""What the book's diagrams are drawn with: boxes, arrows, words and formulas on a small canvas, as SVG.

A diagram is part of the page: its letters are the page's, and its ink is the page's `currentColor`, so that it is right
in the light theme and in the dark one. A canvas is as wide as the page of a phone, and 13 of its units are letters
that can be read there. Coordinates run to the right and down.

Words may hold formulas between dollar signs, with single letters in italics, `_{...}` and `^{...}`: ``noise $x_{k-1}$``.
"""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from PIL import Image
from torch import Tensor

from diffusion_book.viz.grids import to_bytes
from diffusion_book.viz.style import COLOURS, PAPER

WIDTH = 360  # units: on a phone, about as many pixels
LARGEST = 1.35  # pixels a unit where there is room
TEXT, SMALL, FORMULA = 13.0, 12.0, 15.0  # heights of letters, units
SUBSCRIPT = 11.6  # no letter is smaller
SERIF = "'STIX Two Text','Times New Roman',Times,serif"

# The same things in the same colours, those of the book's charts.
PICTURE = COLOURS["data"]
NETWORK = COLOURS["ddpm"]
NOISE = "#8A8A86"
LATENT = COLOURS["ldm"]
AUTOENCODER = COLOURS["vae"]
CLASS = COLOURS["ldm-concat"]
CROSS_ATTENTION = COLOURS["ldm-cross-attention"]
DDPM, DDIM = COLOURS["ddpm"], COLOURS["ddim"]
FLOW, REFLOW = COLOURS["rf"], COLOURS["rf-reflow"]

HAT = "\u0302"  # a combining circumflex

CARD = f"color:{PICTURE};background:{PAPER};font-family:sans-serif;"
SAFE = " =:;,/()!*~-_.'"  # in a `data:` address
_BECOME_PART = f"this.outerHTML=decodeURIComponent(this.src.slice(this.src.indexOf(',')+1)).replace('{CARD}','')"

Point = tuple[float, float]


@dataclass(frozen=True)
class Diagram:
    """A drawing, as the value of a cell.

    Attributes:
        svg: the drawing.
        alt: what there is to see, for those who do not see it.
    """

    svg: str
    alt: str

    def _repr_html_(self) -> str:
        """The drawing as a picture on the book's paper, which turns itself into a part of the page.

        It stays a picture where a page runs no scripts: in a notebook that was executed elsewhere, until the reader runs it.
        """
        still = self.svg.replace('style="', f'style="{CARD}', 1)
        source = f"data:image/svg+xml,{quote(still, safe=SAFE)}"
        alt, width = html.escape(self.alt), round(LARGEST * WIDTH)
        return f'<img alt="{alt}" width="{width}" src="{source}" onload="{html.escape(_BECOME_PART)}"/>'

    def __repr__(self) -> str:
        return f"Diagram: {self.alt}"


def runs(words: str) -> list[tuple[str, bool | None, int]]:
    """Words as pieces of one kind: (letters, in italics, level).

    Italics are None outside of formulas; the level is -1 for subscripts and 1 for superscripts.
    """
    pieces: list[tuple[str, bool | None, int]] = []
    for number, part in enumerate(words.split("$")):
        if number % 2 == 0:
            pieces.append((part, None, 0))
            continue
        for mark, braced, single, plain in re.findall(r"([_^])(?:\{([^}]*)\}|(.))|([^_^]+)", part):
            level = {"_": -1, "^": 1, "": 0}[mark]
            # Letters are variables, in italics; digits, brackets and signs stand upright.
            letters = re.findall(r"[^\W\d_]\u0302?|[\W\d_]", (plain or braced or single).replace("-", "−"))
            pieces += [(letter, letter[0].isalpha(), level) for letter in letters]
    joined: list[tuple[str, bool | None, int]] = []
    for letters, italic, level in pieces:
        if joined and joined[-1][1:] == (italic, level):
            joined[-1] = (joined[-1][0] + letters, italic, level)
        elif letters:
            joined.append((letters, italic, level))
    return joined


def to_html(words: str) -> str:
    """The same for a caption."""
    parts = []
    for letters, italic, level in runs(words):
        text = html.escape(letters)
        text = f"<i>{text}</i>" if italic else text
        parts.append({-1: f"<sub>{text}</sub>", 0: text, 1: f"<sup>{text}</sup>"}[level])
    return "".join(parts)


def ink(colour: str | None, part: int = 68) -> str:
    """A colour between the given one and the page's own ink: darker on light pages, lighter on dark ones.

    Args:
        part: of the given colour, percent.
    """
    return f"color-mix(in srgb,{colour} {part}%,currentColor)" if colour else "currentColor"


class Canvas:
    """Collects the parts of a diagram.

    Args:
        height: units; the width is that of a phone.
    """

    def __init__(self, height: float) -> None:
        self.width, self.height = WIDTH, height
        self.parts: list[str] = []

    def finish(self, alt: str) -> Diagram:
        """The diagram; `alt` says what there is to see."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height:g}" role="img" '
            f'aria-label="{html.escape(alt)}" fill="none" stroke-linecap="round" stroke-linejoin="round" '
            f'style="display:block;width:100%;max-width:{LARGEST * self.width:g}px;height:auto">'
        )
        return Diagram("\n".join([head, *self.parts, "</svg>"]), alt)

    # Words

    def text(
        self,
        x: float,
        y: float,
        words: str,
        colour: str | None = None,
        anchor: str = "middle",
        size: float = TEXT,
        bold: bool = False,
    ) -> None:
        """Words around the height y, in lines where they hold newlines.

        Args:
            anchor: which part of each line stands at x: "start", "middle" or "end".
        """
        lines = words.split("\n")
        leading = 1.25 * size
        for number, line in enumerate(lines):
            # The middle of small letters lies about a third of the height above the line they stand on.
            base = y + (number - (len(lines) - 1) / 2) * leading + 0.34 * size
            self._line(x, base, line, colour, anchor, size, bold)

    def _line(self, x, y, words, colour, anchor, size, bold) -> None:
        spans, shifted = [], 0.0
        for letters, italic, level in runs(words):
            formula = italic is not None
            full = size * FORMULA / TEXT if formula else size
            height = max(SUBSCRIPT, 0.75 * full) if level else full
            shift = {-1: 0.22, 0: 0.0, 1: -0.38}[level] * full
            style = f' font-family="{SERIF}"' if formula else ""
            style += ' font-style="italic"' if italic else ""
            move = f' dy="{shift - shifted:.2f}"' if shift != shifted else ""
            shifted = shift
            letters = html.escape(letters)
            if HAT in letters:  # few fonts join it with its letter: it is set above, and the next letter moved back
                before, _, letters = letters.partition(HAT)
                spans.append(f'<tspan font-size="{height:.1f}"{style}{move}>{before}</tspan>')
                spans.append(f'<tspan font-size="{height:.1f}"{style} dx="-0.38em">ˆ</tspan>')
                move = f' dx="{0.05 * height:.2f}"'
            spans.append(f'<tspan font-size="{height:.1f}"{style}{move}>{letters}</tspan>' if letters else "")
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" xml:space="preserve" font-size="{size:g}"{weight} '
            f'fill="{colour or "currentColor"}" style="fill:{ink(colour, 50)}">{"".join(spans)}</text>'
        )

    # Shapes

    def shape(
        self,
        element: str,
        colour: str | None = None,
        fill: float = 0.0,
        width: float = 1.5,
        dashed: bool = False,
        opacity: float = 1.0,
    ) -> None:
        """An SVG element, such as 'circle cx="1" cy="2" r="3"', with its outline in this colour.

        Args:
            fill: how much of the colour covers the inside, 0 to 1.
            width: of the outline; 0 = none.
        """
        stroke = f'stroke="{colour or "currentColor"}" stroke-width="{width:g}"' if width else ""
        styles = [f"stroke:{ink(colour)}"] if width else []
        if fill:
            stroke += f' fill="{colour or "currentColor"}" fill-opacity="{fill:g}"'
            styles.append(f"fill:{ink(colour)}")
        if dashed:
            stroke += ' stroke-dasharray="4 4"'
        if opacity < 1:
            stroke += f' opacity="{opacity:g}"'
        self.parts.append(f'<{element} {stroke} style="{";".join(styles)}"/>')

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        words: str = "",
        colour: str | None = None,
        fill: float = 0.14,
        dashed: bool = False,
        size: float = TEXT,
        radius: float = 6,
    ) -> None:
        """A box with its top left corner at (x, y), and words in its middle."""
        element = f'rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius:g}"'
        self.shape(element, colour, fill, dashed=dashed)
        if words:
            self.text(x + width / 2, y + height / 2, words, size=size)

    def funnel(
        self, x: float, y: float, width: float, left: float, right: float, words: str, colour: str, dashed: bool = False
    ) -> None:
        """A box around the height y whose left and right sides have these heights: an encoder or a decoder."""
        points = [(x, y - left / 2), (x + width, y - right / 2), (x + width, y + right / 2), (x, y + left / 2)]
        self.shape(f'polygon points="{_listed(points)}"', colour, 0.14, dashed=dashed)
        self.text(x + width / 2, y, words)

    def circle(self, x: float, y: float, radius: float, words: str = "", colour: str | None = None, fill: float = 0.14):
        """A circle around (x, y), and words in it."""
        self.shape(f'circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"', colour, fill)
        if words:
            self.text(x, y, words)

    def dots(self, points: Sequence[Point], colour: str | None = None, size: float = 2.5, opacity: float = 0.7) -> None:
        """Many dots in one go."""
        path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
        self.shape(f'path d="{path}"', colour, width=size, opacity=opacity)

    def line(
        self,
        points: Sequence[Point],
        colour: str | None = None,
        width: float = 1.5,
        dashed: bool = False,
        opacity: float = 1.0,
        fill: float = 0.0,
    ) -> None:
        """A line through the points."""
        self.shape(f'polyline points="{_listed(points)}"', colour, fill, width, dashed, opacity)

    def arrow(
        self,
        points: Sequence[Point],
        colour: str | None = None,
        bend: float = 0.0,
        width: float = 1.5,
        dashed: bool = False,
    ) -> None:
        """An arrow along the points.

        Args:
            bend: of an arrow between two points: how far its middle lies to the left of the straight way, units.
        """
        points = list(points)
        if bend:
            points = _arc(points[0], points[-1], bend)
        (x0, y0), (x1, y1) = points[-2:]
        length = math.dist(points[-2], points[-1])
        along, head = ((x1 - x0) / length, (y1 - y0) / length), 4 + 2 * width
        back = (x1 - head * along[0], y1 - head * along[1])
        side = 0.42 * head
        tip = [
            (x1, y1),
            (back[0] - side * along[1], back[1] + side * along[0]),
            (back[0] + side * along[1], back[1] - side * along[0]),
        ]
        shaft = [point for point in points[:-1] if math.dist(point, points[-1]) > head] or points[:1]
        self.line([*shaft, back], colour, width, dashed)
        self.shape(f'polygon points="{_listed(tip)}"', colour, 1, width=0)

    def brace(self, x: float, top: float, bottom: float, words: str = "", right: bool = True) -> None:
        """A curly brace from top to bottom, open to the left (right=True) or to the right, and words at its point."""
        d, middle, turn = (6 if right else -6), (top + bottom) / 2, min(6, (bottom - top) / 4)
        path = (
            f"M{x:.1f} {top:.1f}q{d / 2} 0 {d / 2} {turn}V{middle - turn:.1f}q0 {turn} {d / 2} {turn}"
            f"q{-d / 2} 0 {-d / 2} {turn}V{bottom - turn:.1f}q0 {turn} {-d / 2} {turn}"
        )
        self.shape(f'path d="{path}"', width=1.2)
        if words:
            self.text(x + 1.8 * d, middle, words, anchor="start" if right else "end")

    def plus(self, x: float, y: float, sign: str = "+") -> None:
        """A small circle with a sign: two things are added ("+") or multiplied ("×")."""
        self.shape(f'circle cx="{x:.1f}" cy="{y:.1f}" r="8"', None, 0)
        if sign == "+":
            self.line([(x - 4.5, y), (x + 4.5, y)])
            self.line([(x, y - 4.5), (x, y + 4.5)])
        else:
            self.line([(x - 3.2, y - 3.2), (x + 3.2, y + 3.2)])
            self.line([(x - 3.2, y + 3.2), (x + 3.2, y - 3.2)])

    def picture(self, x: float, y: float, size: float, picture: Tensor, colour: str | None = None) -> None:
        """A square picture (H, W), floats in [-1, 1] or bytes, with its top left corner at (x, y)."""
        buffer = io.BytesIO()
        Image.fromarray(to_bytes(picture).numpy()).save(buffer, "PNG", optimize=True)
        source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        self.parts.append(
            f'<image x="{x:.1f}" y="{y:.1f}" width="{size:g}" height="{size:g}" href="{source}" '
            'preserveAspectRatio="none" style="image-rendering:pixelated"/>'
        )
        self.box(x, y, size, size, colour=colour or NOISE, fill=0, radius=1)

    def sheets(self, x: float, y: float, size: float, count: int, colour: str, cells: int = 4, step: float = 6) -> None:
        """Channels of a small map, one behind the other: the front one's top left corner at (x, y)."""
        for number in reversed(range(count)):
            left, top = x + number * step, y - number * step
            paper = f'rect x="{left:.1f}" y="{top:.1f}" width="{size:g}" height="{size:g}"'
            self.parts.append(f'<{paper} style="fill:var(--pst-color-background,var(--jp-layout-color0,Canvas))"/>')
            self.shape(paper, colour, 0.2, width=1.2)
            if number == 0:
                for line in range(1, cells):
                    along = line * size / cells
                    self.line([(left + along, top), (left + along, top + size)], colour, 0.7)
                    self.line([(left, top + along), (left + size, top + along)], colour, 0.7)


def _listed(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _arc(start: Point, end: Point, bend: float, steps: int = 24) -> list[Point]:
    """Points of a curve whose middle lies `bend` to the left of the straight line from start to end."""
    (x0, y0), (x1, y1) = start, end
    length = math.dist(start, end)
    x2 = (x0 + x1) / 2 + 2 * bend * (y1 - y0) / length  # the control point of a quadratic curve
    y2 = (y0 + y1) / 2 - 2 * bend * (x1 - x0) / length
    along = [step / steps for step in range(steps + 1)]
    return [
        ((1 - u) ** 2 * x0 + 2 * u * (1 - u) * x2 + u * u * x1, (1 - u) ** 2 * y0 + 2 * u * (1 - u) * y2 + u * u * y1)
        for u in along
    ]
