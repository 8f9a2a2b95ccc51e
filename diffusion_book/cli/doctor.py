"""`diffusion-book doctor`: is everything here that the book needs?"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Iterator

from diffusion_book.system.errors import BookError
from diffusion_book.system.versions import too_old

LIBRARY = (
    "torch", "numpy", "packaging", "scikit-learn", "matplotlib", "pillow", "psutil", "safetensors", "tqdm", "tyro", "accelerate",
)  # fmt: skip
BOOK = ("jupyterlab", "jupytext", "ipywidgets", "sphinx", "myst-nb")  # for the chapters and the site
PROGRAMS = ("screen", "chromium")  # nothing needs them

Finding = tuple[str, str]
"""("ok", "warn" or "fail", what was found and what to do)"""


def main() -> int:
    """Run the command: 1 when something that is needed is missing."""
    failed = False
    for check in (python, packages, torch_pair, devices, mnist, shipped_weights, cache, programs):
        for level, text in check():
            print(f"{level:5}{text}", flush=True)
            failed |= level == "fail"
    return int(failed)


def python() -> Iterator[Finding]:
    """Is Python new enough?"""
    enough = sys.version_info >= (3, 11)
    yield (
        ("ok", f"Python {platform.python_version()}")
        if enough
        else ("fail", f"Python {platform.python_version()} is too old: install 3.11 or newer")
    )


def packages() -> Iterator[Finding]:
    """Are the packages installed, and new enough?"""
    for level, names, what, remedy in (
        ("fail", LIBRARY, "library", "pip install -e ."),
        ("warn", BOOK, "chapters and site", "pip install -e '.[book]'"),
    ):
        versions = {name: version(name) for name in names}
        missing = [name for name in names if versions[name] is None]
        if missing:
            yield level, f"packages of the {what} are missing: {', '.join(missing)}: {remedy}"
        else:
            yield "ok", f"packages of the {what}: {', '.join(f'{name} {versions[name]}' for name in names)}"
    for line in too_old():
        if version(line.split()[0]):  # what is missing was told above
            yield "fail", f"{line}: pip install --upgrade diffusion-book"


def version(package: str) -> str | None:
    """Of an installed package; None where it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def torch_pair() -> Iterator[Finding]:
    """Do torch and torchvision fit together? A pair from two builds fails on import."""
    names = ["torch", *(["torchvision"] if version("torchvision") else [])]  # which only downloads need
    try:
        for name in names:
            importlib.import_module(name)
    except (ImportError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        yield "fail", f"{' and '.join(names)} cannot be imported ({reason}): install anew, both from one index"
    else:
        yield "ok", f"{' and '.join(names)} can be imported"


def devices() -> Iterator[Finding]:
    """Which device and precision does "auto" mean here, and why?"""
    try:
        import torch

        from diffusion_book.system.devices import resolve_device, resolve_precision
        from diffusion_book.system.machine import cpu_name
    except (ImportError, RuntimeError, OSError):
        return  # torch_pair told
    device = resolve_device("auto")
    gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if gpu else f"{cpu_name()}, {torch.get_num_threads()} threads"
    yield "ok", f"--device auto is {device} ({name}): {'the first GPU' if gpu else 'no GPU was found'}"
    native = resolve_precision("auto", device) == torch.bfloat16
    reason = "multiplies bf16 natively" if native else "would have to emulate bf16"
    yield "ok", f"--precision auto is {'bf16' if native else 'fp32'}: this {'GPU' if gpu else 'CPU'} {reason}"


def mnist() -> Iterator[Finding]:
    """Is the data here, and whole? Nothing is downloaded."""
    from diffusion_book import data
    from diffusion_book.data import idx

    folder = data.data_folder()
    if not idx.find(folder, "MNIST", others=True):
        yield (
            "warn",
            f"no MNIST in {folder}: it is downloaded when it is first needed, and where that fails, scikit-learn's small "
            "digits are used; or point DIFFUSION_BOOK_DATA at the folder that holds MNIST/raw",
        )
        return
    try:
        counts = [f"{len(data.load('mnist', split)):,} {split}" for split in ("train", "test")]
        yield "ok", f"MNIST in {folder}: {' and '.join(counts)} pictures"
    except BookError as error:
        yield "fail", str(error)


def shipped_weights() -> Iterator[Finding]:
    """Are the weights those that their cards describe?"""
    from diffusion_book.models import weights

    names = weights.shipped()
    if not names:
        yield "fail", f"no weights in {weights.FOLDER}: install the book again, or diffusion-book pretrain --all"
    strangers: list[str] = []
    with contextlib.suppress(BookError):  # told below
        strangers = weights.strangers(weights.FOLDER)
    for name in names:
        try:
            weights.read_weights(name, weights.FOLDER)
            sha256 = weights.read_card(name, weights.FOLDER)["sha256"]
        except BookError as error:
            yield "fail", str(error)
            continue
        if name in strangers:
            needs = "classifiers" if name == "reference" else "VAE"
            again = f"install the book again, or diffusion-book pretrain {name} --replace"
            yield "fail", f"weights {name}: made with another {needs} than is here: {again}"
        else:
            yield "ok", f"weights {name}: sha256 {sha256[:12]}, as on the card"


def cache() -> Iterator[Finding]:
    """Can downloads be stored?"""
    from diffusion_book.system.caches import cache_folder
    from diffusion_book.system.files import make_folder

    try:
        yield "ok", f"the cache folder {make_folder(cache_folder())} can be written"
    except BookError:
        yield (
            "warn",
            f"the cache folder {cache_folder()} cannot be written: point XDG_CACHE_HOME or DIFFUSION_BOOK_DATA at another",
        )


def programs() -> Iterator[Finding]:
    """Which programs that some like to have are here?"""
    states = [f"{name} {'is here' if shutil.which(name) else 'is not here'}" for name in PROGRAMS]
    yield "ok", f"optional programs, needed by nothing: {', '.join(states)}"
