"""Digits from anywhere, to be measured: a folder of pictures, an .npz of arrays, or one picture of many.

They are taken as they are. What would have to be resized, inverted or made grey is refused, for each of these can be
done in several ways, and every way moves the figures.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion_book.data.dataset import CROP_SIZE, IMAGE_SIZE, PADDING
from diffusion_book.data.own import (
    Picture,
    first_of,
    opened,
    pictures_in,
    pictures_of_arrays,
    read_arrays,
    reason_of,
    sides,
    usable,
)
from diffusion_book.system.errors import BookError
from diffusion_book.system.streams import say_once

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SIZES = (CROP_SIZE, IMAGE_SIZE)
GAPS = (2, 1, 0)  # pixels between the tiles of a grid and around them: the book's and torchvision's grids have 2
BLOCKS = 8  # a pixel may have been made a block of at most so many by so many, as the book's files have it
UNEVEN = 16  # of 255: by how much a lossy format lets a grey gap, or the three channels of a grey picture, differ
FEWEST, MOST = 10, 60_000  # pictures, as the measures need them
DIGITS = tuple("0123456789")
FORM = f"digits of MNIST's form are {CROP_SIZE} x {CROP_SIZE}, or {IMAGE_SIZE} x {IMAGE_SIZE} with a border"


class Samples(NamedTuple):
    """Pictures that shall be measured."""

    images: Tensor
    """bytes, (N, 1, 28, 28), 0 = background, 255 = ink"""
    labels: Tensor | None
    """(N,), the digit that each shall show, where that is told"""


def read_samples(path: str | Path, labels: str | Path | None = None) -> Samples:
    """Read digits, and change nothing but what no picture shows.

    That is: the border of pictures of 32 x 32 is cut off, and where every pixel has been made a block, as in the files
    that `generate` writes, a block is a pixel again.

    Args:
        path: a folder of PNG, JPEG or WebP files, or with a folder for each digit, named 0 to 9; an .npz as `load_own`
            takes it; or one picture, of tiles of 28 x 28 or 32 x 32 in rows, with 0 to 2 pixels of one grey around
            each. Tiles of one grey at its end are none: so a last row is filled up.
        labels: a file of whole numbers 0 to 9, one for each picture: .npy, .npz, or text. Files are counted by their
            names, 2 before 10; tiles row by row. Default: the names of the folders, or the labels in the .npz.

    Raises:
        BookError: there is no such place; too few or too many pictures; of another size, in colour, or transparent; or
            labels that do not fit.
    """
    place = Path(path).expanduser()
    classes: tuple[str, ...] = ()
    if place.is_dir():
        files, classes = pictures_in(place)
        check_folders(place, classes)
        pictures = [each for each in files if each.name.lower().endswith(SUFFIXES)]
        others = [f"{each.name} (no PNG, JPEG or WebP)" for each in files if each not in pictures]
    elif place.suffix == ".npz" and place.is_file():
        (pictures, classes), others = pictures_of_arrays(place), []
    elif place.is_file():
        tiles = cut(as_grey(open_grid(place), place.name), place.name)
        pictures = [Picture(f"tile {number}", 0, False, tile) for number, tile in enumerate(tiles)]
        others = []
    else:
        raise BookError(f"there is no {path}: give a folder of digits, an .npz of arrays, or a picture of many")
    check_number(len(pictures), path)
    digits = digits_of(pictures, classes, place) if labels is None else read_labels(Path(labels), len(pictures))
    made, kept = [], []
    for number, image in usable(pictures, opened, others, "reading"):
        name = pictures[number].name
        made.append(as_digit(as_grey(image, name), name))
        kept.append(number)
    if others:
        say_once(f"notice: skipped {len(others)} files in {path}: {first_of(others)}")
    check_number(len(made), path)
    return Samples(torch.from_numpy(np.stack(made)).unsqueeze(1), None if digits is None else digits[kept])


def check_number(number: int, path: str | Path) -> None:
    """Refuse more or fewer pictures than can be measured."""
    if not FEWEST <= number <= MOST:
        raise BookError(f"{path} holds {number:,} pictures: the measures need {FEWEST} to {MOST:,}, best 10,000")


# Of which digit they are


def check_folders(place: Path, classes: tuple[str, ...]) -> None:
    """Refuse folders in a folder that are not named after digits."""
    strange = [name for name in classes if name not in DIGITS]
    if not strange:
        return
    made = [place / name for name in ("samples.npz", "samples", "grid.png") if (place / name).exists()]
    if made:
        raise BookError(f"{place} is what `generate` has written: give {made[0]}")
    raise BookError(
        f"the folder {strange[0]} in {place} is named after no digit: name them 0 to 9, or put all pictures into one"
    )


def digits_of(pictures: list[Picture], classes: tuple[str, ...], place: Path) -> Tensor | None:
    """The digit of each picture, (N,), by the names of its classes; None where there are none."""
    if not classes:
        return None
    strange = [name for name in classes if name not in DIGITS]
    if strange:
        raise BookError(f"a label in {place} is '{strange[0]}': labels of digits are whole numbers 0 to 9")
    return torch.tensor([int(classes[picture.label]) for picture in pictures])


def read_labels(path: Path, number: int) -> Tensor:
    """Labels from a file of their own: (number,), 0 to 9.

    Raises:
        BookError: it cannot be read, or holds other numbers, or not so many.
    """
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False).ravel().tolist()
        elif path.suffix == ".npz":
            arrays = read_arrays(path)
            values = next((arrays[name] for name in ("labels", "y", "arr_0") if name in arrays), np.zeros(0))
            values = values.ravel().tolist()
        else:
            values = re.split(r"[\s,;]+", path.read_text(encoding="utf-8").strip())
    except (OSError, ValueError, EOFError) as error:
        raise BookError(f"the labels {path} cannot be read ({error!s:.100}): give .npy, .npz or text") from None
    strange = [value for value in values if str(value) not in DIGITS]
    if strange:
        raise BookError(f"a label in {path} is '{strange[0]!s:.20}': labels of digits are whole numbers 0 to 9")
    if len(values) != number:
        raise BookError(f"{path} holds {len(values):,} labels for {number:,} pictures: give one for each")
    return torch.tensor([int(value) for value in values])


# Of which form they are


def as_grey(picture: Image.Image, name: str) -> np.ndarray:
    """A grey picture as bytes (H, W).

    Raises:
        BookError: it is in colour, or transparent.
    """
    if picture.has_transparency_data and picture.convert("RGBA").getextrema()[3][0] < 255:
        raise BookError(f"{name} is transparent: lay it on black first, and store it grey")
    if picture.mode in ("L", "1", "LA"):
        return np.asarray(picture.convert("L"))
    colours = np.asarray(picture.convert("RGB"))
    if np.ptp(colours.astype(np.int16), axis=2).max() > UNEVEN:
        raise BookError(f"{name} is in colour: {FORM}, and grey; store it so (picture.convert('L') of Pillow)")
    return colours[..., 1]


def as_digit(grey: np.ndarray, name: str) -> np.ndarray:
    """One digit (28, 28) of bytes (28, 28) or (32, 32), or of as many blocks.

    Raises:
        BookError: it has another size.
    """
    height, width = grey.shape
    for size in SIZES:
        block = width // size
        if height == width == block * size and block <= BLOCKS:
            small = one_a_block(grey, block)
            if small is not None:
                return cropped(small)
    raise BookError(
        f"{name} is {width} x {height} pixels: {FORM}; resize it, or give a grid of such tiles as one picture"
    )


def one_a_block(grey: np.ndarray, block: int) -> np.ndarray | None:
    """One pixel (H / block, W / block) for each block of equal ones; None where they are not."""
    small = grey[::block, ::block]
    return small if np.array_equal(small.repeat(block, 0).repeat(block, 1), grey) else None


def cropped(images: np.ndarray) -> np.ndarray:
    """The middle (..., 28, 28) of pictures (..., 32, 32); those of (..., 28, 28) as they are."""
    return images[..., PADDING:-PADDING, PADDING:-PADDING] if images.shape[-1] == IMAGE_SIZE else images


def open_grid(path: Path) -> Image.Image:
    """The one picture that holds all.

    Raises:
        BookError: it is none, or is damaged.
    """
    try:
        return opened(path)
    except Exception as error:
        raise BookError(
            f"{path} cannot be read ({reason_of(error)}): give a PNG, an .npz of arrays, or a folder"
        ) from None


def cut(grey: np.ndarray, name: str) -> np.ndarray:
    """The digits of a grid, (N, 28, 28), row by row. Where it can be cut in several ways, the edges decide: digits' are dark.

    Raises:
        BookError: it can be cut in none.
    """
    height, width = grey.shape
    for block in range(BLOCKS, 0, -1):
        if height % block or width % block or (small := one_a_block(grey, block)) is None:
            continue
        ways = (tiles_of(small, size, gap) for size in SIZES for gap in GAPS)
        tilings = [tiles for tiles in ways if tiles is not None]
        if tilings:
            return cropped(min(tilings, key=brightness_of_edges))
    raise BookError(
        f"{name}, {width} x {height} pixels, is no grid of digits: give tiles of {CROP_SIZE} x {CROP_SIZE} or "
        f"{IMAGE_SIZE} x {IMAGE_SIZE} in rows, with 0 to 2 pixels of one grey around each"
    )


def tiles_of(grey: np.ndarray, size: int, gap: int) -> np.ndarray | None:
    """The tiles (N, size, size) of a grid (H, W) with so wide gaps, those that fill up its end left out.

    Returns:
        None where it is no such grid.
    """
    (rows, low), (columns, right) = (divmod(length - gap, size + gap) for length in grey.shape)
    if low or right or rows < 1 or columns < 1:
        return None
    cells = grey[gap:, gap:].reshape(rows, size + gap, columns, size + gap).swapaxes(1, 2)
    between = [grey[:gap], grey[:, :gap], cells[..., size:, :], cells[..., size:]]
    if gap and np.ptp(np.concatenate([part.ravel() for part in between])) > UNEVEN:
        return None
    tiles = cells[..., :size, :size].reshape(-1, size, size)
    filled = np.flatnonzero(np.ptp(tiles, axis=(1, 2)) > 0)
    return tiles[: filled[-1] + 1] if len(filled) else None


def brightness_of_edges(tiles: np.ndarray) -> float:
    """The mean along the edges of tiles (N, H, W)."""
    return float(np.mean([side.mean() for side in sides(tiles)]))
