"""Files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from diffusion_book.errors import BookError


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Have `write` fill a temporary file beside `path`, then move it into place in one step.

    Whatever interrupts it, `path` holds either what it held before or all of the new content.

    Args:
        path: the file to write; its folder is made if it is missing.
        write: is called with the temporary path, which ends like `path`.

    Raises:
        BookError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    make_folder(path.parent)
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    except OSError as error:
        raise BookError(f"cannot write {path} ({error.strerror}): choose another folder") from None
    os.close(descriptor)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise BookError(
            f"cannot write {path} ({error.strerror or error}): free some space or choose another folder"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file whole (see `write_whole`)."""
    return write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def make_folder(path: str | Path) -> Path:
    """Make a folder that can be written.

    Raises:
        BookError: it cannot be made or written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BookError(f"cannot make the folder {path} ({error.strerror}): choose another folder") from None
    if not os.access(path, os.W_OK):
        raise BookError(f"cannot write to the folder {path}: choose another folder")
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
