"""Efficacy, paraphrase, neighborhood and retention: measured before, just after each batch and at the end."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from lke_lightning.callbacks.measuring import PROTOCOL, Measurement
from lke_lightning.callbacks.printing import show
from lke_lightning.editor import Editor
from lke_lightning.edits import KINDS, EditBatch, EditError, EditRequest
from lke_lightning.evaluation.judge import Judge
from lke_lightning.evaluation.packing import pack, unpack
from lke_lightning.evaluation.summary import FREE, INTERVALS, by_batch, by_step, probability, section, summarize
from lke_lightning.evaluation.teacher_forced import Scores
from lke_lightning.evaluation.unedited import UneditedScores, user_cache
from lke_lightning.metrics import MEASURES
from lke_lightning.progress import track
from lke_lightning.results import versions, write

ACTIVITIES = ("stage_one", "stage_two", "evaluation", "guard", "checkpoint")
"""Activities whose seconds are always shown; others are shown if they took place."""

WRITE_EVERY, WRITING_SHARE = 5.0, 0.05
"""Minimum seconds between two scorecards during a run, and their maximum share of its time: each summarizes all edits
so far, which would slow down batches of a single edit."""

MEASURED = ("unedited", "just_after", "final")
"""The attributes that hold scores by edit."""

EXAMPLES = 5
"""Edits whose generated answers are shown in the scorecard."""


class Scorecard(Callback):
    """Writes `scorecard.json` into the run's folder.

    What the unedited model scores and answers is kept in the user's cache (`evaluation.unedited`). Where an evaluation
    begins right after a batch, the scores of that batch just after it are its present ones and are not computed again:
    the same prompts ran in the same batches through the same weights, so that every bit would be the same.

    Args:
        before: score the whole stream on the unedited model first; otherwise there is nothing to compare with.
        max_tokens: how many tokens are run at once.
        report: write `scorecard.json` and print it; without it the scores stay on this object.
        text: text files, one document per line, whose perplexity is measured before and at the end; they should be
            unrelated to the edits. `None`: perplexity is not measured.
        text_tokens: how many tokens of that text are read; more make the figure more precise.
        generated: also let the model generate an answer to every prompt whenever it is scored; see
            `evaluation.generated`.
        generated_tokens: maximum length of such an answer.
        fluency: also let it continue the records' generation prompts, before and at the end, for fluency and, where
            records have reference texts, consistency: 100 tokens for each prompt.
        judge: also ask another model whether the generated answers are correct. `None`: no judge.
        one_in: score only the first of every so many edits of the stream, at every moment; the others have no scores.
        generated_one_in: let the model generate answers only for the first of every so many scored edits.
        long_answers: also let the model write answers as long as the targets, before and at the end, and compare their
            words: BLEU and ROUGE-L; see `evaluation.long_answers`.
        embedding: a sentence-embedding model, a folder or a hub name, that compares their meaning too. `None`: none.

    Raises:
        EditError: a text file cannot be read, a number is below 1, there is a judge without `generated`, or an
            `embedding` without `long_answers`.
    """

    def __init__(
        self,
        before: bool = True,
        max_tokens: int = 16384,
        report: bool = True,
        text: list[str] | None = None,
        text_tokens: int = 20000,
        generated: bool = False,
        generated_tokens: int = 32,
        fluency: bool = False,
        judge: Judge | None = None,
        one_in: int = 1,
        generated_one_in: int = 1,
        long_answers: bool = False,
        embedding: str | None = None,
    ) -> None:
        self.before, self.report = before, report
        self.measurement = Measurement(
            max_tokens, text, text_tokens, generated, generated_tokens, fluency, judge, one_in, generated_one_in,
            long_answers, embedding,
        )  # fmt: skip
        self.unedited: dict[str, Scores] = {}
        self.just_after: dict[str, Scores] = {}
        self.final: dict[str, Scores] = {}
        self.batches: list[list[str]] = []
        """Ids of the edits of each batch."""
        self.steps: list[int] = []
        """Steps of stage one for each edit."""
        self.perplexity: dict[str, float | None] = {"before": None, "final": None}
        self.kept: list[dict[str, Any]] = []
        """For each evaluation during the run, the number of edits and the efficacy of each batch of edits."""
        self.outputs: dict[str, str] = {}
        """Texts generated after the edited prompts at the last evaluation, by id."""
        self.cache = user_cache()
        """Where scores of the unedited model are kept; `None`: nowhere."""
        self.recalled = 0
        """How many edits were not scored before the run, because an earlier one has."""
        self._fresh: tuple[Any, ...] = ()
        """Ids, scores and answers of the batch that was scored last, and the weights that it was scored with."""
        self._started = 0.0
        self._write_from = 0.0
        self._evaluated_at = -1
        """How many edits had been made at the last evaluation."""
        self._earlier = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured so far."""
        return {
            **{moment: pack(getattr(self, moment)) for moment in MEASURED},
            "batches": self.batches,
            "steps": self.steps,
            "evaluated_at": self._evaluated_at,
            "perplexity": self.perplexity,
            "kept": self.kept,
            "said": self.outputs,
            "seconds": self._total_seconds(),
            **({"recalled": self.recalled} if self.recalled else {}),  # checkpoints from before lack it
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the measurements of the interrupted run."""
        for moment in MEASURED:
            setattr(self, moment, unpack(state_dict[moment]))
        self.batches, self.steps = list(state_dict["batches"]), list(state_dict["steps"])
        self.perplexity, self.kept = dict(state_dict["perplexity"]), list(state_dict["kept"])
        self.outputs = dict(state_dict["said"])
        self.recalled = state_dict.get("recalled", 0)
        self._earlier, self._evaluated_at = state_dict["seconds"], state_dict["evaluated_at"]

    def setup(self, trainer: Trainer, pl_module: Editor, stage: str) -> None:
        """Check that everything can be measured, before any work.

        Raises:
            EditError: it cannot.
        """
        self.measurement.prepare(trainer.datamodule.requests)

    def on_fit_start(self, trainer: Trainer, pl_module: Editor) -> None:
        """Score the unedited model."""
        self._started = time.perf_counter()
        requests, size = trainer.datamodule.requests, trainer.datamodule.batch_size
        new = [request for request in requests if request.id not in self.unedited] if self.before else []
        parts = [new[i : i + size] for i in range(0, len(new), size)]
        with_text = bool(self.measurement.text and self.perplexity["before"] is None)
        if not (new or with_text):
            return
        with pl_module.as_unedited():
            known = UneditedScores(pl_module.language_model, trainer.precision, self.cache)
            before = set(self.unedited)
            for part in track(parts, "Scoring the unedited model"):
                self.unedited.update(self._score(pl_module, part, "before", known))
            self.recalled += len(self.unedited.keys() - before - known.keep())
            if with_text:
                self.perplexity["before"] = self.measurement.perplexity(pl_module, known)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Editor, outputs: Any, batch: EditBatch, _: int) -> None:
        """Score the batch right after its edit."""
        step = pl_module.step
        edited = step.requests
        step.scores = scored = self._score(pl_module, edited, "just_after") if edited else {}
        self.just_after.update(scored)
        self.batches.append([request.id for request in edited])
        self.steps += step.targets.steps
        summary = summarize(scored.values())
        for kind in KINDS:
            value = summary[kind]["success" if summary[kind]["success"] is not None else "accuracy"]
            if value is not None:
                pl_module.log(f"just_after/{kind}", value, batch_size=len(edited), prog_bar=kind == "efficacy")
        due = trainer.datamodule.due(trainer.global_step)
        if due and self.report:
            self._evaluate(trainer, pl_module, due)
        if due or time.perf_counter() >= self._write_from:
            self._write(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: Editor) -> None:
        """Start a new evaluation."""
        self.final, self.outputs = {}, {}

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Editor, outputs: Any, batch: EditBatch, *_: Any
    ) -> None:
        """Score all facts edited so far; on a model without edits, all facts."""
        edited = set(pl_module.edited)
        requests = [request for request in batch.requests if not edited or request.id in edited]
        names, with_texts = [request.id for request in requests], self.measurement.with_texts
        if requests and not with_texts and self._fresh[:2] == (names, _written(pl_module)):
            self.final |= self._fresh[2]
            self.outputs |= self._fresh[3]
        elif requests:
            self.final.update(self._score(pl_module, requests, "final"))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Editor) -> None:
        """Report on all edits."""
        if not self.final:
            if trainer.state.fn == "validate":
                raise EditError(
                    f"none of the {len(trainer.datamodule.requests)} facts of {trainer.datamodule.name} is in the "
                    "weights, going by their ids: an edited model is scored on its edits, so give the data of its run"
                )
            return
        for name, value in self._finish(trainer, pl_module).items():
            pl_module.log(f"final/{name}", value, batch_size=1)
        self._write(trainer, pl_module)
        if trainer.state.fn != "fit":
            self._print(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Editor) -> None:
        """Score all edits, unless an evaluation just did, as when `val_check_interval` does not divide the batches."""
        if not self.report or self._evaluated_at == pl_module.made or not trainer.enable_validation:
            return
        self._evaluate(trainer, pl_module, trainer.datamodule.requests)

    def _evaluate(self, trainer: Trainer, editor: Editor, requests: Sequence[EditRequest]) -> None:
        """Score edits in the batches in which they were made; not by a loader, which would draw a random number."""
        chosen, stream = {request.id for request in requests}, trainer.datamodule
        batches = [[stream.requests[number] for number in numbers] for numbers in stream.batches]
        batches = [[request for request in batch if request.id in chosen] for batch in batches]
        self.on_validation_epoch_start(trainer, editor)
        for batch in track([batch for batch in batches if batch], "Scoring edits made so far"):
            self.on_validation_batch_end(trainer, editor, None, EditBatch(batch))
        self._finish(trainer, editor)

    def _finish(self, trainer: Trainer, editor: Editor) -> dict[str, float]:
        """End an evaluation: summarize it for the loggers, the ledger and the retention matrix."""
        if self.measurement.text:
            self.perplexity["final"] = self.measurement.perplexity(editor)
        names = list(self.final)
        summed = section(self.final, names, self.unedited) or {}
        found = {f"{kind}_{measure}": summed[kind][measure] for kind in KINDS for measure in MEASURES}
        for kind, measures in summed.get(FREE, {}).items():
            found |= {f"{FREE}_{kind}_{measure}": value for measure, value in measures.items()}
        if self.measurement.text:
            found["perplexity"] = self.perplexity["final"]
        found = {name: value for name, value in found.items() if value is not None}
        event: dict[str, Any] = {"event": "evaluation", "edits": editor.made, **found}
        if trainer.state.fn == "fit":
            batches = by_batch(self.final, self.batches)
            kept = {name: [batch and batch[name] for batch in batches] for name in ("success", "accuracy")}
            if self.measurement.generated:
                kept["generated_exact"] = [batch and batch.get(FREE, {}).get("exact") for batch in batches]
            event["efficacy_by_batch"] = kept
            if trainer.datamodule.steps:
                steps = [[request.id for request in step] for step in trainer.datamodule.steps]
                kept["time_steps"] = by_step(self.final, steps, self.unedited)
            self.kept = [row for row in self.kept if row["edits"] != editor.made]
            self.kept.append({"edits": editor.made, **kept})
        editor.events.append(event)
        self._evaluated_at = editor.made
        return found

    def on_fit_end(self, trainer: Trainer, pl_module: Editor) -> None:
        """Print the scorecard and the paths of the run's files."""
        self._write(trainer, pl_module)
        self._print(trainer, pl_module)

    def card(self, trainer: Trainer, editor: Editor) -> dict[str, Any]:
        """Assemble the scorecard."""
        data, done = trainer.datamodule, [name for batch in self.batches for name in batch]
        norms = {layer: editor.language_model.weight(layer).norms() for layer in editor.language_model.layers}
        sizes = {name: module.size for name, module in editor.language_model.beside.items()}
        return {
            "method": editor.method,
            "model": editor.pretrained,
            "data": data.name,
            "protocol": PROTOCOL,
            "edits": editor.made,
            "batch_size": data.batch_size,
            "before_from_cache": self.recalled,
            "before": section(self.unedited, done or list(self.unedited), self.unedited),
            "just_after": section(self.just_after, done, self.unedited),
            "final": section(self.final, list(self.final), self.unedited),
            **self._unscored(editor),
            "intervals": INTERVALS,
            "retention": self._retention(),
            "retention_matrix": self._matrix(),
            "probability": probability(self.unedited, self.just_after, self.final, done or list(self.unedited)),
            **({FREE: self._how_generated(data.requests)} if self.measurement.generated else {}),
            **({"perplexity": dict(self.perplexity)} if self.measurement.text else {}),
            **({"steps": _mean_and_median(self.steps)} if self.steps else {}),
            "weight_norms": {
                str(layer): {"before": round(before, 4), "after": round(after, 4)}
                for layer, (before, after) in norms.items()
            },
            "strengths": {str(layer): found for layer, found in editor.stages.two.strengths.items()},
            **({"bytes_beside": sizes} if sizes else {}),
            "seconds": {
                **{name: round(spent, 2) for name, spent in (dict.fromkeys(ACTIVITIES, 0.0) | editor.seconds).items()},
                "total": round(self._total_seconds(), 2),
            },
            "device": _device_name(trainer.strategy.root_device),
            "versions": versions(),
        }

    def _unscored(self, editor: Editor) -> dict[str, str]:
        """Say why teacher-forced scores of the edited model are null, where they are."""
        module = editor.language_model.answering
        if module is None:
            return {}
        why = f"a {type(module).__name__} answers in the network's place, and likelihoods do not tell what"
        return {"unscored": f"Teacher-forced scores after editing are undefined: {why}"}

    def _retention(self) -> list[dict[str, Any]]:
        """Final efficacy by age of edit, the oldest batch first; age 0 is the last batch."""
        newest = len(self.batches) - 1
        return [
            {"batch": number, "age": newest - number, **batch}
            for number, batch in enumerate(by_batch(self.final, self.batches))
            if batch is not None
        ]

    def _matrix(self) -> dict[str, Any]:
        """Efficacy of every batch of edits at every evaluation during the run; `None`: none of its edits was active."""
        measures = dict.fromkeys(name for row in self.kept for name in row if name != "edits")
        return {
            "protocol": PROTOCOL,
            "evaluated_after": [row["edits"] for row in self.kept],
            **{name: [row.get(name) for row in self.kept] for name in measures},
        }

    def _how_generated(self, requests: Sequence[EditRequest]) -> dict[str, Any]:
        """Describe how answers were generated and judged, with examples."""
        shown, judge = [r for r in requests if r.id in self.outputs][:EXAMPLES], self.measurement.judge
        return {
            "protocol": FREE,
            "new_tokens": self.measurement.generated_tokens,
            "judge": judge and {"url": judge.url, "model": judge.model},
            "examples": [{"id": r.id, "prompt": r.text, "target": r.target, "said": self.outputs[r.id]} for r in shown],
        }

    def _score(
        self, editor: Editor, requests: Sequence[EditRequest], moment: str, known: UneditedScores | None = None
    ) -> dict[str, Scores]:
        scored, outputs = self.measurement.score(editor, requests, moment != "just_after", known)
        if moment == "final":
            self.outputs |= outputs
        if moment == "just_after":
            self._fresh = [request.id for request in requests], _written(editor), scored, outputs
        return scored

    def _total_seconds(self) -> float:
        return self._earlier + (time.perf_counter() - self._started if self._started else 0.0)

    def _write(self, trainer: Trainer, editor: Editor) -> None:
        if not (self.report and trainer.is_global_zero):
            return
        start, folder = time.perf_counter(), Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "scorecard.json", json.dumps(self.card(trainer, editor), indent=1) + "\n")
        now = time.perf_counter()
        self._write_from = now + max(WRITE_EVERY, (now - start) / WRITING_SHARE)

    def _print(self, trainer: Trainer, editor: Editor) -> None:
        if self.report and trainer.is_global_zero:
            saved = getattr(trainer.checkpoint_callback, "last_model_path", "")
            show(self.card(trainer, editor), str(Path(trainer.default_root_dir) / "scorecard.json"), saved)


def _written(editor: Editor) -> list[tuple[int, int]]:
    """Identify the edits that hold and the weights, by which batch it was that wrote them last."""
    weights = [editor.language_model.weight(layer).written for layer in editor.language_model.layers]
    return [(editor.made, len(editor.edited)), *weights]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _mean_and_median(steps: Sequence[int]) -> dict[str, float]:
    return {"mean": round(statistics.mean(steps), 2), "median": statistics.median(steps)}
