"""MNIST's own file format, IDX: a header of big-endian numbers, then bytes; and where its four files may lie."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from diffusion_book.system.errors import BookError

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
"""split -> its pictures and their labels"""
BYTES = 0x08  # the header's code for unsigned bytes


def find(root: Path, kind: str, others: bool) -> dict[str, Path]:
    """The files of a data set that lie in the first folder that has any: file name -> path.

    Args:
        root: in it or in a `raw` in it, or in a folder named `kind` or a `raw` in that; packed (.gz) or not, and with a
            dot in place of the second dash, as some archives have them.
        kind: torchvision's name of the data set.
        others: whether `root` itself may be meant: else files there without a folder `kind` are another set's.
    """
    places = [root / kind / "raw", root / kind]
    if others or kind in root.parts[-2:]:
        places += [root / "raw", root]
    for folder in places:
        paths = {}
        for name in (*FILES["train"], *FILES["test"]):
            spellings = (name, f"{name}.gz", dotted := name.replace("-idx", ".idx"), f"{dotted}.gz")
            path = next((folder / spelling for spelling in spellings if (folder / spelling).is_file()), None)
            if path is not None:
                paths[name] = path
        if paths:
            return paths
    return {}


def read(path: Path) -> tuple[Tensor, bytes]:
    """The numbers of a file, uint8, in the shape that its header tells; and its unpacked content.

    Raises:
        BookError: it cannot be read, or is no whole file of bytes.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise BookError(f"{path} cannot be read ({error})") from None
    if len(content) < 4 or content[:3] != bytes([0, 0, BYTES]):
        raise BookError(f"{path} is damaged (it does not begin as a file of bytes in MNIST's format)")
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[place : place + 4], "big") for place in range(4, start, 4)]
    if len(content) != start + math.prod(shape):
        raise BookError(f"{path} is damaged ({len(content):,} bytes, its header tells {start + math.prod(shape):,})")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:].reshape(shape), content
