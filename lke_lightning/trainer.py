"""What a run is made of: its callbacks, in the order in which they act, and the settings of its trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback

from lke_lightning.callbacks.checkpoint import RunCheckpoint
from lke_lightning.callbacks.downstream import Downstream
from lke_lightning.callbacks.drift import Drift
from lke_lightning.callbacks.guard import Guard
from lke_lightning.callbacks.recording import Recorder
from lke_lightning.callbacks.scorecard import Scorecard
from lke_lightning.edits import EditError
from lke_lightning.stage_one.stage import StageOne
from lke_lightning.stage_two.stage import StageTwo
from lke_lightning.stages import SLOTS

CALLBACKS: dict[str, type[Callback]] = {
    "stage_one": StageOne,
    "stage_two": StageTwo,
    "guard": Guard,  # before anything looks at a batch that it may roll back
    "scorecard": Scorecard,
    "downstream": Downstream,
    "drift": Drift,
    "recorder": Recorder,  # after all that has something for the ledger
    "checkpoint": RunCheckpoint,  # last: it saves what the others know
}
"""The section of the command line that configures a callback, and its class; they act in this order."""

SETTINGS: dict[str, Any] = {
    "max_epochs": 1,
    "use_distributed_sampler": False,  # the order of edits is data
    "num_sanity_val_steps": 0,
    "inference_mode": False,
    "log_every_n_steps": 1,
    "enable_model_summary": False,
}
"""Arguments of a trainer that edits."""

ALLOWED: dict[str, tuple[tuple[Any, ...], str]] = {
    "max_epochs": ((1,), "each fact is edited once; to edit fewer use data.limit"),
    "min_epochs": ((None, 1), "each fact is edited once"),
    "accumulate_grad_batches": ((1,), "an edit batch is one step; for larger ones use data.batch_size"),
    "gradient_clip_val": ((None,), "no gradient reaches the weights; targets are held by stage_one.space"),
    "limit_train_batches": ((None, 1, 1.0), "use data.limit, or trainer.max_steps to stop after some batches"),
    "overfit_batches": ((0, 0.0), "use data.limit"),
    "fast_dev_run": ((False, 0), "use data.limit"),
    "barebones": ((False,), "a run needs its callbacks, ledger and checkpoints"),
    "enable_checkpointing": ((None, True), "a run without checkpoints is had by checkpoint.keep 0"),
    "use_distributed_sampler": ((False,), "the order of edits is data; processes divide each batch"),
    "inference_mode": ((False,), "edits go on after an evaluation"),
    "num_sanity_val_steps": ((0,), "the scorecard scores the unedited model"),
    "precision": (
        (None, 32, "32", "32-true", 64, "64", "64-true", "bf16", "bf16-true", "bf16-mixed", "16-true"),
        "gradients are not scaled here; use bf16-mixed, or load the model with model.dtype float16",
    ),
}  # fmt: skip
"""Settings of a trainer of which only some mean anything for an editor, and what to do instead of the others."""

AT_LEAST = {"check_val_every_n_epoch": 1, "log_every_n_steps": 0, "val_check_interval": 1e-6}
"""The smallest values of settings that Lightning refuses only after the model was loaded, or divides by."""


def check_settings(given: Mapping[str, Any]) -> None:
    """Raise `EditError` where arguments of a trainer would lose edits, make them twice, or mean nothing."""
    for name, (allowed, instead) in ALLOWED.items():
        if name in given and given[name] not in allowed:
            raise EditError(f"trainer.{name} is {given[name]!r}, which an editing run cannot have: {instead}")
    for name, least in AT_LEAST.items():
        if isinstance(given.get(name), int | float) and given[name] < least:
            raise EditError(f"trainer.{name} is {given[name]!r}: it must be at least {least}")
    if given.get("max_steps", -1) in (0, None):
        raise EditError("trainer.max_steps is 0: no batch would be edited; give a number of batches, or -1 for all")


def check_order(callbacks: Sequence[Callback]) -> None:
    """Raise `EditError` unless each callback of `CALLBACKS` is there at most once, and acts in that order."""
    kinds = list(CALLBACKS.values())
    ours = [
        (place, type(part).__name__)
        for part in callbacks
        for place, (section, kind) in enumerate(CALLBACKS.items())
        if type(part) is kind or (section in SLOTS and isinstance(part, kind))
    ]
    places = [place for place, _ in ours]
    twice = next((name for place, name in ours if places.count(place) > 1), None)
    if twice is not None:
        raise EditError(f"{twice} is there twice: leave it out of trainer.callbacks, its section makes one")
    if places != sorted(places):
        raise EditError(
            f"callbacks must act in the order {', '.join(kind.__name__ for kind in kinds)}; "
            f"they were given as {', '.join(name for _, name in ours)}"
        )
