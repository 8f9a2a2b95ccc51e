"""Modules of a package that are imported when they are first asked for by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from types import ModuleType


def submodules(package: str, path: Sequence[str]) -> Callable[[str], ModuleType]:
    """A `__getattr__` for a package: `package.name` is the module of that name, imported at that moment.

    Args:
        package: its `__name__`.
        path: its `__path__`.
    """

    def get(name: str) -> ModuleType:
        if any(module.name == name for module in pkgutil.iter_modules(path)):
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    return get
