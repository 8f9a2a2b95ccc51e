"""Where the data sets come from: files that are there, a download, scikit-learn's digits."""

from __future__ import annotations

import functools
import hashlib
import http.client
import os
import socket
import sys
import tempfile
import urllib.error
from pathlib import Path

import torch
import torch.nn.functional as F

from diffusion_book.data.dataset import CROP_SIZE, Dataset
from diffusion_book.system.caches import cache_folder
from diffusion_book.system.errors import BookError, choose
from diffusion_book.system.files import WRITING, make_folder, remove_leftovers

DOWNLOAD_TIMEOUT = 30.0  # seconds without a byte before a download counts as failed

TORCHVISION_NAMES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
NAMES = ("auto", *TORCHVISION_NAMES, "digits")
HASHES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""SHA-256 of MNIST's unpacked files"""
MNIST_SIZES = {"train": 60_000, "test": 10_000}


def load(name: str = "auto", split: str = "train", *, root: str | Path | None = None) -> Dataset:
    """Load a data set whole.

    Args:
        name: "mnist", "fashion-mnist", "kmnist", "digits" or "auto". "auto" is MNIST from `root`
            or by download, and where neither can be had, "digits" with a notice on stderr, once a process.
            "digits" comes with scikit-learn: 1,797 pictures of 8 x 8 pixels, resized.
        split: "train" or "test".
        root: a torchvision root, the folder that holds `MNIST/raw`. Default: `data_folder()`.

    Returns:
        uint8 pictures (N, 1, 28, 28) and int64 labels (N,), on the CPU.

    Raises:
        BookError: the name or split is unknown, or the files are missing, damaged or cannot be
            downloaded; the one line says which, and what to do.
    """
    choose("data set", name, dict.fromkeys(NAMES))
    choose("split", split, dict.fromkeys(("train", "test")))
    if name == "digits":
        return _load_digits(split)
    root = Path(root or data_folder())
    if name != "auto":
        return _load_torchvision(name, split, root)
    try:
        return _load_torchvision("mnist", split, root)
    except BookError as error:
        reason = str(error).replace(f"{Path.home()}/", "~/")  # the notice ends up in notebooks that others read
        _say_once(f"notice: no MNIST ({reason}); using scikit-learn's 1,797 small digits instead")
        return _load_digits(split)


def data_folder() -> Path:
    """The torchvision root: `$DIFFUSION_BOOK_DATA`, else `data` in the cache folder."""
    return Path(os.environ.get("DIFFUSION_BOOK_DATA") or cache_folder() / "data")


@functools.cache
def _say_once(notice: str) -> None:
    print(notice, file=sys.stderr)


def _load_torchvision(name: str, split: str, root: Path) -> Dataset:
    import torchvision.datasets

    kind = getattr(torchvision.datasets, TORCHVISION_NAMES[name])
    folder = root / TORCHVISION_NAMES[name] / "raw"
    bring = (
        f"put its four files into {folder}, or point DIFFUSION_BOOK_DATA at a folder that has {folder.parent.name}/raw"
    )
    remedy = f"delete {folder} and try again, {bring}"
    if not all(os.path.isfile(folder / Path(file).stem) for file, _ in kind.resources):
        _download(kind, name, root, bring, remedy)
    try:
        files = kind(root, train=split == "train")
    except Exception as error:  # whatever torchvision stumbles over here, a damaged file is in its way
        raise BookError(f"{name} in {folder} is damaged ({_one_line(error)}): {remedy}") from None
    images, labels = files.data, files.targets
    if images.shape[1:] != (CROP_SIZE, CROP_SIZE) or len(images) != len(labels):
        raise BookError(f"{name} in {folder} is damaged (its shapes do not match): {remedy}")
    if name == "mnist" and len(images) == MNIST_SIZES[split]:  # other numbers are pictures of your own
        _check_hashes(folder, "train" if split == "train" else "t10k", remedy)
    return Dataset(name, images.unsqueeze(1).contiguous(), labels.long())  # (N, 28, 28) -> (N, 1, 28, 28)


def _check_hashes(folder: Path, prefix: str, remedy: str) -> None:
    for name in filter(lambda name: name.startswith(prefix), HASHES):
        found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if found != HASHES[name]:
            raise BookError(f"{folder / name} is damaged (hash {found[:12]}, not {HASHES[name][:12]}): {remedy}")


def _download(kind: type, name: str, root: Path, bring: str, remedy: str) -> None:
    """torchvision's own download, with a time-out, and with one line for each way it can fail.

    It goes to a folder of its own, so that one that is cut off, or that runs twice at once, leaves no half of a file.
    """
    stood_still = f"the download of {name} stood still for {DOWNLOAD_TIMEOUT:.0f} s: try again, {bring}"
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    remove_leftovers(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=WRITING) as temporary:
            kind(temporary, download=True)
            folder = make_folder(root / kind.__name__ / "raw")
            for file in (Path(temporary) / kind.__name__ / "raw").iterdir():
                file.replace(folder / file.name)
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
        raise BookError(f"{name} cannot be stored in {root} ({_one_line(error)}): free some space, {bring}") from None
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
