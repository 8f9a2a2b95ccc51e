"""Frames that the reader moves: a slider over one sprite sheet, with no kernel behind it."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from diffusion_book.system.errors import BookError, positive, whole
from diffusion_book.viz.html import ASLEEP, Html, data_uri, script, to_frames

QUALITY = 35  # of WebP, 0 to 100: noise compresses badly, and a page should stay small

_HANDLER = script("scrubber.js")

_TEMPLATE = """\
<figure data-columns="{columns}" data-captions="{captions}" style="margin:0;max-width:{width}px;color:inherit">
<div style="position:relative;overflow:hidden;width:100%;height:0;padding-bottom:{high}%">
<img src="{source}" alt="{alt}" style="position:absolute;left:{left}%;top:{top}%;width:{sheet_width}%;\
max-width:none;height:auto;margin:0;image-rendering:pixelated">
</div>
<label style="display:flex;gap:0.8em;align-items:center;margin-top:0.4em">
<span>{label}</span>
<input type="range" min="0" max="{last}" value="{start}" autocomplete="off" aria-label="{label}" \
aria-valuetext="{caption}" style="flex:1;min-width:0;height:2em" oninput="{handler}">
<output style="min-width:{caption_width}ch;text-align:right;font-variant-numeric:tabular-nums">{caption}</output>
</label>
{asleep}
</figure>"""


def sprite_sheet(frames: Tensor) -> tuple[Tensor, int]:
    """All frames in one picture, row by row: uint8 (rows * H, columns * W) or with 3 colours, and the number of columns.

    Args:
        frames: (T, 1, H, W) or (T, H, W), in colour (T, H, W, 3), floats in [-1, 1] or bytes.
    """
    frames = to_frames(frames)
    count, height, width, *colours = frames.shape
    columns = max(1, min(count, round(math.sqrt(count * height / width))))  # a sheet about as high as it is wide
    rows = math.ceil(count / columns)
    sheet = torch.zeros(rows * columns, height, width, *colours, dtype=torch.uint8)
    sheet[:count] = frames
    sheet = sheet.reshape(rows, columns, height, width, *colours).transpose(1, 2)  # (rows, H, columns, W)
    return sheet.reshape(rows * height, columns * width, *colours), columns


def scrubber(
    frames: Tensor,
    captions: Sequence[str] | None = None,
    label: str = "step",
    alt: str = "Frames of generated digits",
    scale: float = 3.0,
    start: int = 0,
) -> Html:
    """A slider that moves through frames, in a notebook as on a static page.

    Mouse, touch and arrow keys move it. It needs no kernel, no network and no other file.

    Args:
        frames: (T, 1, H, W) or (T, H, W), floats in [-1, 1] or bytes. For many pictures a frame:
            `torch.stack([grid(pictures) for pictures in steps])`.
        captions: T short texts; default: the frame's number.
        label: stands before the slider.
        alt: what there is to see, for those who do not see it.
        scale: screen pixels a pixel; never wider than the page.
        start: the frame that is shown first.

    Raises:
        BookError: not one caption a frame, or no such `start`.
    """
    frames, scale = to_frames(frames), positive("scale", scale)
    count, height, width = frames.shape[:3]
    captions = [str(number) for number in range(count)] if captions is None else [str(text) for text in captions]
    if len(captions) != count:
        raise BookError(f"{len(captions)} captions for {count} frames: give one a frame")
    if not 0 <= whole("start", start) < count:
        raise BookError(f"frame {start} does not exist: frames are 0 to {count - 1}")
    sheet, columns = sprite_sheet(frames)
    text = _TEMPLATE.format(
        columns=columns,
        captions=html.escape(json.dumps(captions, ensure_ascii=False)),
        width=max(280, round(scale * width)),
        high=100 * height / width,
        source=data_uri(Image.fromarray(sheet.numpy()), quality=QUALITY),
        alt=html.escape(alt),
        left=-100 * (start % columns),
        top=-100 * (start // columns),
        sheet_width=100 * columns,
        label=html.escape(label),
        last=count - 1,
        start=start,
        handler=_HANDLER,
        caption=html.escape(captions[start]),
        caption_width=max(len(caption) for caption in captions),
        asleep=ASLEEP,
    )
    return Html(text, f"{alt} ({count} frames)")
