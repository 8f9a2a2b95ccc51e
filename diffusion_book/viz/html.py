"""Self-contained pieces of HTML that a notebook shows and a static page keeps."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from diffusion_book.system.errors import BookError
from diffusion_book.viz.grids import to_bytes


@dataclass(frozen=True)
class Html:
    """HTML as the value of a cell.

    Attributes:
        text: the HTML.
        summary: what a reader sees where HTML cannot be shown.
    """

    text: str
    summary: str

    def _repr_html_(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.summary


ASLEEP = (
    '<div style="content-visibility:hidden">This notebook is not trusted, so JupyterLab holds the control still: '
    "run the cell to wake it.</div>"
)
"""What stands below a control that JupyterLab has put to sleep.

In a notebook that it does not trust JupyterLab takes handlers out of stored outputs, and every property of style that
it does not know. `aspect-ratio` is one of these, `content-visibility` another: where handlers work this line is hidden.
"""


def to_frames(frames: Tensor) -> Tensor:
    """Frames as bytes (T, H, W), from (T, 1, H, W) or (T, H, W); in colour as (T, H, W, 3). Floats in [-1, 1] or bytes.

    Raises:
        BookError: another shape.
    """
    try:
        frames = torch.as_tensor(frames)
    except (TypeError, ValueError, RuntimeError):
        raise BookError(f"frames must be a tensor (T, 1, H, W) or (T, H, W), not {type(frames).__name__}") from None
    if frames.ndim == 4 and frames.shape[1] == 1:
        frames = frames[:, 0]
    in_colour = frames.ndim == 4 and frames.shape[-1] == 3
    if (frames.ndim != 3 and not in_colour) or frames.numel() == 0:
        raise BookError(f"frames must be (T, 1, H, W) or (T, H, W), not {tuple(frames.shape)}")
    return to_bytes(frames)


def data_uri(image: Image.Image, **options) -> str:
    """A picture as a WebP `data:` address, which needs no file beside the page."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", method=6, **options)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def script(name: str) -> str:
    """A `.js` file of this folder as the value of an attribute such as `oninput`, on one line.

    Comments in it stand on lines of their own, and statements end with a semicolon.
    """
    lines = map(str.strip, Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines())
    return html.escape(" ".join(line for line in lines if not line.startswith("//")))
