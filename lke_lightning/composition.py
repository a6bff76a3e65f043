"""Make the two stages from a configuration, outside of the command line."""

from __future__ import annotations

import copy
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, get_type_hints

from lke_lightning.edits import EditError
from lke_lightning.shapes import fits
from lke_lightning.stage_two.transforms import ReadoutTransform
from lke_lightning.stages import SLOTS, Stages
from lke_lightning.suggestions import suggest

OURS = ("lke_lightning.stage_one.", "lke_lightning.stage_two.", "lke_lightning.model.units.")
"""Where the parts of the stages are: modules that may be imported whatever a file says."""


def compose(configuration: Mapping[str, Any]) -> tuple[Stages, dict[str, Any]]:
    """Make the stages that the sections `stage_one` and `stage_two` of a configuration name; others are ignored.

    The configuration is trusted: what it names is imported. For one that a file holds, see `rebuild`.

    Returns:
        The stages, and the two sections with everything that the configuration left to defaults.

    Raises:
        EditError: they cannot be made, with the reason.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    for section, (kind, _) in SLOTS.items():
        parser.add_subclass_arguments(kind, section, required=False)
    complete(parser)
    # a copy, because parsing replaces parts of what it is given
    given = {name: copy.deepcopy(configuration.get(name) or {}) for name in ("stage_one", "stage_two")}
    try:
        parsed = parser.parse_object(given)
        made = parser.instantiate(parsed)
    except (ArgumentError, TypeError, ValueError) as error:
        own = EditError.behind(error)
        why = str(own) if own else f"no stages can be made of the configuration: {suggest(str(error), ())}"
        raise EditError(why) from error
    return Stages(made.stage_one, made.stage_two), plainly(parsed.as_dict())


def complete(parser: Any) -> None:
    """Give the sections in `SLOTS` of a parser the classes that they are of where none is named, and link stages."""
    for section, (_, default) in SLOTS.items():
        parser.set_defaults({section: {"class_path": _path(default)}})
    parser.link_arguments("stage_one", "stage_two.init_args.reference_quirks", compute_fn=_quirks)


def _quirks(stage_one: Mapping[str, Any]) -> bool:
    return bool((stage_one.get("init_args") or {}).get("reference_quirks", False))


def plainly(configuration: Any) -> Any:
    """Return sections such that those in `SLOTS` hold their options themselves where they are of the class of none."""
    if not isinstance(configuration, dict):
        return configuration
    plain = dict(configuration)
    for section, (_, default) in SLOTS.items():
        given = plain.get(section)
        if isinstance(given, dict) and given.get("class_path") == _path(default):
            plain[section] = dict(given.get("init_args") or {})
    return plain


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def rebuild(configuration: Mapping[str, Any], trust: Sequence[str] = ()) -> Stages:
    """Make the stages again that a checkpoint was written with, importing nothing but parts of this package.

    Args:
        configuration: what the checkpoint keeps of the sections `stage_one` and `stage_two`.
        trust: paths of further classes that may be imported, such as `mypackage.MySolver`.

    Raises:
        EditError: it names another class, or does not fit this version; or there is none, because the run was made
            from Python objects.
    """
    if not configuration:
        raise EditError(
            "the checkpoint does not say how its stages were made, because they came from Python: use "
            "lke_lightning.resume(folder, stage_one=..., stage_two=...)"
        )
    made = {}
    for section, (kind, default) in SLOTS.items():
        found = _rebuilt(configuration.get(section) or {}, trust)
        made[section] = _made(default, found) if isinstance(found, dict) else found
        if not isinstance(made[section], kind):
            raise EditError(f"the checkpoint's {section} is of type {type(found).__name__}: use another checkpoint")
    return Stages(made["stage_one"], made["stage_two"])


def rebuild_readout(configuration: Mapping[str, Any], trust: Sequence[str] = ()) -> ReadoutTransform | None:
    """Make the readout alone that a checkpoint was written with; arguments and errors are those of `rebuild`.

    The rest may name text that is not on this machine.
    """
    readout = _rebuilt(configuration.get("stage_two", {}).get("readout"), trust)
    if not isinstance(readout, ReadoutTransform | None):
        raise EditError(f"the checkpoint's readout is of type {type(readout).__name__}: use another checkpoint")
    return readout


def described(part: Any) -> dict[str, Any]:
    """Return a part with `settings`, and such parts in them, as plain values, from which `remade` makes it again."""
    arguments = {name: described(at) if hasattr(at, "settings") else at for name, at in part.settings.items()}
    return {"class_path": _path(type(part)), "init_args": arguments}


def remade(description: Mapping[str, Any], kind: type) -> Any:
    """Make a part that a checkpoint describes, of a kind; nothing but parts of this package are imported.

    Raises:
        EditError: it is of another kind, or does not fit this version.
    """
    part = _rebuilt(dict(description), ())
    if not isinstance(part, kind):
        raise EditError(f"the checkpoint has a {type(part).__name__} in place of a {kind.__name__}: use another one")
    return part


def _rebuilt(tree: Any, trust: Sequence[str]) -> Any:
    """Replace every `class_path` with its `init_args`, in a tree of plain values from a file, by an object."""
    if isinstance(tree, list):
        return [_rebuilt(part, trust) for part in tree]
    if not isinstance(tree, dict):
        return tree
    if "class_path" not in tree:
        return {name: _rebuilt(part, trust) for name, part in tree.items()}
    return _made(_class(str(tree["class_path"]), trust), _rebuilt(tree.get("init_args") or {}, trust))


def _class(path: str, trust: Sequence[str]) -> type:
    if not path.startswith(OURS) and path not in trust:
        raise EditError(
            f"the checkpoint names the class {path!r}, which is no part of lke_lightning; if you trust it, allow it "
            f"with --trust {path}, in Python trust=[{path!r}]"
        )
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise EditError(f"the checkpoint names the class {path!r}, which is not there: {error}") from error
    if not isinstance(found, type) or not (path in trust or found.__module__.startswith(OURS)):
        raise EditError(f"the checkpoint names {path!r} as a class, and it is none of lke_lightning's")
    return found


def _made(kind: type, arguments: Any) -> Any:
    hints = get_type_hints(kind.__init__) if kind.__module__.startswith("lke_lightning.") else {}
    try:
        wrong = [name for name, value in arguments.items() if name in hints and not fits(value, hints[name])]
        if wrong:
            raise TypeError(f"{wrong[0]} cannot be of type {type(arguments[wrong[0]]).__name__}")
        return kind(**arguments)
    except (TypeError, AttributeError) as error:
        raise EditError(f"the checkpoint's settings of {kind.__name__} do not fit this version: {error}") from error
