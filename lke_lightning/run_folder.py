"""A run's folder: its newest checkpoint and its ledger, read and written together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lke_lightning import checkpoints
from lke_lightning.callbacks.recording import FIELDS
from lke_lightning.composition import rebuild
from lke_lightning.editor import Editor
from lke_lightning.edits import EditError, EditRequest
from lke_lightning.ledger import DISCARDED, LOCK, NAME, Entry, Ledger
from lke_lightning.results import check_free, replace
from lke_lightning.stage_two.register import Register
from lke_lightning.stages import Stages

BATCH_SIZE = 100
"""Edits of one step, unless another number is asked for."""


@dataclass(frozen=True)
class Run:
    """A run's folder as one of its checkpoints knows it."""

    root: Path
    checkpoint: dict[str, Any]

    @classmethod
    def read(cls, folder: str | Path) -> Run:
        """Read the newest checkpoint of a run, or the one that is named.

        Raises:
            EditError: there is none, or it is damaged or in another format.
        """
        path = checkpoints.find(folder)
        return cls(path.parents[1], checkpoints.read(path))

    @property
    def size(self) -> int:
        """How long the ledger was, in bytes."""
        return self.checkpoint["callbacks"]["Recorder"]["size"]

    @property
    def batches(self) -> int:
        """How many batches had been edited."""
        return self.checkpoint["global_step"]

    @property
    def path(self) -> Path:
        """Where the checkpoint is."""
        return self.root / checkpoints.FOLDER / checkpoints.file_name(self.batches)

    def register(self) -> Register:
        """Return the edits that were made, and which of them hold."""
        register = Register()
        register.load_state_dict(self.checkpoint["editing"]["register"])
        return register

    def stages(self, trust: Sequence[str] = ()) -> Stages:
        """Make the run's stages again; see `rebuild`."""
        return rebuild(self.checkpoint["editing"]["configuration"], trust)

    def requests(self) -> list[EditRequest]:
        """Return the edits of the ledger, without what they were scored on.

        Raises:
            EditError: the ledger is damaged.
        """
        entries = (entry for entry in Ledger(self.root).read(self.size) if entry["event"] == "edit")
        told: list[dict[str, Any]] = [
            {"id": entry["id"], **{name: entry.get(name) for name in FIELDS}} for entry in entries
        ]
        return [EditRequest(**fields) for fields in told]

    def check_newest(self) -> None:
        """Raise `EditError` where the folder holds a state that this one does not know, and that would be lost."""
        path = checkpoints.newest(self.root)
        newest = None if path is None else checkpoints.peek(path)
        if newest is None or newest["callbacks"]["Recorder"]["size"] != self.size:
            raise EditError(
                f"{self.root} holds another state than the one that was read: an older checkpoint was named, or "
                "another process has changed the run since; read the newest, or save into another folder"
            )


def check_unused(root: Path) -> None:
    """Raise `EditError` unless a new run can be written into a folder; remains of a killed save may be there."""
    remains = {NAME, DISCARDED, LOCK, checkpoints.FOLDER}
    is_remains = root.is_dir() and {path.name for path in root.iterdir()} <= remains
    if not is_remains or checkpoints.newest(root):
        check_free(root, is_folder=True)


def write(
    root: Path, earlier: Run | None, editor: Editor, stages: Stages, entries: Sequence[Entry], batch_size: int
) -> Run:
    """Write ledger and checkpoint into a folder that this process has locked.

    The ledger comes first: entries that no checkpoint knows of are known not to have happened.

    Args:
        root: the folder, that of the earlier run or a new one.
        earlier: the run that was gone on from.
        editor: holds the model and its edits.
        stages: they hold the solver's memory and the contexts.
        entries: what happened since `earlier`.
        batch_size: edits of one step, for a run that goes on from this one.

    Raises:
        EditError: the ledger is not the one that `earlier` knows, or something cannot be written.
    """
    ledger, before, size = Ledger(root), earlier.checkpoint if earlier else {}, earlier.size if earlier else 0
    if earlier and earlier.root != root.resolve():
        ledger.begin_with(Ledger(earlier.root), size)
    ledger.cut(size)
    ledger.append(entries)
    batches = sum(entry["event"] == "batch" for entry in entries)
    nothing = {"batch_size": batch_size, "digests": torch.zeros(0, dtype=torch.int64), "ends": []}
    stream = before["editing"]["stream"] if before else nothing
    state, editing = editor.saved()
    checkpoint = {
        "pytorch-lightning_version": version("lightning"),
        "epoch": 0,
        **before,
        "state_dict": state,
        "hyper_parameters": dict(editor.hparams),
        "global_step": before.get("global_step", 0) + batches,
        # loops count the batches of one stream, of which edits made from Python are no part
        "loops": {} if batches else before.get("loops", {}),
        "callbacks": {
            **before.get("callbacks", {}),
            stages.one.state_key: stages.one.state_dict(),
            stages.two.state_key: stages.two.state_dict(),
            "Recorder": {"size": ledger.size},
        },
        "editing": {
            **editing,
            **({"random": before["editing"]["random"]} if before else {}),
            "stream": stream if not batches else {**stream, "batch_size": batch_size},
        },
    }
    run = Run(root.resolve(), checkpoint)
    replace(run.path, lambda file: torch.save(checkpoint, file))
    checkpoints.link_last(run.path)
    return run
