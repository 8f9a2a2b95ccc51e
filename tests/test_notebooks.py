"""The chapters: the two halves of each agree, and it is executed and whole."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
CHAPTERS = sorted(path.stem for path in NOTEBOOKS.glob("[0-9][0-9]_*.py"))
CHECK = "nbval-check-output"

every_chapter = pytest.mark.parametrize("chapter", CHAPTERS)


def executed(chapter: str):
    return nbformat.read(NOTEBOOKS / f"{chapter}.ipynb", as_version=4)


def code_cells(chapter: str) -> list:
    return [cell for cell in executed(chapter).cells if cell.cell_type == "code" and cell.source.strip()]


def texts(chapter: str) -> list[str]:
    return [cell.source for cell in jupytext.read(NOTEBOOKS / f"{chapter}.py").cells if cell.cell_type == "markdown"]


def outputs(chapter: str, kind: str) -> list:
    return [output for cell in code_cells(chapter) for output in cell.outputs if kind in output.get("data", {})]


@every_chapter
def test_pair_agrees(chapter):
    script, notebook = jupytext.read(NOTEBOOKS / f"{chapter}.py"), executed(chapter)
    for number, (ours, theirs) in enumerate(zip(script.cells, notebook.cells, strict=True)):
        assert (ours.cell_type, ours.source) == (theirs.cell_type, theirs.source), f"cell {number}: make notebooks"
        assert ours.metadata.get("tags") == theirs.metadata.get("tags"), f"cell {number}: make notebooks"


def test_a_notebook_that_was_changed_alone_is_not_written_over(tmp_path):
    """By hand or by another editor than JupyterLab, which keeps both halves the same."""
    source, copy = (tmp_path / f"02_ddim.{suffix}" for suffix in ("py", "ipynb"))
    source.write_bytes((NOTEBOOKS / source.name).read_bytes())
    jupytext.write(jupytext.read(source), copy)

    def check(newer):
        for path in (source, copy):
            os.utime(path, (1e9 + (path == newer),) * 2)
        command = [sys.executable, ROOT / "docs" / "pairs.py", source]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert ended.returncode == bool(ended.stderr)
        return ended.stderr

    assert check(newer=copy) == ""  # executed again, and nothing else
    copy.write_text(copy.read_text().replace("# DDIM: the same digits", "# DDIM: my digits"))
    line = check(newer=copy)
    assert line.startswith(f"error: {copy} is newer than 02_ddim.py and says something else: take it over")
    assert line.count("\n") == 1
    assert check(newer=source) == ""  # what is changed in the source comes into the copy


@every_chapter
def test_is_executed_in_order_without_errors_or_warnings(chapter):
    cells = code_cells(chapter)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            if output.output_type == "stream" and output.name == "stderr":
                assert "Warning" not in output.text, cell.source


@every_chapter
def test_is_small_and_names_its_kernel(chapter):
    assert (NOTEBOOKS / f"{chapter}.ipynb").stat().st_size < 2_000_000
    assert executed(chapter).metadata.kernelspec.name == "python3"
    assert jupytext.read(NOTEBOOKS / f"{chapter}.py").metadata.kernelspec.name == "python3"


@every_chapter
def test_shows_figures_and_compares_numbers(chapter):
    assert len(outputs(chapter, "image/png")) + len(outputs(chapter, "text/html")) >= 3
    compared = [cell for cell in code_cells(chapter) if CHECK in cell.metadata.get("tags", [])]
    assert compared, "no cell's output is compared"
    for cell in compared:
        assert cell.outputs, f"this cell has no output to compare: {cell.source}"
        assert not any("image/png" in output.get("data", {}) for output in cell.outputs), "a figure cannot be compared"


@every_chapter
def test_figures_are_numbered_in_order_and_the_text_refers_to_each(chapter):
    """A figure that is shown with a number: `show(picture, "1.3", ...)` of `viz.figures`."""
    cells = jupytext.read(NOTEBOOKS / f"{chapter}.py").cells
    numbers = []
    for cell in cells:
        if cell.cell_type == "code":
            calls = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call)]
            named = [call for call in calls if getattr(call.func, "id", "") == "show" and len(call.args) > 1]
            values = [getattr(call.args[1], "value", None) for call in named]  # None: not written out
            numbers += [value for value in values if re.fullmatch(r"\d+\.\d+", str(value))]
    assert numbers == [f"{int(chapter[:2])}.{count}" for count in range(1, len(numbers) + 1)]
    text = " ".join(" ".join(texts(chapter)).split())
    lists = re.findall(r"[Ff]igures? ((?:\d+\.\d+(?:, | and )?)+)", text)
    referred = {number for each in lists for number in re.findall(r"\d+\.\d+", each)}
    assert set(numbers) == referred


@every_chapter
def test_is_short_enough_for_one_sitting(chapter):
    """At most 3,500 words without exercises, references and what is folded away; a formula in a line is one word."""
    text = re.sub(r"<details>.*?</details>|\$\$.*?\$\$|```.*?```", "", "\n".join(texts(chapter)), flags=re.S)
    text = re.sub(r"\$[^$]+\$", "x", re.split(r"^## Exercises", text, flags=re.M)[0])
    assert 1000 < len(re.findall(r"\S*\w\S*", text)) <= 3500


@every_chapter
def test_begins_with_its_title(chapter):
    first = executed(chapter).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")


def test_every_chapter_is_in_the_table_of_contents():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    assert [file.removeprefix("notebooks/") for file in listed if file.startswith("notebooks/")] == CHAPTERS
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert re.findall(r"\(notebooks/(\w+)\.ipynb\)", index) == CHAPTERS
