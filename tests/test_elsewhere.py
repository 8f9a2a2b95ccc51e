"""The cell for a Jupyter without the book: it installs and goes on, or does nothing; and what is too old is named."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_book.system import versions

CELL = re.search(
    r"```python\n(.*?)```", (Path(__file__).parents[1] / "docs" / "elsewhere.md").read_text(encoding="utf-8"), re.DOTALL
)[1]


@pytest.fixture
def pip(monkeypatch) -> list[list[str]]:
    """In the place of programs: a list of what was to be run."""
    asked = []
    monkeypatch.setattr(subprocess, "run", lambda command, **options: asked.append(command))
    return asked


def test_where_the_book_is_installed_nothing_happens(pip, capsys):
    exec(CELL, {})
    assert pip == []
    assert capsys.readouterr().err == ""


def test_where_it_is_not_it_is_installed_and_the_cell_goes_on(tmp_path):
    """A new interpreter that cannot see the package until pip, or what stands for it, has brought it."""
    root = Path(__file__).parents[1]
    (tmp_path / "site").mkdir()
    before = f"""
import subprocess, sys
from pathlib import Path
sys.path[:] = [place for place in sys.path if not Path(place or ".", "diffusion_book").is_dir()]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__name__", "").lower()]
sys.path.insert(0, {str(tmp_path / "site")!r})
asked = []
def run(command, check):
    asked.append(command)
    Path({str(tmp_path / "site" / "diffusion_book")!r}).symlink_to({str(root / "diffusion_book")!r})
subprocess.run = run
import importlib.util
assert importlib.util.find_spec("diffusion_book") is None
"""
    after = """
assert asked == [[sys.executable, "-m", "pip", "install", "--quiet", "diffusion-book"]], asked
import diffusion_book
print("went on with", Path(diffusion_book.__file__).parts[-3])
"""
    ran = subprocess.run(
        [sys.executable, "-c", before + CELL + after], capture_output=True, text=True, cwd=tmp_path, env={"PATH": ""}
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "went on with site"


def test_an_old_python_is_named(pip, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 2))
    with pytest.raises(RuntimeError, match=r"needs Python 3\.11 or newer"):
        exec(CELL, {})
    assert pip == []


def test_versions_that_are_too_old_are_named_with_what_is_needed(monkeypatch, capsys):
    here = importlib.metadata.version("numpy")
    newest = f"numpy>={int(here.split('.')[0]) + 1}"
    asked = ["torch>=2.0", newest, "no-such-package-as-this>=3", "tqdm; extra == 'book'", "gone; python_version < '3'"]
    assert versions.too_old(asked) == [
        f"numpy {here} is installed, needed is {newest.removeprefix('numpy')}",
        "no-such-package-as-this is not installed, needed is >=3",
    ]
    assert versions.too_old() == []  # or the tests would not run
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [newest])
    versions.say_what_is_old()
    said = capsys.readouterr().err
    assert said.startswith(f"notice: numpy {here} is installed")
    assert said.count("\n") == 1
