"""Whether the packages that are installed here are new enough."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterable

PACKAGE = "diffusion-book"


def too_old(requirements: Iterable[str] | None = None) -> list[str]:
    """What is required and is missing here, or older than it may be: a line each, with the version that is needed.

    Args:
        requirements: as `pyproject.toml` has them; default: those of the library itself, as it is installed.
    """
    from packaging.requirements import Requirement

    if requirements is None:
        try:
            requirements = importlib.metadata.requires(PACKAGE) or ()
        except importlib.metadata.PackageNotFoundError:  # it runs from a folder
            return []
    found = []
    for needed in map(Requirement, requirements):
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            here = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{needed.name} is not installed, needed is {needed.specifier or 'any version'}")
            continue
        if not needed.specifier.contains(here, prereleases=True):
            found.append(f"{needed.name} {here} is installed, needed is {needed.specifier}")
    return found


def say_what_is_old() -> None:
    """A notice on stderr for packages that are missing or too old, with the command that brings others."""
    lines = too_old()
    if lines:
        print(
            f"notice: {'; '.join(lines)}: pip install --upgrade {PACKAGE}, and restart the kernel",
            file=sys.stderr,
        )
