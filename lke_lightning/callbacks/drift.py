"""Measures how far a run changes its model, for the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from lke_lightning.data.corpus import check_files, read_documents
from lke_lightning.editor import Editor
from lke_lightning.edits import EditBatch, check_number
from lke_lightning.evaluation.drift import contributions, key_drift, matrix_norms, spectrum
from lke_lightning.results import write

NAME = "drift.json"


class Drift(Callback):
    """Writes `drift.json` into the run's folder; without settings it does nothing and costs nothing.

    What is measured is the model that is scored, with the method's readout. The file holds

    - `norms`: for the unedited model and after every batch, `edits` made and the Frobenius norm of each edited matrix;
    - `matrix_norms`: at the end, that norm for the MLP output matrix of every block, `before` and `after`;
    - `snapshots`: `edits` made, and by layer the `spectrum` of the change and its `key_drift`
      (`lke_lightning.evaluation.drift`), where stage two has statistics of keys;
    - `unedited`: the spectrum of each unedited matrix, to compare with;
    - `contributions`: `before` and `after`, what each sub-module adds to the residual stream on `text`.

    Args:
        measure: measure at the end of the run; the settings below imply it.
        every: also take a snapshot every so many edits, at the end of the batch in which they are reached. Each takes
            an eigendecomposition of hidden size for every edited layer.
        text: text files, one document per line, for the contributions; they should be unrelated to the edits.
        text_tokens: how many tokens of that text are read; more make the figure more precise.

    Raises:
        EditError: a text file cannot be read, or a number is below 1.
    """

    def __init__(
        self,
        measure: bool = False,
        every: int | None = None,
        text: list[str] | None = None,
        text_tokens: int = 2000,
    ) -> None:
        check_files(text or [], "drift.text")
        check_number("drift.text_tokens", text_tokens, at_least=1)
        if every is not None:
            check_number("drift.every", every, at_least=1)
        self.is_measuring = measure or every is not None or bool(text)
        self.every, self.text, self.text_tokens = every, text, text_tokens
        self.norms: list[dict[str, Any]] = []
        self.snapshots: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured so far."""
        return {"norms": self.norms, "snapshots": self.snapshots}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the measurements of the interrupted run."""
        self.norms, self.snapshots = list(state_dict["norms"]), list(state_dict["snapshots"])

    def on_fit_start(self, trainer: Trainer, pl_module: Editor) -> None:
        """Note the norms of the unedited matrices."""
        if self.is_measuring and not self.norms:
            with pl_module.as_unedited():
                self._note_norms(pl_module, 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Editor, outputs: Any, batch: EditBatch, batch_idx: int
    ) -> None:
        """Note the norms, and take a snapshot where one is due."""
        if not self.is_measuring:
            return
        earlier = self.norms[-1]["edits"] if self.norms else 0
        with pl_module.working("drift"), pl_module.as_read():
            self._note_norms(pl_module, pl_module.made)
            if self.every is not None and pl_module.made // self.every > earlier // self.every:
                self._take_snapshot(trainer, pl_module)
                self._write(trainer, {"edits": pl_module.made})

    def on_fit_end(self, trainer: Trainer, pl_module: Editor) -> None:
        """Take the final measurements, and write the file."""
        if not self.is_measuring:
            return
        model = pl_module.language_model
        found: dict[str, Any] = {"edits": pl_module.made, "matrix_norms": {}, "contributions": {}}
        with pl_module.working("drift"):
            for moment, state in (("before", pl_module.as_unedited), ("after", pl_module.as_read)):
                with state():
                    found["matrix_norms"][moment] = matrix_norms(model)
                    if self.text:
                        texts = list(read_documents(self.text, "drift.text"))
                        found["contributions"][moment] = contributions(model, texts, self.text_tokens).plain()
                    if moment == "before":
                        found["unedited"] = {
                            str(layer): spectrum(model.weight(layer).live() - model.weight(layer).delta)
                            for layer in model.layers
                        }
                    elif not self.snapshots or self.snapshots[-1]["edits"] != pl_module.made:
                        self._take_snapshot(trainer, pl_module)
        self._write(trainer, found)

    def _note_norms(self, editor: Editor, edits: int) -> None:
        norms = {str(layer): editor.language_model.weight(layer).norms()[1] for layer in editor.language_model.layers}
        self.norms.append({"edits": edits, "norms": norms})

    def _take_snapshot(self, trainer: Trainer, editor: Editor) -> None:
        statistics, moments = editor.stages.two.statistics, dict[int, Any]()
        if statistics is not None:
            with editor.as_unedited():  # those without a cache are computed from the model as it is
                moments = statistics.second_moments(editor.language_model)
        weights = {str(layer): editor.language_model.weight(layer) for layer in editor.language_model.layers}
        self.snapshots.append(
            {
                "edits": editor.made,
                "spectrum": {layer: spectrum(weight.delta) for layer, weight in weights.items()},
                "key_drift": {str(layer): key_drift(weights[str(layer)], moment) for layer, moment in moments.items()},
            }
        )

    def _write(self, trainer: Trainer, found: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            known = {**found, "norms": self.norms, "snapshots": self.snapshots}
            write(Path(trainer.default_root_dir) / NAME, json.dumps(known, indent=1) + "\n")
