"""Generated pictures as files: single ones, a grid, arrays, or an animation of their way from the noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from diffusion_book.system.errors import BookError, choose
from diffusion_book.system.files import write_whole
from diffusion_book.viz.animation import save_animation
from diffusion_book.viz.grids import MOST_PIXELS, channels_last, enlarged, grid, save_grid, scale_of, to_bytes

ROWS_A_PAGE = 200
PIXELS_AN_INCH = 36  # of the digits: one is 2 cm wide on paper
GAP_PIXELS = 2  # between the pictures of a grid
MOVIE_SCALE = 4  # a pixel is a block of so many pixels of an animation
MOVIE_PIXELS = 4_000_000  # of a frame that is still quick to draw
MILLISECONDS = 80  # a frame


class Drawn(NamedTuple):
    """Pictures with their way from the noise."""

    times: list[float]
    """of the stills, from 1 to 0"""
    stills: Tensor
    """(N, frames, C, H, W) in [-1, 1]; the last frame is the picture"""
    labels: Tensor | None = None
    """the class of each, (N,); None for a model without classes"""
    classes: tuple[str, ...] = ()
    """names of the classes"""

    @property
    def images(self) -> Tensor:
        """The pictures: (N, C, H, W) in [-1, 1]."""
        return self.stills[:, -1]


def check_fits(format: str, num_samples: int, columns: int, size: int) -> None:
    """Refuse a format that cannot hold so many pictures in rows.

    Args:
        format: one of `FORMATS`.
        num_samples: pictures.
        columns: pictures a row.
        size: height and width of each.

    Raises:
        BookError: no such format, or the grid is too wide, or, where it takes one page, too high.
    """
    choose("format", format, FORMATS)
    most = MOST_PIXELS.get(f".{format}", 2**31 - 1) // (size + GAP_PIXELS) - 1  # with the gap at the edge
    columns, rows = min(columns, num_samples), -(-num_samples // columns)
    if columns > most:
        raise BookError(f"--nrow is {columns}: a {format.upper()} holds at most {most:,} pictures a row")
    if format == "webp" and rows > most:
        raise BookError(
            f"{num_samples:,} pictures are {rows:,} rows, and a WEBP holds at most {most:,}: raise --nrow, or choose png"
        )


def write_pictures(folder: Path, drawn: Drawn, format: str, columns: int, grid_only: bool = False) -> None:
    """Fill a folder: a grid as PNG in any case, and beside it what the format has.

    Args:
        folder: for the files.
        drawn: the pictures.
        format: one of `FORMATS`.
        columns: pictures a row of the grid.
        grid_only: nothing for single pictures.
    """
    save_grid(drawn.images, folder / "grid.png", columns=columns)
    FORMATS[format](folder, drawn, columns, grid_only)


def _pdf(folder: Path, drawn: Drawn, columns: int, grid_only: bool) -> None:
    """The grid, and a folder for each sample with its picture, its strip and its single stills."""
    save_pdf(drawn.images, folder / "grid.pdf", columns=columns)
    for number, row in enumerate(_bar([] if grid_only else drawn.stills)):
        sample = folder / f"sample_{number:03d}"
        save_pdf(row[-1:], sample / "final.pdf")
        save_pdf(row, sample / "denoising_strip.pdf", columns=len(row))
        for step, (t, still) in enumerate(zip(drawn.times, row, strict=True)):
            save_pdf(still[None], sample / "denoising_steps" / f"step_{step:02d}_t{t:.3f}.pdf")


def _png(folder: Path, drawn: Drawn, columns: int, grid_only: bool) -> None:
    """A file for each picture, as large as it is; with classes in a folder for each of them."""
    images = to_bytes(drawn.images)
    for number, picture in enumerate(_bar([] if grid_only else images)):
        place = folder / "samples"
        if drawn.labels is not None:
            place /= folder_name(drawn.classes, int(drawn.labels[number]))
        write_whole(place / f"sample_{number:03d}.png", Image.fromarray(channels_last(picture).numpy()).save)


def _npz(folder: Path, drawn: Drawn, columns: int, grid_only: bool) -> None:
    """Arrays: `images`, bytes (N, C, H, W); with classes `labels` (N,), and `classes`, their names."""
    arrays = {"images": to_bytes(drawn.images).numpy()}
    if drawn.labels is not None:
        arrays |= {"labels": drawn.labels.numpy(), "classes": np.array(drawn.classes)}
    if not grid_only:
        write_whole(folder / "samples.npz", lambda path: np.savez_compressed(path, **arrays))


def _webp(folder: Path, drawn: Drawn, columns: int, grid_only: bool) -> None:
    """The whole grid on its way from the noise."""
    frames = torch.stack([grid(still, columns) for still in drawn.stills.unbind(1)])
    height, width = frames.shape[1:3]
    scale = MOVIE_SCALE
    while scale > 1 and (scale * max(height, width) > MOST_PIXELS[".webp"] or scale**2 * height * width > MOVIE_PIXELS):
        scale -= 1
    large = frames.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    save_animation(large, folder / "grid.webp", MILLISECONDS)


FORMATS: dict[str, Callable[[Path, Drawn, int, bool], None]] = {"pdf": _pdf, "png": _png, "npz": _npz, "webp": _webp}
"""name -> what writes it"""


def folder_name(classes: tuple[str, ...], label: int) -> str:
    """The name of a class, where a folder can be called so; else its number."""
    name = classes[label]
    return name if Path(name).name == name and "\\" not in name and not name.startswith(".") else str(label)


def save_pdf(images: Tensor, path: Path, columns: int = 8) -> Path:
    """Write pictures (N, C, H, W) in [-1, 1] in rows to a PDF, whole or not at all; many rows take several pages."""
    padding = GAP_PIXELS if len(images) > 1 else 0
    pages = [grid(part, columns, padding) for part in images.split(columns * ROWS_A_PAGE)]
    # A page holds a JPEG, whose pixels have an end: a very wide one gets smaller blocks.
    scale = max(1, min(scale_of(images.shape[-1]), MOST_PIXELS[".pdf"] // max(pages[0].shape[:2])))
    first, *others = (enlarged(page, scale) for page in pages)
    options = {"quality": 95, "resolution": scale * PIXELS_AN_INCH, "save_all": True, "append_images": others}
    return write_whole(path, lambda temporary: first.save(temporary, "PDF", **options))


def _bar(samples) -> tqdm:
    return tqdm(samples, desc="writing", unit="sample", disable=None, dynamic_ncols=True)
