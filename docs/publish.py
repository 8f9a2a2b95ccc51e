"""Build the site of the newest sources and of every version that has a tag, v1.0 and the like, side by side.

    python docs/publish.py https://example.org/book published

makes published/latest, published/v1.0 ..., their list published/versions.json, from which each page offers the others,
and a start page that leads to the latest.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
LATEST = "latest"
START = """<!doctype html><html lang="en"><meta charset="utf-8"><title>The Diffusion Book</title>
<meta http-equiv="refresh" content="0; url={name}/index.html"><a href="{name}/index.html">The Diffusion Book</a></html>
"""


def tags(root: Path = ROOT) -> list[str]:
    """The versions that have a tag, the newest first."""
    listed = subprocess.run(
        ["git", "tag", "--list", "v*", "--sort=-v:refname"], cwd=root, check=True, capture_output=True, text=True
    )
    return listed.stdout.split()


def address(base: str, name: str) -> str:
    """Where a version stands."""
    return f"{base.rstrip('/')}/{name}/"


def listing(base: str, names: list[str]) -> list[dict[str, str]]:
    """What the theme's version switcher reads."""
    return [{"name": name, "version": name, "url": address(base, name)} for name in names]


def build(sources: Path, target: Path, base: str, name: str) -> None:
    """The site of these sources, for its place below the base address."""
    variables = {"BOOK_URL": address(base, name), "BOOK_VERSION": name}
    command = (sys.executable, "-m", "diffusion_book.book", "site", "--as-is", "--build")
    with tempfile.TemporaryDirectory() as scratch:  # much lies in it that is not for readers
        subprocess.run([*command, scratch], cwd=sources, env={**os.environ, **variables}, check=True)
        shutil.move(Path(scratch) / "html", target)


def publish(base: str, folder: Path, root: Path = ROOT, build: Callable[..., None] = build) -> list[str]:
    """Build all versions into a folder; gives their names."""
    folder.mkdir(parents=True)
    folder, names = folder.resolve(), [LATEST, *tags(root)]
    build(root, folder / LATEST, base, LATEST)
    for name in names[1:]:
        with tempfile.TemporaryDirectory() as scratch:
            sources = Path(scratch) / name
            subprocess.run(["git", "worktree", "add", "--quiet", "--detach", sources, name], cwd=root, check=True)
            build(sources, folder / name, base, name)
            subprocess.run(["git", "worktree", "remove", "--force", sources], cwd=root, check=True)
    (folder / "versions.json").write_text(json.dumps(listing(base, names), indent=2) + "\n", encoding="utf-8")
    (folder / "index.html").write_text(START.format(name=LATEST), encoding="utf-8")
    (folder / ".nojekyll").touch()
    return names


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("base", help="address of the place where all versions will stand")
    parser.add_argument("folder", type=Path, help="where they are built; it must not be there yet")
    options = parser.parse_args()
    print(*publish(options.base, options.folder))
