"""Whether plain values from a file are of the types that they should be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin


def lacking(found: Any, wanted: Any, name: str = "") -> str | None:
    """Name the first part of a tree of values that is not there or of another type.

    Args:
        found: the tree, or a part of it.
        wanted: a type, or a dict of what is wanted by name; what else there is does not matter.
        name: of the part.
    """
    if not isinstance(wanted, dict):
        return None if fits(found, wanted) else name
    if not isinstance(found, dict):
        return name
    parts = ((f"{name}.{part}".lstrip("."), part, kind) for part, kind in wanted.items())
    problems = (path if part not in found else lacking(found[part], kind, path) for path, part, kind in parts)
    return next((problem for problem in problems if problem), None)


def types_of(state: Any) -> Any:
    """Return what `lacking` wants of a state like this one; where it holds nothing yet, anything will do."""
    if isinstance(state, Mapping) and state:
        return {name: types_of(part) for name, part in state.items()}
    return Any if state is None else float if type(state) is int else type(state)


def fits(value: Any, hint: Any) -> bool:
    """Tell whether a value is what a type hint says: a class, a union, a literal, a sequence, mapping or callable."""
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin in (list, Sequence):
        return isinstance(value, list) and all(fits(part, parts[0]) for part in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(fits(n, parts[0]) and fits(v, parts[1]) for n, v in value.items())
    if origin is Callable:
        return callable(value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, int | float if hint is float else hint)
