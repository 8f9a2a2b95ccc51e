"""Where the data sets come from: files that are there, a download, scikit-learn's digits."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import socket
import tempfile
import urllib.error
from pathlib import Path

import torch
import torch.nn.functional as F

from diffusion_book.data.dataset import CROP_SIZE, Dataset
from diffusion_book.data.idx import FILES, find, read
from diffusion_book.data.own import load_own
from diffusion_book.system.caches import cache_folder
from diffusion_book.system.errors import BookError, choose
from diffusion_book.system.files import WRITING, make_folder, names_a_path, remove_leftovers
from diffusion_book.system.streams import say_once

DOWNLOAD_TIMEOUT = 30.0  # seconds without a byte before a download counts as failed

TORCHVISION_NAMES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
NAMES = ("auto", *TORCHVISION_NAMES, "digits")
SYSTEM = Path("/usr/share/datasets")
"""where packages of the system put data sets, a folder each by the book's name; Debian's dataset-fashion-mnist does"""
HASHES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""SHA-256 of MNIST's unpacked files"""
MNIST_SIZES = {"train": 60_000, "test": 10_000}


def load(
    name: str | Path = "auto",
    split: str = "train",
    *,
    root: str | Path | None = None,
    image_size: int = CROP_SIZE,
    channels: int = 1,
) -> Dataset:
    """Load a data set whole.

    Args:
        name: "mnist", "fashion-mnist", "kmnist", "digits" or "auto"; or a folder of your own pictures, or an .npz of
            arrays (see `own.load_own`). "auto" is MNIST from `root`
            or by download, and where neither can be had, "digits" with a notice on stderr, once a process.
            "digits" comes with scikit-learn: 1,797 pictures of 8 x 8 pixels, resized.
        split: "train" or "test".
        root: a torchvision root, the folder that holds `MNIST/raw`; MNIST's four files are found in `MNIST`, in `raw`
            and beside each other too, and packed as .gz. Default: `data_folder()`. What it lacks is looked for in `SYSTEM`
            before it is downloaded.
        image_size, channels: of pictures of your own: 28, 32 or 64, and 1 (grey) or 3 (colour). The others are 28 x 28
            and grey.

    Returns:
        uint8 pictures (N, 1, 28, 28), or in the form that was asked for, and int64 labels (N,), on the CPU.

    Raises:
        BookError: the name or split is unknown, or has no pictures in this form, or the files are missing, damaged, of another size or cannot be
            downloaded; the one line says which, and what to do. Where files are, "auto" takes nothing else.
    """
    choose("split", split, dict.fromkeys(("train", "test")))
    if is_place(name):
        return load_own(name, split, image_size, channels)
    choose("data set", name, dict.fromkeys((*NAMES, "or a folder or .npz of your own")))
    if (image_size, channels) != (CROP_SIZE, 1):
        raise BookError(
            f"the pictures of '{name}' are {CROP_SIZE} x {CROP_SIZE} and grey: leave out --image_size and --channels, "
            "or give a folder or .npz of your own"
        )
    if name == "digits":
        return _load_digits(split)
    root = Path(root or data_folder()).expanduser()
    if name != "auto":
        return _load_files(name, split, root)
    try:
        return _load_files("mnist", split, root)
    except BookError as error:
        if _find("mnist", root):
            raise  # who has files wants them, and no others
        reason = str(error).replace(f"{Path.home()}/", "~/")  # the notice ends up in notebooks that others read
        say_once(f"notice: no MNIST ({reason}); using scikit-learn's 1,797 small digits instead")
        return _load_digits(split)


def is_place(name: str | Path) -> bool:
    """Whether a data set is named by the place of its files. The names of the book's sets are none, whatever lies here."""
    if not isinstance(name, str | Path) or name in NAMES:
        return False
    text = str(name)
    return isinstance(name, Path) or text.endswith(".npz") or names_a_path(text)


def data_folder() -> Path:
    """The torchvision root: `$DIFFUSION_BOOK_DATA`, else `data` in the cache folder."""
    return Path(os.environ.get("DIFFUSION_BOOK_DATA") or cache_folder() / "data").expanduser()


def _find(name: str, root: Path) -> dict[str, Path]:
    kind = TORCHVISION_NAMES[name]
    others = {other for other in TORCHVISION_NAMES.values() if other != kind}
    return find(root, kind, name == "mnist" and not others & set(root.parts[-2:])) or find(SYSTEM, name, False)


def _load_files(name: str, split: str, root: Path) -> Dataset:
    folder = root / TORCHVISION_NAMES[name] / "raw"
    bring = (
        f"put its four files into {folder}, or point DIFFUSION_BOOK_DATA at a folder that has {folder.parent.name}/raw"
    )
    if not _find(name, root):
        _download(name, root, bring, f"try again, {bring}")
    files = _find(name, root)
    lacking = [file for file in FILES[split] if file not in files]
    if lacking:
        here = next(iter(files.values())).parent
        raise BookError(f"{here} has files of {name}, but not {' and '.join(lacking)}: put all four there")
    paths = [files[file] for file in FILES[split]]
    anew = f"bring it anew, or move {paths[0].parent} elsewhere and try again"
    try:
        (images, content), (labels, named) = (read(path) for path in paths)
    except BookError as error:
        raise BookError(f"{error}: {anew}") from None
    if images.ndim < 3 or labels.ndim != 1 or len(images) != len(labels):
        raise BookError(
            f"{paths[0]} is damaged, or {paths[1]} (pictures {tuple(images.shape)}, labels {tuple(labels.shape)}): {anew}"
        )
    if images.shape[1:] != (CROP_SIZE, CROP_SIZE):
        size = " x ".join(map(str, images.shape[1:]))
        raise BookError(
            f"the pictures in {paths[0]} have {size} pixels: the book's are {CROP_SIZE} x {CROP_SIZE}, of one channel; "
            "resize them, and store them so in another folder"
        )
    if name == "mnist" and len(images) == MNIST_SIZES[split]:  # other numbers are pictures of your own
        for path, file, bytes_ in zip(paths, FILES[split], (content, named), strict=True):
            _check_hash(path, file, bytes_, anew)
    return Dataset(name, images.unsqueeze(1), labels.long())  # (N, 28, 28) -> (N, 1, 28, 28)


def _check_hash(path: Path, file: str, content: bytes, anew: str) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != HASHES[file]:
        raise BookError(
            f"{path} is damaged (hash {digest[:12]}, not {HASHES[file][:12]}): {anew}; if it holds pictures of your own, "
            "as many as MNIST's, leave one out"
        )


def _download(name: str, root: Path, bring: str, remedy: str) -> None:
    """torchvision's own download, with a time-out, and with one line for each way it can fail.

    It goes to a folder of its own, so that one that is cut off, or that runs twice at once, leaves no half of a file.
    """
    try:
        import torchvision.datasets
    except ImportError:
        raise BookError(
            f"{name} is not here, and torchvision, which downloads it, is not installed: pip install torchvision, or {bring}"
        ) from None
    kind = getattr(torchvision.datasets, TORCHVISION_NAMES[name])
    stood_still = f"the download of {name} stood still for {DOWNLOAD_TIMEOUT:.0f} s: try again, {bring}"
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    remove_leftovers(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=WRITING) as temporary:
            kind(temporary, download=True)
            try:  # all at once: who is killed leaves no part of it
                (Path(temporary) / kind.__name__).rename(root / kind.__name__)
            except OSError:
                if not find(root, kind.__name__, False):  # another process was not quicker: a folder is in the way
                    make_folder(root / kind.__name__ / "raw")
                    (Path(temporary) / kind.__name__ / "raw").replace(root / kind.__name__ / "raw")
    except PermissionError:
        raise BookError(
            f"cannot write {name} to {root}: point DIFFUSION_BOOK_DATA at a folder that you may write"
        ) from None
    except TimeoutError:
        raise BookError(stood_still) from None
    except BookError:
        raise
    except (
        RuntimeError,
        ValueError,
        EOFError,
        urllib.error.URLError,
        http.client.HTTPException,
        ConnectionError,
    ) as error:
        reason = _one_line(error)  # torchvision's RuntimeError reports what each mirror said
        if "timed out" in reason:
            raise BookError(stood_still) from None
        if "corrupted" in reason or isinstance(error, (ValueError, EOFError)):
            raise BookError(f"{name} came down damaged ({reason}): {remedy}") from None
        raise BookError(f"{name} cannot be downloaded ({reason}): connect to a network, {bring}") from None
    except OSError as error:
        remedy = "free some space" if error.errno == errno.ENOSPC else "choose another folder"
        raise BookError(f"{name} cannot be stored in {root} ({_one_line(error)}): {remedy}, {bring}") from None
    finally:
        socket.setdefaulttimeout(timeout)


def _one_line(error: Exception) -> str:
    """What an error says, on one line; of a report about several mirrors, each reason once."""
    lines = [line.strip(" .<>") for line in str(error).splitlines()]
    reasons = [line for line in lines if line and not line.startswith(("Error downloading", "Tried "))]
    return "; ".join(dict.fromkeys(reasons)) or type(error).__name__


def _load_digits(split: str) -> Dataset:
    """scikit-learn's digits: every sixth picture is for testing, the others for training."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16  # (1797, 1, 8, 8) in [0, 1]
    # The strokes fill their 8 x 8 square; MNIST's fill 20 of 28 pixels. Resize to 20, then pad.
    images = F.interpolate(images, size=(20, 20), mode="bicubic", align_corners=False)
    images = F.pad((images.clamp(0, 1) * 255).round().to(torch.uint8), [4, 4, 4, 4])
    labels = torch.from_numpy(bunch.target).long()
    test = torch.arange(len(labels)) % 6 == 0
    chosen = test if split == "test" else ~test
    return Dataset("digits", images[chosen], labels[chosen])
