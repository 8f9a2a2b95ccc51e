"""Pictures of your own: a folder of them, a folder for each class, or an .npz of arrays, in the form of the book.

What is done to each picture: it is turned as its camera said, laid on white where it is transparent, made grey, or of three
colours, cut to its middle square, and resized. Grey pictures with a bright edge, as dark ink on paper has, are inverted, all
or none: the book's ink is bright.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from diffusion_book.data.dataset import CROP_SIZE, Dataset
from diffusion_book.system.caches import cache_folder, cached
from diffusion_book.system.errors import BookError
from diffusion_book.system.streams import say_once

Read = TypeVar("Read")

FORMATS = ("PNG", "JPEG", "WEBP")
SIZES = (28, 32, 64)
CHANNELS = (1, 3)
FEWEST = 20  # pictures
HELD_OUT = 10  # where no folder is named `test`, every tenth picture is for testing
BRIGHT_EDGE = 191  # of 255, the median along the edges of all pictures: dark ink on paper
MOST_BYTES = 16 * 2**30  # of the arrays in an .npz
NAMED = 3  # of the files that are skipped; of the others the number is told
VERSION = 1  # of what is done to a picture: another one makes the cache anew

ARRAYS = (("images", "labels"), ("x", "y"), ("arr_0", "arr_1"))
"""names of the arrays in an .npz: pictures, labels; with `_train` and `_test` behind, or `train_` and `test_` before them,
those of one split"""


@dataclass(frozen=True)
class Picture:
    """One picture as it was found.

    Attributes:
        name: that it is called by when it is skipped.
        label: its class's number.
        test: whether it is for testing.
        content: a file, or an array (H, W) or (H, W, C) of bytes.
    """

    name: str
    label: int
    test: bool
    content: Path | np.ndarray


def load_own(path: str | Path, split: str = "train", image_size: int = CROP_SIZE, channels: int = 1) -> Dataset:
    """A data set of your own pictures.

    Args:
        path: a folder of PNG, JPEG or WebP files; or of a folder for each class, with pictures at any depth; or of two
            folders `train` and `test` of either kind; or an .npz with arrays `images` (N, H, W), (N, H, W, C) or
            (N, C, H, W), bytes or floats in [0, 1] or [-1, 1], and `labels` (N,).
        split: "train" or "test".
        image_size: height and width.
        channels: 1, grey, or 3, colour.

    Returns:
        uint8 pictures (N, channels, image_size, image_size) and int64 labels (N,), on the CPU. Without classes, all
        labels are 0. Of a folder without a split, every tenth picture is for testing.

    Raises:
        BookError: there is no such place, or there are too few pictures in it.
    """
    place = Path(path).expanduser().resolve()
    if image_size not in SIZES or channels not in CHANNELS:
        raise BookError(
            f"pictures of {image_size} x {image_size} and {channels} channels: the size can be 28, 32 or 64, the channels 1 or 3"
        )
    if place.is_dir():
        pictures, classes = pictures_in(place)
    elif place.suffix == ".npz" and place.is_file():
        pictures, classes = pictures_of_arrays(place)
    else:
        raise BookError(f"there is no folder {path}, and no .npz file: give one with your pictures")
    if not pictures:
        raise BookError(
            f"{path} holds no pictures: put PNG, JPEG or WebP files there, or a folder of them for each class"
        )
    form = {"size": str(image_size), "channels": str(channels), "version": str(VERSION)}
    content = hash_of_pictures(pictures, classes)
    name = place.name if place.is_dir() else place.stem
    file = f"{name[:60]}-{content[:16]}-{image_size}-{channels}.safetensors"
    tensors = cached(
        cache_folder() / "pictures" / file,
        {**form, "content": content},
        "pictures",
        lambda: convert_all(pictures, image_size, channels, name),
    )
    notes = json.loads(bytes(tensors["notes"].tolist()))
    if len(tensors["images"]) < FEWEST:
        why = "".join(f" ({note})" for note in notes if note.startswith("skipped"))
        raise BookError(f"{path} holds {len(tensors['images'])} pictures that can be used{why}: give at least {FEWEST}")
    for note in notes:
        say_once(f"notice: {note}, in {name}")
    chosen = tensors["test"].bool() == (split == "test")
    if not chosen.any():
        raise BookError(f"{path} has no pictures for '{split}' that can be used: put some there")
    return Dataset(name, tensors["images"][chosen], tensors["labels"][chosen], classes, str(place))


# Where the pictures are


def pictures_in(folder: Path) -> tuple[list[Picture], tuple[str, ...]]:
    """The pictures in a folder, in order, and the names of its classes; none where it is not divided.

    Raises:
        BookError: it cannot be read, or one half of it has classes that the other has not.
    """
    try:
        halves = {"train": folder / "train", "test": folder / "test"}
        if not all(half.is_dir() for half in halves.values()):
            halves = {"": folder}
        named = {split: classes_in(half) for split, half in halves.items()}
        classes = sorted({name for names in named.values() for name in names}, key=in_order)
        if classes and not all(named.values()):
            raise BookError(
                f"of {folder}/train and {folder}/test only one has a folder for each class: give both of them"
            )
        pictures = []
        for split, half in halves.items():
            for label, part in enumerate([half / name for name in classes] or [half]):
                for path in files_below(part, deep=bool(classes)):
                    test = split == "test" or (not split and len(pictures) % HELD_OUT == HELD_OUT - 1)
                    pictures.append(Picture(path.relative_to(folder).as_posix(), label, test, path))
            if classes:  # beside the folders: nobody knows of which class they are
                strays = files_below(half, deep=False)
                pictures += [Picture(path.relative_to(folder).as_posix(), -1, False, path) for path in strays]
    except OSError as error:
        raise BookError(f"{folder} cannot be read ({error.strerror}): give a folder that you may read") from None
    return pictures, tuple(classes)


def classes_in(folder: Path) -> list[str]:
    """The names of the folders in a folder that hold files."""
    inside = (each for each in folder.iterdir() if each.is_dir() and not each.name.startswith((".", "__")))
    return [each.name for each in inside if any(True for _ in files_below(each))]


def files_below(folder: Path, deep: bool = True) -> Iterator[Path]:
    """All files in a folder, and in those in it, in order; without hidden ones."""
    for each in sorted(folder.iterdir(), key=lambda path: in_order(path.name)):
        if each.name.startswith((".", "__")) or each.name in ("Thumbs.db", "desktop.ini"):
            continue
        if each.is_file():
            yield each
        elif deep and each.is_dir() and not each.is_symlink():
            yield from files_below(each)


def in_order(name: str) -> list:
    """A key for sorting names: numbers in them by their value, 2 before 10."""
    return [int(part) if place % 2 else part.lower() for place, part in enumerate(re.split(r"([0-9]+)", name))]


def pictures_of_arrays(path: Path) -> tuple[list[Picture], tuple[str, ...]]:
    """The pictures in an .npz, in order, and the names of its classes; none where it has no labels.

    Raises:
        BookError: it is damaged, or holds no arrays of pictures.
    """
    arrays = read_arrays(path)
    pairs = {"": [pair for pair in ARRAYS if pair[0] in arrays]}
    for split in ("train", "test"):
        pairs[split] = [
            pair
            for names in ARRAYS
            for pair in ([f"{name}_{split}" for name in names], [f"{split}_{name}" for name in names])
            if pair[0] in arrays
        ]
    if pairs["train"] and pairs["test"]:
        pairs[""] = []
    elif not pairs[""]:
        raise BookError(f"{path} holds the arrays {', '.join(arrays) or 'of nothing'}: name yours images and labels")
    splits = [(split, *pairs[split][0]) for split in ("", "train", "test") if pairs[split]]
    values = {split: labels_of(path, arrays, images, labels) for split, images, labels in splits}
    classes = sorted({value for each in values.values() for value in each}, key=in_order)
    numbers = {name: number for number, name in enumerate(classes)}
    pictures = []
    for split, images, _ in splits:
        for number, content in enumerate(as_bytes(arrays[images], f"{images} in {path}")):
            test = split == "test" or (not split and number % HELD_OUT == HELD_OUT - 1)
            label = numbers[values[split][number]] if values[split] else 0
            pictures.append(Picture(f"{images}[{number}]", label, test, content))
    return pictures, tuple(classes)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays in an .npz; nothing in it is run.

    Raises:
        BookError: it cannot be read, is no .npz, or is too large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MOST_BYTES:
                raise BookError(f"{path} unpacks to more than {MOST_BYTES >> 30} GB: give fewer pictures")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        NotImplementedError,
    ) as error:
        raise BookError(
            f"{path} cannot be read as an .npz of arrays ({str(error)[:100]}): write it with np.savez"
        ) from None


def labels_of(path: Path, arrays: dict[str, np.ndarray], images: str, labels: str) -> list[str]:
    """The names of the pictures' classes, one each; none where the file has no labels.

    Raises:
        BookError: they are no numbers or words, or not one for each picture.
    """
    if labels not in arrays:
        return []
    values = arrays[labels]
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape != arrays[images].shape[:1] or values.dtype.kind not in "iuU":
        raise BookError(
            f"{labels} in {path} is {values.dtype} of shape {values.shape}: give whole numbers or words, one for each picture"
        )
    words = [str(value) for value in values.tolist()]
    names = arrays.get("classes")  # as `generate --format npz` leaves them
    if names is not None and names.ndim == 1 and names.dtype.kind == "U" and values.dtype.kind in "iu":
        if not ((values >= 0) & (values < len(names))).all():
            raise BookError(f"{labels} in {path} go beyond its {len(names)} classes: number them from 0")
        words = [str(names[value]) for value in values.tolist()]
    return words


def as_bytes(images: np.ndarray, name: str) -> np.ndarray:
    """Pictures as bytes, (N, H, W) or (N, H, W, C).

    Args:
        images: (N, H, W), (N, H, W, C) or (N, C, H, W), C being 1 or 3; bytes 0 to 255, floats in [0, 1] or [-1, 1], or
            truths.
        name: that they are called by when they are refused.

    Raises:
        BookError: another shape, or other numbers.
    """
    if images.ndim == 4 and images.shape[-1] not in CHANNELS and images.shape[1] in CHANNELS:
        images = images.transpose(0, 2, 3, 1)
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in CHANNELS) or 0 in images.shape:
        raise BookError(f"{name} has the shape {images.shape}: give (N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W)")
    if images.dtype == np.bool_:
        return images.astype(np.uint8) * 255
    if images.dtype.kind not in "iuf" or (images.dtype.kind == "f" and not np.isfinite(images).all()):
        raise BookError(f"{name} is {images.dtype}, or not finite: give bytes 0 to 255, or floats in [0, 1] or [-1, 1]")
    low, high = images.min(), images.max()
    if images.dtype.kind == "f" and low >= -1.01 and high <= 1.01:
        images = (images + 1) * 127.5 if low < 0 else images * 255.0
    elif low < 0 or high > 255:
        raise BookError(
            f"{name} lies between {low:.3g} and {high:.3g}: give bytes 0 to 255, or floats in [0, 1] or [-1, 1]"
        )
    return np.rint(np.clip(images, 0, 255)).astype(np.uint8)


# What is done to them


def hash_of_pictures(pictures: list[Picture], classes: tuple[str, ...]) -> str:
    """SHA-256 of all names, classes and contents."""
    digest = hashlib.sha256(json.dumps(classes).encode())
    for picture in pictures:
        if isinstance(picture.content, Path):
            try:
                inside = picture.content.read_bytes()
            except OSError:
                inside = b"cannot be read"
        else:
            inside = picture.content.tobytes()
        name = json.dumps([picture.name, picture.label, picture.test])
        digest.update(name.encode() + hashlib.sha256(inside).digest())
    return digest.hexdigest()


def usable(
    pictures: list[Picture], read: Callable[[Path | np.ndarray], Read], skipped: list[str], description: str
) -> Iterator[tuple[int, Read]]:
    """The pictures that can be read: the number of each, and what `read` makes of its content.

    Args:
        pictures: all of them.
        read: raises where a picture cannot be used.
        skipped: gets the name of each of the others, and why.
        description: beside the progress bar.
    """
    bar = tqdm(pictures, desc=description, unit="picture", disable=None, delay=1, dynamic_ncols=True)
    for number, picture in enumerate(bar):
        try:
            if picture.label < 0:
                raise ValueError("beside the folders of the classes")
            image = read(picture.content)
        except Exception as error:  # whatever a decoder stumbles over, the file is in its way
            skipped.append(f"{picture.name} ({reason_of(error)})")
            continue
        yield number, image


def first_of(skipped: list[str]) -> str:
    """The first few of the files that were skipped, and how many more."""
    more = f" and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
    return ", ".join(skipped[:NAMED]) + more


def convert_all(pictures: list[Picture], image_size: int, channels: int, name: str) -> dict[str, Tensor]:
    """All pictures that can be used, in the form of the book.

    Returns:
        "images": (N, channels, image_size, image_size), bytes; "labels": (N,); "test": (N,), 1 for those for testing;
        "notes": what was skipped or inverted, JSON as bytes.
    """
    kept, made, skipped = [], [], []
    read = functools.partial(convert, image_size=image_size, channels=channels)
    for number, image in usable(pictures, read, skipped, f"pictures of {name}"):
        kept.append(pictures[number])
        made.append(image)
    images = np.stack(made) if made else np.zeros((0, image_size, image_size, channels), np.uint8)
    notes = []
    if skipped:
        notes.append(f"skipped {len(skipped)} of {len(pictures)} files: {first_of(skipped)}")
    if channels == 1 and len(images) and edge(images) > BRIGHT_EDGE:
        images = 255 - images
        notes.append("the pictures are dark on bright, and were inverted")
    return {
        "images": torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),  # (N, H, W, C) -> (N, C, H, W)
        "labels": torch.tensor([picture.label for picture in kept], dtype=torch.int64),
        "test": torch.tensor([picture.test for picture in kept], dtype=torch.uint8),
        "notes": torch.tensor(list(json.dumps(notes).encode()), dtype=torch.uint8),
    }


def opened(content: Path | np.ndarray) -> Image.Image:
    """One picture as its file says, turned as its camera said, of 8 bits.

    Args:
        content: a file, or bytes (H, W), (H, W, 1) or (H, W, 3).

    Raises:
        Exception: it is damaged, is no picture, or moves.
    """
    if isinstance(content, Path):
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(content, formats=FORMATS)
            if getattr(picture, "n_frames", 1) > 1:
                raise ValueError("an animation")
            picture.load()
        picture = ImageOps.exif_transpose(picture)
    else:
        picture = Image.fromarray(content[..., 0] if content.ndim == 3 and content.shape[-1] == 1 else content)
    if picture.mode.startswith("I"):  # 16 bits
        return Image.fromarray((np.asarray(picture).clip(0, 65535) / 257).round().astype(np.uint8))
    return picture


def convert(content: Path | np.ndarray, image_size: int, channels: int) -> np.ndarray:
    """One picture in the form of the book: (image_size, image_size, channels), bytes.

    Raises:
        Exception: it is damaged, is no picture, moves, or is blank.
    """
    picture = opened(content)
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    picture = picture.convert("L" if channels == 1 else "RGB")
    if all(low == high for low, high in np.atleast_2d(picture.getextrema())):
        raise ValueError("blank")
    picture = ImageOps.fit(picture, (image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(picture).reshape(image_size, image_size, channels)


def edge(images: np.ndarray) -> float:
    """The median brightness along the edges of pictures (N, H, W, C), 0 to 255."""
    return float(np.median(np.concatenate([side.ravel() for side in sides(images)])))


def sides(images: np.ndarray) -> tuple[np.ndarray, ...]:
    """The four edges of pictures (N, H, W, ...): the upper, lower, left and right one."""
    return images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]


def reason_of(error: Exception) -> str:
    """Why a file is skipped, in a word or two."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "no PNG, JPEG or WebP"
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        return "too large"
    if type(error) is ValueError and str(error) in ("blank", "an animation", "beside the folders of the classes"):
        return str(error)
    return "damaged"
