"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_book.system.errors import BookError

if TYPE_CHECKING:
    from torch import Tensor

WRITING = ".writing-"  # how the names of temporary files begin
STREAMS = ("/dev/std", "/dev/fd/", "/proc/")
"""how the names begin under which a process finds what it has open"""
FORGOTTEN = 3600.0  # seconds after which a temporary file that nobody has touched is that of a writer who was killed


def names_a_path(word: str) -> bool:
    """Whether a word is the path of something: it says so itself, or something of this name is here."""
    return "/" in word or os.sep in word or os.path.exists(word)


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Have `write` fill a temporary file beside `path`, then move it into place in one step.

    Whatever interrupts it, `path` holds either what it held before or all of the new content. A process that is
    killed leaves its temporary file behind; whoever writes into the same folder an hour later removes it. A link stays
    one: the file it points to is replaced. A device or a pipe stays what it is, and is given the content.

    Args:
        path: the file to write; its folder is made if it is missing.
        write: is called with the temporary path, which ends like `path`.

    Raises:
        BookError: the file or its folder cannot be written, or the disk is full.
    """
    path = Path(path)
    _refuse_no_file(path)
    if _is_stream(path):
        _write_through(path, write)
        return path
    place = Path(os.path.realpath(path))
    make_folder(place.parent)
    remove_leftovers(place.parent)
    try:
        descriptor, name = tempfile.mkstemp(dir=place.parent, prefix=f"{WRITING}{place.stem}-", suffix=place.suffix)
    except (OSError, ValueError) as error:  # ValueError: no file can have such a name
        raise BookError(f"cannot write {path} ({_reason(error)}): choose another folder") from None
    os.close(descriptor)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(place)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def check_file(path: str | Path) -> None:
    """Refuse a file that could not be written in the end; nothing is made.

    Raises:
        BookError: it names a folder or nothing, or the folder for it cannot be written.
    """
    path = Path(path)
    _refuse_no_file(path)
    if not _is_stream(path):
        check_folder(Path(os.path.realpath(path)).parent)


def check_folder(path: str | Path) -> None:
    """Refuse a folder that could not be made, or in which nothing could be written; nothing is made.

    Raises:
        BookError: so it is.
    """
    path = Path(path)
    try:
        nearest = next(folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder))
        with tempfile.TemporaryFile(dir=nearest, prefix=WRITING):
            pass
    except (OSError, ValueError) as error:
        what = "write to" if os.path.isdir(path) else "make"
        raise BookError(f"cannot {what} the folder {path} ({_reason(error)}): choose another folder") from None


def _refuse_no_file(path: Path) -> None:
    if str(path) == "-":
        raise BookError("- is no file: give a name (/dev/stdout is the terminal)")
    if os.path.isdir(path) or not path.name:
        raise BookError(f"{path} is a folder: give the name of a file in it")


def _is_stream(path: Path) -> bool:
    """Whether it is a device, a pipe, or what a process has open: what is written goes through, nothing is replaced."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) or os.path.abspath(path).startswith(STREAMS)


def _write_through(path: Path, write: Callable[[Path], object]) -> None:
    if path.is_block_device() or path.is_socket():
        raise BookError(f"{path} is a disk or a socket: give the name of a file")
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / f"{path.stem}{path.suffix}"
        try:
            write(temporary)
            with path.open("ab") as file:
                file.write(temporary.read_bytes())
        except OSError as error:
            raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: OSError) -> BookError:
    """The line for an error in writing, with the remedy that fits its cause."""
    if error.errno is None:  # not the system's error: a library calls its own ones so too
        return BookError(f"cannot write {path}: {_reason(error)}")
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "free some space or choose another folder" if full else "choose another folder"
    return BookError(f"cannot write {path} ({_reason(error)}): {remedy}")


LOCK = ".lock"
"""the file in a folder that says who alone writes there; it means nothing once its process is gone"""


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """While inside, no other process can be the writer of this folder.

    The system holds the lock: that of a process that was killed is free.

    Raises:
        BookError: another process is its writer, or the folder cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path = folder / LOCK
    while True:
        try:
            file = path.open("w")  # empty, so that a full disk has room for it
        except OSError as error:
            raise BookError(f"cannot write to the folder {folder} ({_reason(error)}): choose another folder") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BookError(f"another process writes to {folder}: wait for it, or stop it") from None
            except OSError:  # a file system without locks
                yield
                return
            try:
                same = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except FileNotFoundError:
                same = False
            if not same:  # its last holder has just removed it
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


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
    for other in parent.glob("????????_??????-*"):  # whose writers were killed; links are not followed
        if not other.is_symlink():
            remove_leftovers(*(Path(inside) for inside, _, _ in os.walk(other)))
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
                inside = () if leftover.is_symlink() else leftover.rglob("*")
                touched = max(part.lstat().st_mtime for part in (leftover, *inside))
                if time.time() - touched < age:
                    continue
                if leftover.is_dir() and not leftover.is_symlink():
                    shutil.rmtree(leftover)
                else:
                    leftover.unlink()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
