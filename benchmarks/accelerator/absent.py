"""Lets the package be imported where packages are missing that no measurement uses.

Input pipelines (grain), configs (ml_collections) and TensorBoard files (tensorboardX) are imported
with the package's steps; a rented machine may have none of them, and no registry. What is missing
is replaced by modules that can be imported and not used.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

PACKAGES = ("grain", "ml_collections", "tensorboardX")


def stand_in() -> list[str]:
    """Puts a module in the place of each of `PACKAGES` that is missing; returns their names."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        sys.meta_path.append(_Finder(missing))
    return missing


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, packages: Sequence[str]):
        self._packages = packages

    def find_spec(
        self, name: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in self._packages:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Missing(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Missing(ModuleType):
    """Every public name is a class: good as a base or in an annotation, an error when called."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        package = self.__name__

        def refuse(*_: Any, **__: Any) -> None:
            raise ImportError(f"{package} is not installed, and {package}.{name} is needed")

        return type(name, (), {"__init__": refuse, "__module__": package})
