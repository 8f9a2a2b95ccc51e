"""Figures with a number and a caption, the same in a notebook and on the site."""

from __future__ import annotations

import html
import io
import re

from matplotlib.figure import Figure
from PIL import Image

from diffusion_book.viz.diagrams.kit import Diagram, to_html
from diffusion_book.viz.html import Html, data_uri

# Pixels of a picture, from which on a phone shows it at four fifths of its size and scrolls it: see book.css.
WIDE = 700
WIDE_WITH_LETTERS = 430  # narrower ones may shrink to a phone's width, and their letters can still be read
# Outside of JupyterLab's and the site's own rules, so that it looks the same in both.
CAPTION = "margin:0.6em 0 0;max-width:42rem;font:inherit;font-size:0.9em;color:inherit;text-align:left"


def show(picture: Diagram | Html | Figure, number: str, caption: str, alt: str | None = None) -> Html:
    """A picture with its number and caption below it, as the value of a cell.

    Args:
        picture: a diagram, a control such as a scrubber, or a chart.
        number: chapter and figure, such as "1.3". The figure can be linked to as `#figure-1-3`.
        caption: what to see in it. Formulas stand between dollar signs: ``$x_{k-1}$``.
        alt: for those who do not see it; None takes the picture's own words.
    """
    words = f"<b>Figure {html.escape(number)}.</b> {to_html(caption)}"
    caption_html = f'<figcaption style="{CAPTION}">{words}</figcaption>'
    anchor = f'id="figure-{number.replace(".", "-")}"'
    # A control is a figure already; one that draws in the page has a caption of its own, and becomes a part of this one.
    if isinstance(picture, Html) and picture.text.startswith("<figure") and "<figcaption" not in picture.text:
        text = picture.text.replace("<figure", f"<figure {anchor}", 1).rstrip().removesuffix("</figure>")
        text += f"{caption_html}\n</figure>"
    else:
        text = f'<figure {anchor} style="margin:0">\n{_inner(picture, alt)}\n{caption_html}\n</figure>'
    return Html(text, f"Figure {number}. {re.sub('[${}]', '', caption)}")


def _inner(picture: Diagram | Html | Figure, alt: str | None) -> str:
    """The HTML of a picture without its caption."""
    if isinstance(picture, Diagram):
        if alt:
            picture = Diagram(picture.svg.replace(html.escape(picture.alt), html.escape(alt)), alt)
        return picture._repr_html_()
    if isinstance(picture, Html):
        return picture.text
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png")
    image = Image.open(buffer).convert("RGB")
    source = data_uri(image, lossless=True)
    letters = repr(picture) != "A grid of pictures"
    wide = ' class="wide"' if image.width > (WIDE_WITH_LETTERS if letters else WIDE) else ""
    return (
        f'<div style="overflow-x:auto"><img{wide} src="{source}" alt="{html.escape(alt or repr(picture))}" width="{image.width}" '
        f'height="{image.height}" loading="lazy" style="max-width:100%;height:auto"></div>'
    )
