"""The hyperparameters of a configuration by name, such as `BaseStatistics.weight`: listed and replaced."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lke_lightning.configuration import OUTRANKED
from lke_lightning.edits import EditError

STAGES = ("stage_one", "stage_two")
MULTIPLES = (0.25, 1.0, 4.0)
SCALED = (
    "BaseStatistics.weight", "NormPenalty.weight", "NormPenalty.proportion", "OutputGradients.step",
    "OutputGradients.relative_step",
)  # fmt: skip
"""Swept over multiples of the configured value."""
FULFILMENTS = [0.6, 0.75, 0.85, 0.93]
FIXED: dict[str, list[Any]] = {
    "BaseStatistics.fulfilment": FULFILMENTS,
    "NormPenalty.fulfilment": FULFILMENTS,
    "MostProbable.extra_steps": [0, 2, 6],
}
"""Swept over these values."""
STRENGTHS = ("BaseStatistics.weight", "BaseStatistics.fulfilment", "NormPenalty.weight", "NormPenalty.fulfilment")
"""What decides how strongly edits are written; the first that a configuration has."""

Config = dict[str, Any]
Settings = dict[str, Any]
"""A value for each swept name."""


def default_sweep(config: Config) -> dict[str, list[Any]]:
    """Choose values around the configured ones, for the parts that the configuration has.

    Raises:
        EditError: it has none of them.
    """
    sweep = _sweep(config)
    if not sweep:
        wanted = ", ".join((*SCALED, *FIXED))
        raise EditError(f"the configuration has none of {wanted}: choose what to vary with --sweep")
    return sweep


def strengths(config: Config) -> list[Settings]:
    """Return points that differ in how strongly edits are written, the one that protects the model most first."""
    sweep = _sweep(config)
    name = next((name for name in STRENGTHS if name in sweep), None)
    if name is None:
        return [{}]
    return [{name: value} for value in sorted(sweep[name], reverse=name.endswith("weight"))]


def check_sweep(config: Config, sweep: Mapping[str, Sequence[Any]]) -> None:
    """Raise `EditError` unless every name is an argument of the configuration that counts, and has values."""
    there = dict(_arguments(config))
    for name, values in sweep.items():
        if name not in there:
            close = difflib.get_close_matches(name, there, 3, 0.5)
            hint = f"did you mean {', '.join(close)}?" if close else f"there are {', '.join(there)}"
            raise EditError(f"no setting is called {name!r}: {hint}")
        counts = _counts_before(name, there)
        if counts:
            raise EditError(f"{name} means nothing beside {counts} {there[counts]:g}: sweep that, or take it out")
        if not isinstance(values, list | tuple) or not values:
            raise EditError(f"the sweep of {name!r} needs a list of values, not {values!r}")


def configured(config: Config, settings: Settings) -> Config:
    """Return the configuration with new values, in every part of a name's class."""
    changed = copy.deepcopy(config)
    for place, owner in _places(changed):
        place.update({name.rpartition(".")[2]: value for name, value in settings.items() if is_of(name, owner)})
    return changed


def is_of(name: str, owner: str) -> bool:
    """Tell whether a setting is an argument of the class, stage or nested section called `owner`."""
    return name.rpartition(".")[0] == owner


def owners(config: Config) -> set[str]:
    """Return the classes, stages and nested sections that settings can be of."""
    return {owner for _, owner in _places(config)}


def name(settings: Settings) -> str:
    """Name a point after its values, as a valid file name."""
    written = "_".join(f"{key}={value}" for key, value in settings.items())
    return "".join(letter if letter.isalnum() or letter in "._=-+" else "-" for letter in written)


def _sweep(config: Config) -> dict[str, list[Any]]:
    """Return the default values of all settings that count."""
    there = dict(_arguments(config))
    present = {name: value for name, value in there.items() if value is not None and not _counts_before(name, there)}
    scaled = {
        name: list(dict.fromkeys(float(f"{present[name] * multiple:.6g}") for multiple in MULTIPLES))
        for name in SCALED
        if name in present
    }
    return scaled | {name: values for name, values in FIXED.items() if name in present}


def _counts_before(name: str, there: Settings) -> str | None:
    """Return the setting that is given and counts in the place of this one."""
    owner, _, argument = name.rpartition(".")
    given = (f"{owner}.{other}" for other, idle in OUTRANKED.items() if argument in idle)
    return next((other for other in given if there.get(other) is not None), None)


def _arguments(config: Config) -> Iterator[tuple[str, Any]]:
    for place, owner in _places(config):
        yield from ((f"{owner}.{argument}", value) for argument, value in place.items())


def _places(config: Config) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each dict of arguments of the two stages, with the prefix of its arguments' names."""
    for stage in STAGES:
        yield from _places_within(config.get(stage) or {}, stage)


def _places_within(given: Any, owner: str) -> Iterator[tuple[dict[str, Any], str]]:
    if isinstance(given, list):
        for part in given:
            yield from _places_within(part, owner)
    elif isinstance(given, dict) and "class_path" in given:
        if given.get("init_args") is None:
            given["init_args"] = {}
        yield from _places_within(given["init_args"], given["class_path"].rsplit(".", 1)[-1])
    elif isinstance(given, dict):
        yield given, owner
        for argument, value in given.items():
            yield from _places_within(value, f"{owner}.{argument}")
