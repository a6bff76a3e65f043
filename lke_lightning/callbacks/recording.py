"""Writes the ledger as the run goes, and keeps it in step with the checkpoints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lke_lightning.editor import Editor
from lke_lightning.edits import EditBatch, EditRequest
from lke_lightning.ledger import Entry, Ledger

FIELDS = ("prompt", "subject", "target", "original", "relation", "weight")
"""What the ledger keeps of a request: enough to tell what was changed, and to edit it again."""


class Recorder(Callback):
    """Appends to `ledger.jsonl` what each batch did, before any checkpoint knows of it.

    A checkpoint remembers how long the ledger was. A run that continues from it cuts off what came after: those edits
    are not in the weights, and will be made and written again.
    """

    def __init__(self) -> None:
        self._size = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the length of the ledger."""
        return {"size": self._size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the length that the ledger had."""
        self._size = state_dict["size"]

    def on_fit_start(self, trainer: Trainer, pl_module: Editor) -> None:
        """Bring the ledger to the length that the checkpoint knows.

        Raises:
            EditError: it is shorter than that, or cannot be written.
        """
        if trainer.is_global_zero:
            ledger = Ledger(trainer.default_root_dir)
            if not ledger.size and self._size:  # a run that forks from another one's checkpoint takes its past along
                ledger.begin_with(Ledger(Path(str(trainer.ckpt_path)).parents[1]), self._size)
            lost = ledger.cut(self._size)
            ledger.append([])
            if lost:
                rank_zero_info(
                    f"{lost} entries of the ledger are newer than the checkpoint: these edits are made again"
                )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Editor, outputs: Any, batch: EditBatch, batch_idx: int
    ) -> None:
        """Write what the batch did."""
        self._append(trainer, entries_of(pl_module, trainer.global_step - 1))

    def on_validation_end(self, trainer: Trainer, pl_module: Editor) -> None:
        """Write what an evaluation during the run measured."""
        self._append_events(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Editor) -> None:
        """Write what the evaluation at the end measured."""
        self._append_events(trainer, pl_module)

    def _append_events(self, trainer: Trainer, editor: Editor) -> None:
        if trainer.state.fn == "fit" and editor.events:
            self._append(trainer, editor.events)
            editor.events = []

    def _append(self, trainer: Trainer, entries: list[Entry]) -> None:
        if trainer.is_global_zero:
            ledger = Ledger(trainer.default_root_dir)
            ledger.append(entries)
            self._size = ledger.size


def entries_of(editor: Editor, batch: int) -> list[Entry]:
    """Return what the ledger should hold of the present batch, of that number, and of the events before it."""
    step, events = editor.step, editor.events
    editor.events = []
    sharing: dict[int, list[str]] = {}
    for request, group in zip(step.requests, step.targets.groups, strict=True):
        sharing.setdefault(group, []).append(request.id)
    return [
        *events,
        *(_left_out(batch, *left) for left in step.left_out),
        *(_edit(editor, batch, i, sharing[group]) for i, group in enumerate(step.targets.groups)),
        _batch(editor, batch),
    ]


def _edit(editor: Editor, batch: int, i: int, sharing: list[str]) -> Entry:
    step, register = editor.step, editor.register
    request, targets = step.requests[i], step.targets
    scores = step.scores.get(request.id)
    number = len(register) - len(step) + i
    older = register.replaces[number]
    entry: Entry = {
        "event": "edit",
        "number": number,
        "id": request.id,
        "batch": batch,
        **_fields(request),
        "replaces": None if older is None else register.ids[older],
        "shares_target_with": [name for name in sharing if name != request.id],
        "steps": targets.steps[i],
        "stopped_by": targets.reasons[i],
        "first_loss": targets.first_losses[i],
        "loss": targets.losses[i],
        "target_layer": step.layers(editor.language_model.layers)[i][-1],
        "target_norm": targets.of_requests(targets.vectors)[i].norm().item(),
        "reached": targets.reached[i],
    }
    if step.arrival is not None:
        entry["first_choice_just_after"] = step.arrival.first_choice[i]
        if step.arrival.written is not None:
            entry["written"] = step.arrival.written[i]
    if scores and "efficacy" in scores:
        wanted, other, correct = scores["efficacy"][0].tolist()
        entry |= {"accurate_just_after": bool(correct), "nll_just_after": wanted}
        if other == other:  # not NaN: there is something to compare with
            entry |= {"success_just_after": wanted < other, "nll_of_original_just_after": other}
    return entry


def _left_out(batch: int, request: EditRequest, reason: str) -> Entry:
    return {"event": "left_out", "id": request.id, "batch": batch, **_fields(request), "reason": reason}


def _batch(editor: Editor, number: int) -> Entry:
    norms = {layer: editor.language_model.weight(layer).norms() for layer in editor.language_model.layers}
    return {
        "event": "batch",
        "batch": number,
        "edits": len(editor.step),
        "left_out": len(editor.step.left_out),
        "norm_growth": {str(layer): now / before for layer, (before, now) in norms.items()},
        "fulfilment": {str(layer): share for layer, share in editor.step.shares.items()},
        "rounds": editor.step.rounds,
    }


def _fields(request: EditRequest) -> dict[str, Any]:
    whole = asdict(request)
    return {name: whole[name] for name in FIELDS}
