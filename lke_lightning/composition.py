"""Make the two stages from a configuration, outside of the command line."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_two.update import WeightUpdate


@dataclass(frozen=True)
class Stages:
    """The two stages of a method."""

    one: TargetOptimization
    two: WeightUpdate


def compose(configuration: Mapping[str, Any]) -> Stages:
    """Make the stages that the sections `stage_one` and `stage_two` of a configuration name; others are ignored."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TargetOptimization, "stage_one")
    parser.add_class_arguments(WeightUpdate, "stage_two")
    parser.link_arguments("stage_one.reference_quirks", "stage_two.reference_quirks")
    # a copy, because parsing replaces parts of what it is given
    given = {name: copy.deepcopy(configuration.get(name, {})) for name in ("stage_one", "stage_two")}
    made = parser.instantiate(parser.parse_object(given))
    return Stages(made.stage_one, made.stage_two)
