"""Edit a model that is already loaded, or go on with a run, from Python: the engine of the command line."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from lke_lightning import checkpoints, export
from lke_lightning.callbacks.recording import FIELDS, entries_of
from lke_lightning.callbacks.scorecard import Scorecard
from lke_lightning.composition import compose, rebuild
from lke_lightning.configuration import find, read
from lke_lightning.data import RequestList
from lke_lightning.data.own_facts import own_request
from lke_lightning.editor import Editor
from lke_lightning.edits import EditError, EditRequest
from lke_lightning.evaluation.summary import summarize
from lke_lightning.evaluation.teacher_forced import score
from lke_lightning.ledger import Entry, Ledger, locked
from lke_lightning.results import replace
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_two.register import Register
from lke_lightning.stage_two.update import WeightUpdate
from lke_lightning.stages import Stages
from lke_lightning.trainer import SETTINGS

Fact = EditRequest | dict[str, Any]
"""An edit; as a dict it has the fields of a record of `JsonLines`."""


class EditedModel:
    """A language model under lifelong editing, with the memory of its edits; `edit` and `resume` make it.

    The model that `edit` was given is edited in place.
    """

    def __init__(self, editor: Editor, stages: Stages, batch_size: int, run: Run | None = None) -> None:
        self.editor, self.stages, self.batch_size = editor, stages, batch_size
        self.before: dict[str, Any] = {}
        """Scores of the unedited model on the facts of the last `edit`, as in the scorecard."""
        self.after: dict[str, Any] = {}
        """Scores of the edited model on them."""
        self._run = run
        """The run's folder as it was read or written last; `None`: there is none yet."""
        self._entries: list[Entry] = []
        """What the ledger is to be told of what happened since."""
        self._requests = [] if run is None else run.requests()

    @property
    def edited(self) -> list[str]:
        """Ids of the edits that are in the weights, in order."""
        return self.editor.edited

    def edit(self, facts: Sequence[Fact], batch_size: int | None = None) -> EditedModel:
        """Edit further facts, beside those edited before; `before` and `after` then tell of these.

        Args:
            facts: edits; those without an id are numbered on.
            batch_size: edits of one step; default: as before.

        Raises:
            EditError: a fact cannot be edited, or its id was used before; the model is what it was then, as after any
                error.
        """
        editor, count = self.editor, len(self._requests)
        requests = [_request(count + i, fact) for i, fact in enumerate(facts)]
        known = {request.id for request in self._requests}
        twice = next((request.id for request in requests if request.id in known), None)
        if twice is not None:
            raise EditError(f"the id {twice!r} was used before: give this edit another")
        self.batch_size = batch_size or self.batch_size
        scorecard, notes = Scorecard(report=False), _Notes(self._batches)
        trainer = Trainer(
            **SETTINGS,
            callbacks=[self.stages.one, self.stages.two, scorecard, notes],
            accelerator="cuda" if editor.language_model.device.type == "cuda" else "cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            default_root_dir=tempfile.gettempdir(),
        )
        mark = self.stages.two.mark(editor.language_model, editor.register)
        try:
            trainer.fit(editor, datamodule=RequestList(requests, self.batch_size))
        except BaseException:  # also an interrupted notebook cell: the model is not left half edited
            self.stages.two.roll_back(editor.language_model, editor.register, mark)
            raise
        self._requests += requests
        self._entries += notes.entries
        self.before, self.after = summarize(scorecard.unedited.values()), summarize(scorecard.final.values())
        return self

    def undo(self, *ids: str) -> dict[str, str | None]:
        """Take edits back, exactly, as if they had never been made; returns which earlier edit each brings back.

        Raises:
            EditError: one of them is not in the weights, or the method has no exact undo; nothing is changed then.
        """
        return self._change("undo", self.stages.two.undo, ids)

    def redo(self, *ids: str) -> dict[str, str | None]:
        """Write edits again that were undone or replaced; returns which edit each takes the place of.

        Raises:
            EditError: one of them is in the weights already; nothing is changed then.
        """
        return self._change("redo", self.stages.two.redo, ids)

    def revert(self) -> None:
        """Give the model its unedited weights back, bit for bit, by any method; all edits count as undone."""
        gone = self.edited
        self.stages.two.revert(self.editor.language_model, self.editor.register)
        self._entries += [{"event": "undo", "id": name, "other": None} for name in gone]

    def score(self, facts: Sequence[Fact] | None = None) -> dict[str, Any]:
        """Score the model as it is now, as in the scorecard.

        Args:
            facts: what is asked; default: all edits that are in the weights.
        """
        if facts is None:
            holding = set(self.edited)
            requests = [request for request in self._requests if request.id in holding]
        else:
            requests = [_request(i, fact) for i, fact in enumerate(facts)]
        with self.editor.as_read(), self.editor.working("evaluation"):
            return summarize(score(self.editor.language_model, requests))

    def export(
        self, output: str | Path, format: str = "merged", rank: int | None = None, tolerance: float | None = None
    ) -> None:
        """Write the edits as a plain transformers folder, as their change alone or as a LoRA adapter.

        Arguments and errors are those of `python -m lke_lightning export`.
        """
        export.write(self.editor, Path(output), format, rank, tolerance)

    def save(self, folder: str | Path) -> None:
        """Write a run's folder, for `resume` and for the commands `log`, `show`, `undo`, `redo`, `export`.

        Args:
            folder: the folder that `resume` opened, or one that does not exist or is empty.

        Raises:
            EditError: the folder holds something else, or cannot be written.
        """
        root = Path(folder)
        if not self._is_home(root) and root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise EditError(f"{root} exists and is not empty: choose another folder")
        with locked(root):
            self.write_into(root)

    def write_into(self, root: Path) -> Path:
        """Write ledger and checkpoint into a run's folder that this process has locked, and return the checkpoint.

        The ledger comes first: entries that no checkpoint knows of are known not to have happened.
        """
        ledger, earlier = Ledger(root), self._run.checkpoint if self._run else {}
        if self._run and not self._is_home(root):
            ledger.begin_with(Ledger(self._run.root), self._run.size)
        ledger.cut(self._run.size if self._run else 0)
        ledger.append(self._entries)
        batches = self._batches
        is_extended = any(entry["event"] == "batch" for entry in self._entries)
        state, editing = self.editor.saved()
        checkpoint = {
            **earlier,
            "state_dict": state,
            "hyper_parameters": dict(self.editor.hparams),
            "global_step": batches,
            # loops count the batches of one stream, of which edits made from Python are no part
            "loops": {} if is_extended else earlier.get("loops", {}),
            "callbacks": {
                **earlier.get("callbacks", {}),
                "TargetOptimization": self.stages.one.state_dict(),
                "WeightUpdate": self.stages.two.state_dict(),
                "Recorder": {"size": ledger.size},
            },
            "editing": {**editing, "stream": earlier["editing"]["stream"] if earlier else NO_STREAM},
        }
        path = root / checkpoints.FOLDER / checkpoints.file_name(batches)
        replace(path, lambda file: torch.save(checkpoint, file))
        checkpoints.set_newer_aside(path)  # where an earlier checkpoint than the newest was opened
        checkpoints.link_last(path)
        self._run, self._entries = Run(root.resolve(), checkpoint, ledger.size), []
        return path

    def _is_home(self, root: Path) -> bool:
        return self._run is not None and self._run.root == root.resolve()

    @property
    def _batches(self) -> int:
        """How many batches were edited."""
        earlier = self._run.checkpoint["global_step"] if self._run else 0
        return earlier + sum(entry["event"] == "batch" for entry in self._entries)

    def _change(
        self, event: str, change: Callable[..., dict[str, str | None]], ids: Sequence[str]
    ) -> dict[str, str | None]:
        others = change(self.editor.language_model, self.editor.register, list(dict.fromkeys(ids)))
        self._entries += [{"event": event, "id": name, "other": other} for name, other in others.items()]
        return others


@dataclass(frozen=True)
class Run:
    """A run's folder as its newest checkpoint knows it."""

    root: Path
    checkpoint: dict[str, Any]
    size: int
    """How long the ledger was, in bytes."""

    @classmethod
    def read(cls, folder: str | Path) -> Run:
        """Read the newest checkpoint of a run.

        Raises:
            EditError: there is none, or it is damaged or in another format.
        """
        path = checkpoints.find(folder)
        checkpoint = checkpoints.read(path)
        return cls(path.parents[1], checkpoint, checkpoint["callbacks"]["Recorder"]["size"])

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
        return [EditRequest(id=entry["id"], **{name: entry.get(name) for name in FIELDS}) for entry in entries]


NO_STREAM = {"batch_size": 0, "digests": torch.zeros(0, dtype=torch.int64), "ends": []}
"""The stream of a run that was made from Python."""


class _Notes(Callback):
    """Keeps the entries for the ledger of one call of `edit`."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.entries: list[Entry] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Editor, *_: Any) -> None:
        """Note what the batch did."""
        self.entries += entries_of(pl_module, self.first + trainer.global_step - 1)


def edit(
    model: Any,
    tokenizer: Any,
    facts: Sequence[Fact],
    layers: list[int] | None = None,
    stage_one: TargetOptimization | None = None,
    stage_two: WeightUpdate | None = None,
    batch_size: int = 100,
    config: str | Path = "method/encore.yaml",
) -> EditedModel:
    """Edit a loaded causal language model in place.

    Args:
        model: what `AutoModelForCausalLM.from_pretrained` returns.
        tokenizer: its tokenizer.
        facts: edits, or dicts with the fields that a line of a JSON Lines file has: `prompt`, `target` and the optional
            ones; the subject may be spelled out in the prompt or marked there by `{}`.
        layers: layers to edit, ascending; `None`: those of `config`, else those that the model's own configuration
            names as `edit_layers`.
        stage_one: how targets are found; default: as `config` says.
        stage_two: how they are written; default: as `config` says.
        batch_size: edits of one step.
        config: a YAML file with the sections `stage_one`, `stage_two` and perhaps `model.layers`: a path, or a name
            below `configs/` such as `method/rect.yaml`, which have the hyperparameters of the demo model; those of
            others are written by `python -m lke_lightning published METHOD MODEL --output FILE`. It is trusted.

    Raises:
        EditError: a fact or the model cannot be edited with; the model is what it was then, as after any error.
    """
    configuration = read(find(config))
    stages, written = compose(configuration)
    if stage_one or stage_two:
        stages, written = Stages(stage_one or stages.one, stage_two or stages.two), {}
    editor = Editor.around(model, tokenizer, layers or configuration.get("model", {}).get("layers"))
    editor.configuration = written
    return EditedModel(editor, stages, batch_size).edit(facts)


def resume(
    folder: str | Path,
    stage_one: TargetOptimization | None = None,
    stage_two: WeightUpdate | None = None,
    pretrained: str | None = None,
    trust: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> EditedModel:
    """Open a run's folder, with the memory of its edits; `save` writes what changes back into it.

    Args:
        folder: what `fit` or `EditedModel.save` wrote, or one of its checkpoints.
        stage_one: how targets are found; default: as in the run.
        stage_two: how they are written, made as in the run; default: as in the run.
        pretrained: where the unedited model is now, if it has moved.
        trust: paths of classes outside of this package that the run's stages may be made of.
        trust_remote_code: run code that comes with the model.

    Raises:
        EditError: there is no such run, it is damaged, or its model or key statistics are not what they were.
    """
    return opened(Run.read(folder), stage_one, stage_two, pretrained, trust, trust_remote_code)


def opened(
    run: Run,
    stage_one: TargetOptimization | None = None,
    stage_two: WeightUpdate | None = None,
    pretrained: str | None = None,
    trust: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> EditedModel:
    """Load the model of a run that was read; see `resume`."""
    stages = Stages(stage_one, stage_two) if stage_one and stage_two else run.stages(trust)
    stages = Stages(stage_one or stages.one, stage_two or stages.two)
    callbacks = run.checkpoint["callbacks"]
    with checkpoints.understood("the state of the stages"):
        stages.one.load_state_dict(callbacks["TargetOptimization"])
        stages.two.load_state_dict(callbacks["WeightUpdate"])
    moved = {} if pretrained is None else {"pretrained": pretrained}
    editor = Editor.restored(run.checkpoint, trust_remote_code=trust_remote_code, **moved)
    editor.readout = stages.two.readout
    stages.two.prepare(editor.language_model)
    return EditedModel(editor, stages, run.checkpoint["editing"]["stream"]["batch_size"] or 100, run)


def _request(number: int, fact: Fact) -> EditRequest:
    return fact if isinstance(fact, EditRequest) else own_request(fact, number)
