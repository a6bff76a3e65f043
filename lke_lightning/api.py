"""Edit a model that is already loaded, in a notebook or a script, through the same engine as the command line."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from lke_lightning.composition import compose
from lke_lightning.configuration import find, read
from lke_lightning.data import RequestList
from lke_lightning.editor import Editor
from lke_lightning.edits import EditRequest
from lke_lightning.evaluation.scorecard import Scorecard, summarize
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_two.update import WeightUpdate


@dataclass(frozen=True)
class EditResult:
    """What `edit` did; the model it was given is edited in place."""

    editor: Editor
    """Holds the model and its changes; `editor.save_pretrained(folder)` writes the edited model."""
    before: dict[str, Any]
    """Scores of the unedited model, as in the scorecard."""
    after: dict[str, Any]
    """Scores of the edited model over all requests."""

    stage_two: WeightUpdate
    """Holds the memory of the edits."""

    def undo(self, *ids: str) -> None:
        """Take edits back, exactly, as if they had never been made.

        Raises:
            EditError: one of them is not in the weights, or the method has no exact undo; nothing is changed then.
        """
        self.stage_two.undo(self.editor.language_model, ids)

    def redo(self, *ids: str) -> None:
        """Write edits again that were undone.

        Raises:
            EditError: one of them is in the weights already; nothing is changed then.
        """
        self.stage_two.redo(self.editor.language_model, ids)

    def revert(self) -> None:
        """Give the model its unedited weights back, bit for bit."""
        self.editor.revert()


def edit(
    model: Any,
    tokenizer: Any,
    requests: Sequence[EditRequest | dict[str, Any]],
    layers: list[int] | None = None,
    stage_one: TargetOptimization | None = None,
    stage_two: WeightUpdate | None = None,
    batch_size: int = 100,
    config: str | Path = "method/encore.yaml",
) -> EditResult:
    """Edit a loaded causal language model in place.

    Args:
        model: what `AutoModelForCausalLM.from_pretrained` returns.
        tokenizer: its tokenizer.
        requests: edits, or dicts with `prompt`, `target` and the optional fields of an `EditRequest`; the subject may
            be spelled out in the prompt or marked there by `{}`.
        layers: layers to edit, ascending; `None`: those of `config`, else those that the model's own configuration
            names as `edit_layers`.
        stage_one: how targets are found; default: as `config` says.
        stage_two: how they are written; default: as `config` says.
        batch_size: edits of one step.
        config: a YAML file with the sections `stage_one`, `stage_two` and perhaps `model.layers`: a path, or a name
            below `configs/` such as `method/rect.yaml`, which have the strengths of the demo model; those of others
            are written by `python -m lke_lightning published METHOD MODEL --output FILE`.

    Raises:
        EditError: a request or the model cannot be edited with; the model is what it was then, as after any error.
    """
    configuration = read(find(config))
    stages = compose(configuration)
    stream = RequestList([_request(i, request) for i, request in enumerate(requests)], batch_size)
    editor = Editor.around(model, tokenizer, layers or configuration.get("model", {}).get("layers"))
    scorecard = Scorecard(report=False)
    update = stage_two or stages.two
    trainer = Trainer(
        max_epochs=1,
        callbacks=[stage_one or stages.one, update, scorecard],
        accelerator="cuda" if model.device.type == "cuda" else "cpu",
        devices=1,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        inference_mode=False,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        default_root_dir=tempfile.gettempdir(),
    )
    try:
        trainer.fit(editor, datamodule=stream)
    except BaseException:  # also an interrupted notebook cell: the caller's model is not left half edited
        editor.revert()
        raise
    return EditResult(editor, summarize(scorecard.unedited.values()), summarize(scorecard.final.values()), update)


def _request(number: int, request: EditRequest | dict[str, Any]) -> EditRequest:
    if isinstance(request, EditRequest):
        return request
    fields = {"id": str(number), **request}
    return EditRequest.about(fields.pop("prompt"), fields.pop("subject", None), **fields)
