"""Refuse to write over a notebook that was changed by itself: `python docs/pairs.py notebooks/NN_name.py ...`.

A chapter is a pair: NN_name.py, from which everything is made, and NN_name.ipynb, its executed copy. JupyterLab keeps
both the same; another editor changes one of them. What is changed in the source comes into the copy; what is changed in
the copy alone would be lost.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import jupytext


def cells(path: Path) -> list[tuple[str, str]]:
    """Kind and text of each cell."""
    return [(cell.cell_type, cell.source.strip()) for cell in jupytext.read(path).cells]


def changed_alone(source: Path) -> bool:
    """Whether the copy of this source says something else, and was written after it, by somebody who has not committed it."""
    copy = source.with_suffix(".ipynb")
    if not copy.is_file() or copy.stat().st_mtime <= source.stat().st_mtime or cells(copy) == cells(source):
        return False
    same = ["git", "diff", "--quiet", "HEAD", "--", copy.name]  # 0: as committed; else changed, or there is no git
    return shutil.which("git") is None or subprocess.run(same, cwd=copy.parent, capture_output=True).returncode != 0


if __name__ == "__main__":
    for source in map(Path, sys.argv[1:]):
        if changed_alone(source):
            copy = source.with_suffix(".ipynb")
            sys.exit(
                f"error: {copy} is newer than {source.name} and says something else: take it over "
                f"(.venv/bin/jupytext --sync {copy}), or throw it away (git checkout {copy})"
            )
