"""The wheel alone, with what it requires and nothing else, is a library: it loads, samples, generates and evaluates."""

import importlib.metadata
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
MEGABYTES = 60  # most of them weights

# Hides every package that the wheel does not require, as if it were not installed.
HIDE = """
import importlib.abc, sys
hidden = set({hidden!r})

class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hide())
"""

LIBRARY = """
import diffusion_book
from diffusion_book.evaluation.measures import measure

assert "site" in diffusion_book.__file__, diffusion_book.__file__
pipe = diffusion_book.load("latent-rf-class-one-step", device="cpu")
images = pipe.sample(100, seed=0)
assert images.shape == (100, 1, 28, 28)
assert measure(images).doubtful < 0.5
try:
    diffusion_book.data.load("mnist", root="nowhere")
except diffusion_book.BookError as error:
    assert "pip install torchvision" in str(error), error
else:
    raise AssertionError("MNIST came from nowhere")
"""


def needed(lines: list[str] | None) -> list[str]:
    """Names of the packages that a list of requirements asks for here, without extras."""
    requirements = map(Requirement, lines or [])
    return [each.name for each in requirements if not each.marker or each.marker.evaluate({"extra": ""})]


def required(lines: list[str]) -> set[str]:
    """Names of all packages that come with these requirements, directly or through others."""
    found, asked = set(), needed(lines)
    while asked:
        name = canonicalize_name(asked.pop())
        if name in found:
            continue
        found.add(name)
        try:
            asked += needed(importlib.metadata.requires(name))
        except importlib.metadata.PackageNotFoundError:  # of another system
            continue
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    """The environment of a process that has the wheel, as pip would unpack it, and what it requires."""
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys, setuptools.build_meta as backend; print(backend.build_wheel(sys.argv[1]))"
    copy = folder / "source"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "diffusion_book"):
        (copy / name).symlink_to(ROOT / name)
    ran = subprocess.run([sys.executable, "-c", build, str(folder)], cwd=copy, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    wheel = folder / ran.stdout.splitlines()[-1]
    assert wheel.stat().st_size < MEGABYTES * 2**20
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    (info,) = (folder / "site").glob("*.dist-info")
    ours = required(importlib.metadata.Distribution.at(info).requires) | {"diffusion-book"}
    modules = importlib.metadata.packages_distributions()
    hidden = [module for module, names in modules.items() if not {canonicalize_name(name) for name in names} & ours]
    assert {"torchvision", "jupyterlab", "umap", "IPython", "diffusers", "pytest"} <= set(hidden)
    assert "torch" not in hidden
    (folder / "site" / "sitecustomize.py").write_text(HIDE.format(hidden=sorted(hidden)), encoding="utf-8")
    return {**os.environ, "PYTHONPATH": str(folder / "site"), "XDG_CACHE_HOME": str(folder / "cache")}


def run(installed: dict[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run Python far from the book's own folder."""
    command = [sys.executable, *arguments]
    ran = subprocess.run(command, cwd=folder, env=installed, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran


def test_the_library_works_without_the_extras(installed, tmp_path):
    run(installed, tmp_path, "-c", LIBRARY)


def test_the_commands_work_without_the_extras(installed, tmp_path):
    command = ("-m", "diffusion_book")
    run(installed, tmp_path, *command, "generate", "latent-rf-class-one-step", "--grid-only", "--device", "cpu")
    assert list(tmp_path.glob("generated_samples/*/grid.p*"))
    few = ("--num-samples", "20", "--device", "cpu")
    ran = run(installed, tmp_path, *command, "evaluate", "latent-rf-class-one-step", *few)
    assert "doubtful" in ran.stdout
    assert list(tmp_path.glob("evaluations/*/*"))
