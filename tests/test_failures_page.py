"""The page of failures that were tried names tests that exist, and all of those that were written for it."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TEXT = (TESTS.parent / "docs" / "failures.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(test_\w+\.py)::(test_\w+)`", TEXT)
WRITTEN_FOR_IT = ("test_nothing_lost.py", "test_interrupted.py", "test_hostile.py")


def names_in(file: str) -> set[str]:
    """The names of the tests in a file."""
    functions = ast.parse((TESTS / file).read_text(encoding="utf-8")).body
    return {each.name for each in functions if isinstance(each, ast.FunctionDef) and each.name.startswith("test_")}


def test_every_row_names_its_test():
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith("| Tried")]
    assert len(rows) > 30
    assert all(re.search(r"`test_\w+\.py::test_\w+` \|$", row) for row in rows)


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_the_tests_exist(file):
    assert {name for other, name in NAMED if other == file} <= names_in(file)


@pytest.mark.parametrize("file", WRITTEN_FOR_IT)
def test_no_test_that_was_written_for_it_is_left_out(file):
    assert names_in(file) <= {name for other, name in NAMED if other == file}
