"""Frames that move by themselves."""

from __future__ import annotations

import html
from pathlib import Path

from PIL import Image
from torch import Tensor

from diffusion_book.system.errors import BookError, positive, whole
from diffusion_book.system.files import write_whole
from diffusion_book.viz.html import Html, data_uri, to_frames

QUALITY = 35  # of WebP, 0 to 100: noise compresses badly, and nobody looks at it twice
HOUR = 3_600_000  # milliseconds; files cannot tell of much longer times
HOLD = 1500  # milliseconds that the last frame stays before the loop starts again


def animate(
    frames: Tensor, milliseconds: int = 60, scale: float = 3.0, alt: str = "An animation of generated digits"
) -> Html:
    """A looping animation inside the page: one small animated WebP, no file, no script.

    Args:
        frames: (T, 1, H, W) or (T, H, W), floats in [-1, 1] or bytes. For many pictures a frame:
            `torch.stack([grid(pictures) for pictures in steps])`.
        milliseconds: a frame; the last one stays longer.
        scale: screen pixels a pixel.
        alt: what there is to see, for those who do not see it.
    """
    frames, scale = to_frames(frames), positive("scale", scale)
    count, height, width = frames.shape[:3]
    first, options = _movie(frames, milliseconds)
    source = data_uri(first, quality=QUALITY, **options)
    return Html(
        f'<img src="{source}" alt="{html.escape(alt)}" width="{round(scale * width)}" '
        f'height="{round(scale * height)}" style="max-width:100%;height:auto;image-rendering:pixelated">',
        f"{alt} ({count} frames)",
    )


def save_animation(frames: Tensor, path: str | Path, milliseconds: int = 60) -> Path:
    """Write a looping animation to a file, whole or not at all.

    Args:
        frames: (T, 1, H, W) or (T, H, W), in colour (T, H, W, 3), floats in [-1, 1] or bytes.
        path: ends in .gif or .webp.
        milliseconds: a frame; the last one stays longer.

    Raises:
        BookError: another ending, or the file cannot be written.
    """
    if Path(path).suffix.lower() not in (".gif", ".webp"):
        raise BookError(f"cannot write an animation to {path}: let its name end in .gif or .webp")
    first, options = _movie(to_frames(frames), milliseconds)
    if Path(path).suffix.lower() == ".webp":
        options["quality"] = QUALITY
    return write_whole(path, lambda temporary: first.save(temporary, **options))


def _movie(frames: Tensor, milliseconds: int) -> tuple[Image.Image, dict]:
    if not 1 <= whole("milliseconds", milliseconds) <= HOUR:
        raise BookError(f"milliseconds is {milliseconds!s:.20}: give 1 to {HOUR:,}")
    pictures = [Image.fromarray(frame) for frame in frames.numpy()]
    durations = [milliseconds] * (len(pictures) - 1) + [max(HOLD, milliseconds)]
    return pictures[0], {"save_all": True, "append_images": pictures[1:], "duration": durations, "loop": 0}
