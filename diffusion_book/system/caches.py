"""The folder of caches, and in it tensors that take long to compute, each file saying what it was computed from."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffusion_book.system.errors import BookError
from diffusion_book.system.files import remove_leftovers, write_tensors
from diffusion_book.system.hashes import hash_of_tensors


def cache_folder() -> Path:
    """Where downloads and caches go: `$XDG_CACHE_HOME/diffusion-book`, else `~/.cache/diffusion-book`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffusion-book"


def cached(
    path: Path, made_from: dict[str, str], what: str, compute: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The tensors in a file if they are there and made from the same, else computed and stored there.

    A file that is damaged, or belongs to other data, is made again, with a notice on stderr. A folder that cannot be
    written only costs the time.

    Args:
        path: of the file.
        made_from: hashes and settings that decide what the tensors are.
        what: they are called in notices.
        compute: makes them; contiguous.
    """
    remove_leftovers(path.parent)
    tensors = _read(path, made_from, what)
    if tensors is None:
        tensors = compute()
        metadata = {**made_from, "tensors": hash_of_tensors(tensors)}
        try:
            write_tensors(path, tensors, metadata)
        except BookError as error:
            print(f"notice: the {what} are not kept for the next time ({error})", file=sys.stderr)
    return tensors


def _read(path: Path, made_from: dict[str, str], what: str) -> dict[str, Tensor] | None:
    """The tensors in a cache file; None where there is none that fits."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        print(f"notice: the cached {what} {path.name} are damaged ({error}); computing them again", file=sys.stderr)
        return None
    if metadata.pop("tensors", None) != hash_of_tensors(tensors):
        print(f"notice: the cached {what} {path.name} are damaged; computing them again", file=sys.stderr)
        return None
    if metadata != made_from:
        print(f"notice: the cached {what} {path.name} belong to other data; computing them again", file=sys.stderr)
        return None
    return tensors
