"""Helpers for configs: choices by name, differences between two."""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from mmsrec_jax.runtime.errors import UserError


def choose(variant: str, known: Mapping[str, str], *, file: str) -> str:
    """`variant` if it is among `known` (name -> what it is).

    Raises:
      UserError: it is not; names the nearest one, or all of them.
    """
    if variant in known:
        return variant
    near = difflib.get_close_matches(variant, known, n=1)
    names = ", ".join(f"{file}:{name}" if name else file for name in known)
    guess = f"did you mean {file}:{near[0]}?" if near else f"there are: {names}"
    raise UserError(f"{file} has no variant {variant!r}; {guess}")


def choose_name(name: str, known: Collection[str], *, what: str) -> str:
    """`name` if it is among `known`.

    Raises:
      UserError: it is not; `what` names the field, the nearest name or all of them follow.
    """
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1)
    guess = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
    raise UserError(f"{what}={name!r} is not known; {guess}")


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """`field: old -> new` for every leaf that differs between two nested configs."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: list[str] = []
        for key in sorted({*old, *new}):
            name = f"{prefix}.{key}" if prefix else key
            found += differences(old.get(key), new.get(key), name)
        return found
    return [] if old == new else [f"{prefix}: {old} -> {new}"]
