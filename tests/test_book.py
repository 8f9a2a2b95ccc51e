"""Setting up, building and testing the book, with make and without."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_book import book
from diffusion_book.system.errors import BookError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def copy(tmp_path) -> book.Book:
    """A book of two chapters, and an environment with nothing in it."""
    for name in book.REQUIREMENTS:
        (tmp_path / name).touch()
    for folder in ("notebooks", "docs", "diffusion_book"):
        (tmp_path / folder).mkdir()
    (tmp_path / "diffusion_book" / "__init__.py").touch()
    for chapter in ("01_one", "02_two"):
        (tmp_path / "notebooks" / f"{chapter}.py").touch()
    return book.Book(tmp_path, tmp_path / "env", tmp_path / "_build", tmp_path / "notebooks")


@pytest.fixture
def ran(monkeypatch) -> list[list[str]]:
    """The commands that would be run; each of them makes what it is asked to write."""
    commands = []

    def run(command, **options):
        commands.append(list(map(str, command)))
        if "--output" in command:
            Path(command[command.index("--output") + 1]).touch()
        return subprocess.CompletedProcess(command, 0, stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_make_hands_every_target_over():
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(re.search(r"^TARGETS := (.*)$", rules, flags=re.MULTILINE)[1].split()) == set(book.TARGETS)
    shown = subprocess.run(["make", "-n", *book.TARGETS], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"-m diffusion_book\.book (\w+)", shown) == list(book.TARGETS)


def test_variables_of_make_reach_it(tmp_path):
    asked = ["make", "site", f"BUILD={tmp_path}", f"VENV={sys.prefix}", "NOTEBOOKS=/none", "AS_IS=1"]
    ran = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert re.search(r"error: no executed chapter /none/\w+.ipynb: make book", ran.stderr)
    assert "Error 2" in ran.stderr
    assert (tmp_path / "source").is_dir()


def test_it_needs_nothing_but_python():
    # -S: without site-packages
    ran = subprocess.run([sys.executable, "-S", "-m", "diffusion_book.book", "help"], cwd=ROOT, capture_output=True)
    assert ran.returncode == 0, ran.stderr
    for target in ("setup", "book", "lab", "test"):
        assert re.search(rf"^  make {target} +\w", ran.stdout.decode(), flags=re.MULTILINE)


@pytest.mark.parametrize("uv", [None, "/usr/bin/uv"])
def test_setup_makes_the_environment_once(copy, ran, monkeypatch, uv):
    monkeypatch.setattr(book.shutil, "which", lambda name: uv if name == "uv" else None)
    copy.venv.mkdir()
    book.setup(copy)
    made, installed = ran
    assert "venv" in made
    assert str(copy.venv) == made[-1]
    assert installed[-4:] == ["--constraint", "constraints.txt", "--editable", ".[book,dev]"]
    assert installed[0] == (uv or copy.program("python"))
    book.setup(copy)
    assert len(ran) == 2
    os.utime(copy.root / "constraints.txt", (2e9, 2e9))
    book.setup(copy)
    assert len(ran) > 2


def test_a_chapter_is_executed_again_when_it_or_the_library_changed(copy, ran):
    book.execute(copy)
    assert {Path(command[-1]).name for command in ran} >= {"01_one.py", "02_two.py"}
    assert {path.name for path in (copy.build / "chapters").iterdir()} == {"01_one.ipynb", "02_two.ipynb"}
    ran.clear()
    book.execute(copy)
    assert ran == []
    os.utime(copy.root / "notebooks" / "02_two.py", (2e9, 2e9))
    book.execute(copy)
    assert len(ran) == 2
    assert all("02_two" in " ".join(command) for command in ran)
    with pytest.raises(BookError, match="no chapter '03': give some of 01_one, 02_two"):
        book.execute(dataclasses.replace(copy, words=["03"]))


def test_a_chapter_that_fails_leaves_no_executed_copy(copy, ran, monkeypatch):
    succeed = subprocess.run

    def fail(command, **options):
        ended = succeed(command, **options)
        ended.returncode = int("--execute" in command)
        return ended

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(SystemExit) as ended:
        book.execute(copy)
    assert ended.value.code == 1
    assert not list((copy.build / "chapters").glob("0?_???.ipynb"))


@pytest.mark.parametrize("target", ["book", "notebooks", "format"])
def test_whatever_writes_notebooks_looks_at_them_first(copy, ran, monkeypatch, target):
    def changed(command, **options):
        ran.append(command)
        return subprocess.CompletedProcess(command, int("docs/pairs.py" in command))

    monkeypatch.setattr(subprocess, "run", changed)
    with pytest.raises(SystemExit):
        book.TARGETS[target](copy)
    assert len(ran) == 1


def test_elsewhere_it_says_where_to_go(tmp_path):
    command = [sys.executable, "-m", "diffusion_book.book", "test"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert ran.returncode == 2
    assert "is not the folder of the book: go to its clone" in ran.stderr
