"""Edit a model that is already loaded, and go on editing it, from Python; the same stages as in a run of `fit`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lke_lightning import checkpoints, export, run_folder
from lke_lightning.callbacks.recording import entries_of
from lke_lightning.composition import compose
from lke_lightning.configuration import find, read
from lke_lightning.data import own_request
from lke_lightning.data.records import naming
from lke_lightning.editor import Editor
from lke_lightning.edits import EditBatch, EditError, EditRequest, check_list, check_number
from lke_lightning.evaluation.generated import respond
from lke_lightning.evaluation.summary import summarize
from lke_lightning.evaluation.teacher_forced import Scores, score
from lke_lightning.ledger import Entry, Ledger, locked
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.run_folder import BATCH_SIZE, Run
from lke_lightning.stage_one.stage import StageOne
from lke_lightning.stage_two.stage import StageTwo
from lke_lightning.stages import Stages

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Fact = EditRequest | dict[str, Any]
"""An edit; as a dict it has the fields of a record of `JsonLines`."""


def edit(
    model: PreTrainedModel,
    tokenizer: Any,
    facts: Sequence[Fact],
    layers: list[int] | None = None,
    stage_one: StageOne | None = None,
    stage_two: StageTwo | None = None,
    batch_size: int = BATCH_SIZE,
    config: str | Path = "method/encore.yaml",
) -> EditedModel:
    """Edit a loaded causal language model in place, on the device where it is.

    Args:
        model: what `AutoModelForCausalLM.from_pretrained` returns; it stays in evaluation mode, its weights frozen.
        tokenizer: its tokenizer.
        facts: edits, or dicts with the fields that a line of a JSON Lines file has: `prompt`, `target` and the optional
            ones; the subject may be spelled out in the prompt or marked there by `{}`.
        layers: layers to edit, ascending; `None`: those of `config`, else those that the model's own configuration
            names as `edit_layers`.
        stage_one: how targets are found, not used before; default: as `config` says.
        stage_two: how they are written, not used before; default: as `config` says.
        batch_size: edits of one step.
        config: a YAML file with the sections `stage_one`, `stage_two` and perhaps `model`: a path, or a name below
            `configs/` such as `method/rect.yaml`, which serve every model; published strengths are written by
            `python -m lke_lightning published METHOD MODEL --output FILE`. It is trusted.

    Raises:
        EditError: a fact or the model cannot be edited with; the model is what it was then, as after any error.
    """
    stages, written, options = _composed(config, layers)
    if stage_one or stage_two:
        stages, written = Stages(stage_one or stages.one, stage_two or stages.two), {}
        options["method"] = "stages of your own"
    if stages.one.contexts or stages.two.memory:
        raise EditError("these stages know the edits of another model: make a stage_one and a stage_two for this one")
    editor = Editor.around(model, tokenizer, options.pop("layers"), stages, **options)
    editor.configuration = written
    return EditedModel(editor, stages, batch_size).edit(facts)


def begin(
    pretrained: str,
    layers: list[int] | None = None,
    config: str | Path = "method/encore.yaml",
    chat: bool = False,
    trust_remote_code: bool = False,
) -> EditedModel:
    """Load a model that no run has edited, on the CPU; `edit` makes its first edits, and `save` a run's folder.

    Args:
        pretrained: a folder, a hub name, a GGUF file in either, or `demo`.
        layers: see `edit`.
        config: see `edit`.
        chat: ask every prompt through the tokenizer's chat template.
        trust_remote_code: run code that comes with the model.

    Raises:
        EditError: the model cannot be loaded or edited.
    """
    stages, written, options = _composed(config, layers)
    options["chat"] = chat or options.get("chat", False)
    editor = Editor(pretrained, trust_remote_code=trust_remote_code, **options)
    editor.stages, editor.configuration = stages, written
    editor.configure_model()
    return EditedModel(editor, stages, BATCH_SIZE)


def resume(
    folder: str | Path | Run,
    stage_one: StageOne | None = None,
    stage_two: StageTwo | None = None,
    pretrained: str | None = None,
    trust: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> EditedModel:
    """Open a run's folder, with the memory of its edits; `save` writes what changes back into it.

    The model is loaded on the CPU; `resume(folder).model.to("cuda")` moves it.

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
    run = folder if isinstance(folder, Run) else Run.read(folder)
    one, two = stage_one, stage_two
    if one is None or two is None:
        made = run.stages(trust)
        one, two = one or made.one, two or made.two
    with checkpoints.understood("the state of the stages"):
        one.load_state_dict(run.checkpoint["callbacks"][one.state_key])
        two.load_state_dict(run.checkpoint["callbacks"][two.state_key])
    moved = {} if pretrained is None else {"pretrained": pretrained}
    editor = Editor.restored(run.checkpoint, trust_remote_code=trust_remote_code, **moved)
    if stage_one or stage_two:
        editor.configuration = {}  # that of the run does not describe them
    two.prepare(editor.language_model)
    return EditedModel(editor, Stages(one, two), run.checkpoint["editing"]["stream"]["batch_size"], run)


class EditedModel:
    """A language model under lifelong editing, with the memory of its edits; `edit` and `resume` make it.

    Whatever fails or is interrupted, the model and its memory are what they were before the call.
    """

    def __init__(self, editor: Editor, stages: Stages, batch_size: int, run: Run | None = None) -> None:
        self.editor, self.stages, self.batch_size = editor, stages, batch_size
        self.before: dict[str, Any] = {}
        """Scores of the unedited model on the facts that the last `edit` wrote, as in the scorecard."""
        self.after: dict[str, Any] = {}
        """Scores of the edited model on them."""
        editor.readout = stages.two.readout
        self._run = run
        """The run's folder as it was read or written last; `None`: there is none yet."""
        self._entries: list[Entry] = []
        """What the ledger is to be told of what happened since."""
        self.requests = {} if run is None else {request.id: request for request in run.requests()}
        """All edits ever made, by id; of those that `resume` has read, what the ledger keeps."""

    def __repr__(self) -> str:
        """Count the edits."""
        name = type(self.model).__name__
        return f"EditedModel({name}: {len(self.edited)} of {self.editor.made} edits in the weights)"

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model; it may be moved to another device."""
        return self.editor.language_model.network

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self.editor.language_model.text.tokenizer

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
            EditError: a fact cannot be edited, or its id was used before.
        """
        size = self.batch_size if batch_size is None else batch_size
        check_number("batch_size", size, at_least=1)
        requests = _read(facts, self.editor.register.ids)
        entries: list[Entry] = []
        with self._all_or_nothing() as model:
            self.stages.prepare(model, requests)
            with self.editor.as_unedited():
                before = self._score(requests)
            first = sum(entry["event"] == "batch" for entry in self._entries) + (self._run.batches if self._run else 0)
            for number, start in enumerate(range(0, len(requests), size), first):
                entries += self._edit_batch(model, EditBatch.of(requests[start : start + size]), number)
            holding = set(self.edited)
            after = self._score([request for request in requests if request.id in holding])
        self.before, self.after = summarize([before[name] for name in after]), summarize(after.values())
        self.batch_size = size
        self._entries += entries
        self.requests |= {request.id: request for request in requests}
        return self

    def history(self) -> Iterator[Entry]:
        """Yield what happened to the model, as in the ledger: what `save` wrote, then what it has not written yet."""
        if self._run is not None:
            yield from Ledger(self._run.root).read(self._run.size)
        yield from self._entries

    def undo(self, *ids: str | int) -> dict[str, str | None]:
        """Take edits back, exactly, as if they had never been made; returns which earlier edit each brings back.

        Raises:
            EditError: one of them is not in the weights, or the method has no exact undo.
        """
        return self._change("undo", self.stages.two.undo, ids)

    def redo(self, *ids: str | int) -> dict[str, str | None]:
        """Write edits again that were undone or replaced; returns which edit each takes the place of.

        Raises:
            EditError: one of them is in the weights already, or the method has no exact undo.
        """
        return self._change("redo", self.stages.two.redo, ids)

    def revert(self) -> None:
        """Give the model its unedited weights back, bit for bit, by any method; all edits count as undone."""
        gone = self.edited
        with self._all_or_nothing() as model:
            self.stages.two.revert(model, self.editor.register)
        self._entries += [{"event": "undo", "id": name, "other": None} for name in gone]

    def score(self, facts: Sequence[Fact] | None = None) -> dict[str, Any]:
        """Score the model as it is now, as in the scorecard.

        Args:
            facts: what is asked; default: all edits that are in the weights. Of those that `resume` has read, the
                folder knows the edited prompts alone.
        """
        holding = [self.requests[name] for name in self.edited]
        return summarize(self._score(holding if facts is None else _read(facts)).values())

    def answer(self, prompts: Sequence[str], new_tokens: int = 32) -> list[str]:
        """Answer questions as generated answers are scored: greedily, up to a line break, with what is told in context.

        Args:
            prompts: the questions.
            new_tokens: how long an answer may become.
        """
        self._follow()
        with self.editor.as_read():
            return respond(self.editor.language_model, prompts, new_tokens)

    def export(
        self,
        output: str | Path,
        format: str = "merged",
        rank: int | None = None,
        tolerance: float | None = None,
        dtype: str | None = None,
        push_to_hub: str | None = None,
        private: bool = False,
    ) -> None:
        """Write the edits as a model, as their change alone, as a LoRA adapter, as a memory or as a GGUF file.

        Arguments and errors are those of `python -m lke_lightning export`.
        """
        options = export.Options(format, rank, tolerance, dtype, push_to_hub, private)
        run = None if self._run is None else self._run.checkpoint
        self._follow()
        export.write(self.editor, Path(output), options, run)
        export.push(self.editor, Path(output), options, run)

    def save(self, folder: str | Path, keep: int = -1) -> None:
        """Write a run's folder, for `resume` and for the commands `log`, `show`, `undo`, `redo`, `export`.

        Args:
            folder: the folder that was opened or written before, or one that does not exist or is empty.
            keep: how many checkpoints stay there, the newest; -1: all of them.

        Raises:
            EditError: the folder holds something else, was changed by others since, or cannot be written.
        """
        if keep != -1:
            check_number("keep", keep, at_least=1)
        root = Path(folder)
        known = self._run if self._run and self._run.root == root.resolve() else None
        if known is None:
            run_folder.check_unused(root)
        with locked(root):
            if known is not None:
                known.check_newest()
            path = self.write_into(root)
            if keep != -1:
                checkpoints.keep_newest(path.parent, keep)

    def write_into(self, root: Path) -> Path:
        """Write into a run's folder that this process has locked, and return the checkpoint; see `save`."""
        self._run = run_folder.write(root, self._run, self.editor, self.stages, self._entries, self.batch_size)
        self._entries = []
        return self._run.path

    def _edit_batch(self, model: LanguageModel, batch: EditBatch, number: int) -> list[Entry]:
        editor = self.editor
        with editor.working("stage_one"):
            editor.step = self.stages.aim(model, batch)
        editor.carry_out(self.stages)
        self.stages.one.settle(editor.step)
        editor.step.scores = self._score(editor.step.requests)
        return entries_of(editor, number)

    def _score(self, requests: Sequence[EditRequest]) -> dict[str, Scores]:
        self._follow()
        with self.editor.working("evaluation"), self.editor.as_read():
            scored = score(self.editor.language_model, requests) if requests else []
        return {request.id: scores for request, scores in zip(requests, scored, strict=True)}

    def _change(
        self, event: str, change: Callable[..., dict[str, str | None]], ids: Sequence[str | int]
    ) -> dict[str, str | None]:
        names = list(dict.fromkeys(map(str, ids)))
        with self._all_or_nothing() as model:
            others = change(model, self.editor.register, names)
        self._entries += [{"event": event, "id": name, "other": other} for name, other in others.items()]
        return others

    @contextmanager
    def _all_or_nothing(self) -> Iterator[LanguageModel]:
        """Take back what was done to the model and its memory where it is not finished, as in an interrupted cell."""
        self._follow()
        model, register, stages = self.editor.language_model, self.editor.register, self.stages
        mark = stages.mark(model, register)
        try:
            yield model
        except BaseException:
            stages.roll_back(model, register, mark)
            raise

    def _follow(self) -> None:
        """Bring the change of the weights to where the model is, which its owner may have moved."""
        for weight in self.editor.language_model.edited.values():
            weight.to(weight.matrix.weight.device)
        self.editor.language_model.beside.to(self.model.device)


def _composed(config: str | Path, layers: list[int] | None) -> tuple[Stages, dict[str, Any], dict[str, Any]]:
    """Return the stages of a YAML file, what a checkpoint is told of them, and an editor's options."""
    configuration = read(find(config))
    section = configuration.get("model") or {}
    options = {name: section[name] for name in ("matrix", "chat", "system", "method") if name in section}
    return *compose(configuration), {**options, "layers": layers or section.get("layers")}


def _read(facts: Sequence[Fact], used: Sequence[str] = ()) -> list[EditRequest]:
    """Turn facts into requests; those without an id are numbered, from the count of the ids that are used on.

    Raises:
        EditError: there are none, one is no fact, or an id was used before.
    """
    requests: dict[str, EditRequest] = {}
    taken = set(used)
    for i, fact in enumerate(check_list(facts, "facts", lambda fact, _: fact)):
        with naming("facts", i):
            free = (n for n in itertools.count(len(used) + i) if str(n) not in taken)
            request = fact if isinstance(fact, EditRequest) else own_request(fact, next(free))
            if request.id in taken:
                raise EditError(f"the id {request.id!r} was used before: give this edit another")
        requests[request.id] = request
        taken.add(request.id)
    if not requests:
        raise EditError("facts is empty: give at least one")
    return list(requests.values())
