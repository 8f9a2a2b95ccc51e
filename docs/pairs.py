"""Refuse to write over a notebook that was changed by itself: `python docs/pairs.py notebooks/NN_name.py ...`.

A chapter is a pair: NN_name.py, from which everything is made, and NN_name.ipynb, its executed copy. JupyterLab keeps
both the same; another editor changes one of them. What is changed in the source comes into the copy; what is changed in
the copy alone would be lost.
"""

import sys
from pathlib import Path

import jupytext


def cells(path: Path) -> list[tuple[str, str]]:
    """Kind and text of each cell."""
    return [(cell.cell_type, cell.source.strip()) for cell in jupytext.read(path).cells]


def changed_alone(source: Path) -> bool:
    """Whether the copy of this source says something else, and was written after it."""
    copy = source.with_suffix(".ipynb")
    return copy.is_file() and copy.stat().st_mtime > source.stat().st_mtime and cells(copy) != cells(source)


if __name__ == "__main__":
    for source in map(Path, sys.argv[1:]):
        if changed_alone(source):
            copy = source.with_suffix(".ipynb")
            sys.exit(
                f"error: {copy} is newer than {source.name} and says something else: take it over "
                f"(.venv/bin/jupytext --sync {copy}), or throw it away (git checkout {copy})"
            )
