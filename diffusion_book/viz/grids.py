"""Many pictures as one."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from diffusion_book.data import quantise
from diffusion_book.system.errors import BookError, positive, whole
from diffusion_book.system.files import write_whole
from diffusion_book.viz.style import DPI, new_figure, styled

TITLE = 0.35  # inches above the pictures for a title
GUTTER = 0.05  # inches between labelled rows
MOST_PADDING = 1000
SCALE = 8  # a pixel of a digit becomes a block of so many pixels of a file, which a screen shows and JPEG keeps exact
FULL = 32  # pixels; of larger pictures the blocks are smaller
MOST_PIXELS = {".jpg": 65_500, ".jpeg": 65_500, ".pdf": 65_500, ".webp": 16_383, ".gif": 65_535}
"""on a side; a PDF holds a JPEG"""
MANY_PIXELS = 50_000_000  # of a file that is still quick to open
GAP = 64  # the grey between pictures, 0 to 255: neither ink nor background


def to_bytes(images: Tensor) -> Tensor:
    """Pictures as bytes: floats in [-1, 1] become 0 to 255 (what lies outside is clipped); bytes stay."""
    return images.cpu() if images.dtype == torch.uint8 else quantise(images.detach().cpu())


def grid(images: Tensor, columns: int = 8, padding: int = 2) -> Tensor:
    """Lay pictures out in rows.

    Args:
        images: (N, 1, H, W), or (N, 3, H, W) in colour, floats in [-1, 1] or bytes.
        columns: pictures a row, at most.
        padding: pixels between pictures and around them.

    Returns:
        One picture, uint8, (height, width) or (height, width, 3), with grey between the pictures.

    Raises:
        BookError: not a batch of pictures with one channel or three, or columns or padding that cannot be.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0 or images.is_complex():
        raise BookError(
            f"a grid needs pictures of shape (N, 1 or 3, H, W), not {tuple(images.shape)} of {images.dtype}"
        )
    if whole("columns", columns) < 1 or not 0 <= whole("padding", padding) <= MOST_PADDING:
        raise BookError(
            f"{columns!s:.20} columns with padding {padding!s:.20}: give at least 1, and from 0 to {MOST_PADDING}"
        )
    columns = min(columns, len(images))
    cells = F.pad(to_bytes(images), [padding, 0, padding, 0], value=GAP)  # each with its left and upper border
    cells = F.pad(cells, [0] * 7 + [-len(cells) % columns], value=GAP)  # and empty ones, to fill the last row
    rows = cells.unflatten(0, (-1, columns)).permute(2, 0, 3, 1, 4)  # (C, rows, h, columns, w)
    return channels_last(F.pad(rows.flatten(3).flatten(1, 2), [0, padding, 0, padding], value=GAP))


def channels_last(picture: Tensor) -> Tensor:
    """A picture as files and figures want it: (1, H, W) -> (H, W), (3, H, W) -> (H, W, 3)."""
    return picture[0] if len(picture) == 1 else picture.permute(1, 2, 0).contiguous()


@styled
def show_grid(images: Tensor, columns: int = 8, title: str | None = None, scale: float = 2.0) -> Figure:
    """A figure of pictures in rows.

    Args:
        images: (N, 1 or 3, H, W), floats in [-1, 1] or bytes.
        columns: pictures a row, at most.
        title: written above.
        scale: screen pixels a pixel.
    """
    picture = grid(images, columns)
    height, width = (positive("scale", scale) * size / DPI for size in picture.shape[:2])
    total = height + (TITLE if title else 0.0)
    figure, axes = new_figure(width, total, layout="none")
    place(axes, picture, (0, 0, 1, height / total))
    if title:
        figure.suptitle(title, fontsize=11, y=1 - 0.1 / total)
    return figure


def place(axes, picture: Tensor, box: tuple[float, float, float, float]) -> None:
    """Show a picture (height, width), or (height, width, 3), of bytes in exactly this part of the figure: left, bottom, width, height, 0 to 1."""
    axes.imshow(picture.numpy(), vmin=0, vmax=255, aspect="auto")
    axes.set(xticks=[], yticks=[], frame_on=False, position=box)


@styled
def show_rows(rows: dict[str, Tensor], title: str | None = None, scale: float = 2.0) -> Figure:
    """A figure of labelled rows of pictures, for comparing.

    Args:
        rows: label -> pictures (N, 1 or 3, H, W), floats in [-1, 1] or bytes; N and the size may differ.
        title: written above.
        scale: screen pixels a pixel.

    Raises:
        BookError: there are no rows.
    """
    if not rows:
        raise BookError("show_rows needs at least one row of pictures")
    pictures = [grid(images, columns=images.shape[0] if images.ndim else 1) for images in rows.values()]
    scale = positive("scale", scale)
    sizes = [[scale * size / DPI for size in picture.shape[:2]] for picture in pictures]  # inches
    margin = 0.09 * max(len(line) for label in rows for line in label.split("\n")) + 0.1  # for the labels
    total_width = margin + max(width for _, width in sizes)
    top = sum(height + GUTTER for height, _ in sizes)
    total = top + (TITLE if title else 0.0)
    figure, axes = new_figure(total_width, total, len(rows), squeeze=False, layout="none")
    for row, label, picture, (height, width) in zip(axes[:, 0], rows, pictures, sizes, strict=True):
        top -= height + GUTTER
        place(row, picture, (margin / total_width, top / total, width / total_width, height / total))
        row.set_ylabel(label, rotation=0, ha="right", va="center")
    if title:
        figure.suptitle(title, fontsize=11, y=1 - 0.1 / total)
    return figure


def save_grid(images: Tensor, path: str | Path, columns: int = 8, scale: int | None = None) -> Path:
    """Write pictures in rows to one image file, whole or not at all.

    Args:
        images: (N, 1 or 3, H, W), floats in [-1, 1] or bytes.
        path: its ending names the format: .png, .webp, .pdf ...
        columns: pictures a row, at most.
        scale: a pixel becomes a block of scale x scale, or a smaller one where the file would grow too large. Default: as
            `scale_of` has it.

    Raises:
        BookError: the file cannot be written, its ending is unknown, or so many pictures do not fit into its format.
    """
    picture = grid(images, columns)
    suffix = Path(path).suffix.lower()
    if suffix not in Image.registered_extensions():
        raise BookError(f"cannot write a picture to {path}: let its name end in .png")
    longest, most = max(picture.shape[:2]), MOST_PIXELS.get(suffix, 2**31 - 1)
    if longest > most:
        raise BookError(
            f"a grid of {len(images):,} pictures, {picture.shape[1]:,} x {picture.shape[0]:,} pixels, does not fit into "
            f"{path}: {suffix} ends at {most:,}; write .png, or choose another number of columns"
        )
    scale = max(
        1, min(scale or scale_of(images.shape[-1]), most // longest, math.isqrt(MANY_PIXELS // picture.numel()))
    )
    return write_whole(path, enlarged(picture, scale).save)


def scale_of(size: int) -> int:
    """How large a block a pixel becomes in a file, by the width of the pictures: 8 for digits, 4 for 64 pixels."""
    return max(1, SCALE * FULL // max(FULL, size))


def enlarged(picture: Tensor, scale: int) -> Image.Image:
    """A picture (height, width), or (height, width, 3), of bytes, each of its pixels a block of scale x scale."""
    image = Image.fromarray(picture.numpy())
    return image.resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST)
