"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_book.system.errors import BookError

if TYPE_CHECKING:
    from torch import Tensor

WRITING = ".writing-"  # how the names of temporary files begin
FORGOTTEN = 3600.0  # seconds after which a temporary file that nobody has touched is that of a writer who was killed


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Have `write` fill a temporary file beside `path`, then move it into place in one step.

    Whatever interrupts it, `path` holds either what it held before or all of the new content. A process that is
    killed leaves its temporary file behind; whoever writes into the same folder an hour later removes it.

    Args:
        path: the file to write; its folder is made if it is missing.
        write: is called with the temporary path, which ends like `path`.

    Raises:
        BookError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    make_folder(path.parent)
    remove_leftovers(path.parent)
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{WRITING}{path.stem}-", suffix=path.suffix)
    except (OSError, ValueError) as error:  # ValueError: no file can have such a name
        raise BookError(f"cannot write {path} ({_reason(error)}): choose another folder") from None
    os.close(descriptor)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise BookError(f"cannot write {path} ({_reason(error)}): free some space or choose another folder") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file whole (see `write_whole`)."""
    return write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Write a safetensors file whole (see `write_whole`).

    As bytes: `safetensors.torch.save_file` would write through a temporary file of its own beside ours, under a name
    that nobody who cleans up after a killed process knows.
    """
    from safetensors.torch import save  # it imports torch, which takes seconds

    return write_whole(path, lambda temporary: temporary.write_bytes(save(tensors, metadata)))


def make_folder(path: str | Path) -> Path:
    """Make a folder that can be written.

    Raises:
        BookError: it cannot be made or written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise BookError(f"cannot make the folder {path} ({_reason(error)}): choose another folder") from None
    if not os.access(path, os.W_OK):
        raise BookError(f"cannot write to the folder {path}: choose another folder")
    return path


def timestamped_folder(parent: str | Path, name: str) -> Path:
    """Make the folder `parent/YYYYMMDD_HHMMSS-name`, with a number appended where that exists already.

    Raises:
        BookError: it cannot be made.
    """
    parent = make_folder(parent)
    remove_leftovers(*parent.glob("????????_??????-*/**/"))  # of others like it, whose writers were killed
    stamp = f"{datetime.datetime.now():%Y%m%d_%H%M%S}-{name}"
    for suffix in ("", *(f"-{number}" for number in range(2, 100))):
        try:
            (parent / (stamp + suffix)).mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise BookError(f"cannot make a folder in {parent} ({error.strerror}): choose another folder") from None
        return parent / (stamp + suffix)
    raise BookError(f"{parent} has too many folders that begin with {stamp}: choose another folder")


def remove_leftovers(*folders: Path, age: float = FORGOTTEN) -> None:
    """Remove the temporary files and folders that killed writers left in folders; what cannot be removed stays.

    Args:
        folders: those that are not there do not matter.
        age: seconds since anything was written into a file that is removed. 0 is for who alone writes there.
    """
    for folder in folders:
        for leftover in Path(folder).glob(f"{WRITING}*"):
            with contextlib.suppress(OSError):  # another process may just have been quicker
                touched = max(part.lstat().st_mtime for part in (leftover, *leftover.rglob("*")))
                if time.time() - touched < age:
                    continue
                if leftover.is_dir():
                    shutil.rmtree(leftover)
                else:
                    leftover.unlink()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
