"""Make the two stages from a configuration, outside of the command line."""

from __future__ import annotations

import copy
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from typing import Any

from lke_lightning.edits import EditError
from lke_lightning.parts import construct, path_of, rebuilt
from lke_lightning.stage_two.transforms import ReadoutTransform
from lke_lightning.stages import SLOTS, Stages
from lke_lightning.suggestions import suggest


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
        parser.set_defaults({section: {"class_path": path_of(default)}})
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
        if isinstance(given, dict) and given.get("class_path") == path_of(default):
            plain[section] = dict(given.get("init_args") or {})
    return plain


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
        found = rebuilt(configuration.get(section) or {}, trust)
        made[section] = construct(default, found) if isinstance(found, dict) else found
        if not isinstance(made[section], kind):
            raise EditError(f"the checkpoint's {section} is of type {type(found).__name__}: use another checkpoint")
    return Stages(made["stage_one"], made["stage_two"])


def rebuild_readout(configuration: Mapping[str, Any], trust: Sequence[str] = ()) -> ReadoutTransform | None:
    """Make the readout alone that a checkpoint was written with; arguments and errors are those of `rebuild`.

    The rest may name text that is not on this machine.
    """
    two = configuration.get("stage_two", {})
    readout = rebuilt((two.get("init_args") or two).get("readout"), trust)
    if not isinstance(readout, ReadoutTransform | None):
        raise EditError(f"the checkpoint's readout is of type {type(readout).__name__}: use another checkpoint")
    return readout
