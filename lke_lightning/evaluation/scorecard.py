"""What was learned and what was kept: measured before, just after each batch and at the end, written as it comes."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lke_lightning.distributed import Team
from lke_lightning.editor import Editor
from lke_lightning.edits import EditBatch, EditError, EditRequest
from lke_lightning.evaluation.perplexity import perplexity, read_documents
from lke_lightning.evaluation.teacher_forced import KINDS, Scores, score
from lke_lightning.metrics import MEASURES, Preference, harmonic_mean
from lke_lightning.results import versions, write

PROTOCOL = "teacher-forced"

ACTIVITIES = ("stage_one", "stage_two", "evaluation", "guard", "checkpoint")
"""What seconds are told of."""

WRITE_EVERY = 5.0
"""Seconds: a scorecard sums up all edits so far, which batches of a single edit should not wait for."""


def summarize(scores: Iterable[Scores]) -> dict[str, Any]:
    """Average the scores of some edits.

    Returns:
        For each kind a dict of success, magnitude and accuracy, and under `score` the harmonic mean S of the three
        successes; fractions, `None` where undefined.
    """
    metrics = {kind: Preference() for kind in KINDS}
    for metric in metrics.values():
        # every process has the scores of all edits, and perhaps only one of them is here
        metric.distributed_available_fn = lambda: False
    for scored in scores:
        for kind, metric in metrics.items():
            wanted, other, correct = scored[kind].T
            metric.update(wanted, other, correct.bool())
    summary: dict[str, Any] = {}
    for kind, metric in metrics.items():
        means = metric.compute() if metric.update_called else dict.fromkeys(MEASURES, torch.tensor(torch.nan))
        summary[kind] = {name: None if mean.isnan() else round(mean.item(), 6) for name, mean in means.items()}
    total = harmonic_mean([summary[kind]["success"] for kind in KINDS])
    return {**summary, "score": None if total is None else round(total, 6)}


class Scorecard(Callback):
    """Writes `scorecard.json` into the run's folder.

    Args:
        before: score the whole stream on the unedited model first; without it there is nothing to compare with.
        max_tokens: how many tokens are run at once.
        report: write `scorecard.json` and print it; without it the scores stay on this object.
        text: text files, a document per line, whose perplexity is measured before and at the end; none of the edits
            should be about them. `None`: perplexity is not measured.
        text_tokens: how many tokens of that text are read; more of them make the figure surer.

    Raises:
        EditError: a text file is not there.
    """

    def __init__(
        self,
        before: bool = True,
        max_tokens: int = 16384,
        report: bool = True,
        text: list[str] | None = None,
        text_tokens: int = 20000,
    ) -> None:
        missing = [name for name in text or [] if not Path(name).is_file()]
        if missing:
            raise EditError(f"no text file {missing[0]!r} (scorecard.text)")
        self.before, self.max_tokens, self.report = before, max_tokens, report
        self.text, self.text_tokens = text, text_tokens
        self.unedited: dict[str, Scores] = {}
        self.just_after: dict[str, Scores] = {}
        self.final: dict[str, Scores] = {}
        self.batches: list[list[str]] = []
        """Ids of the edits of each batch."""
        self.steps: list[int] = []
        """What stage one took for each edit."""
        self.perplexity: dict[str, float | None] = {"before": None, "final": None}
        self._started = 0.0
        self._written = -WRITE_EVERY
        self._evaluated_at = -1
        """How many edits had been made at the last evaluation."""
        self._earlier = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured so far."""
        return {
            "unedited": self.unedited,
            "just_after": self.just_after,
            "batches": self.batches,
            "steps": self.steps,
            "final": self.final,
            "evaluated_at": self._evaluated_at,
            "perplexity": self.perplexity,
            "seconds": self._total_seconds(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what the interrupted run measured."""
        self.unedited, self.just_after = dict(state_dict["unedited"]), dict(state_dict["just_after"])
        self.batches, self.steps = list(state_dict["batches"]), list(state_dict["steps"])
        self.final, self.perplexity = dict(state_dict["final"]), dict(state_dict["perplexity"])
        self._earlier, self._evaluated_at = state_dict["seconds"], state_dict["evaluated_at"]

    def on_fit_start(self, trainer: Trainer, pl_module: Editor) -> None:
        """Score the unedited model."""
        self._started = time.perf_counter()
        requests, size = trainer.datamodule.requests, trainer.datamodule.batch_size
        new = [request for request in requests if request.id not in self.unedited] if self.before else []
        parts = [new[i : i + size] for i in range(0, len(new), size)]
        with pl_module.as_unedited():
            for part in track(parts, "Scoring the unedited model", transient=True):
                self.unedited.update(self._score(trainer, pl_module, part))
            if self.text and self.perplexity["before"] is None:
                self.perplexity["before"] = self._perplexity(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Editor, outputs: Any, batch: EditBatch, _: int) -> None:
        """Score the batch right after its edit."""
        edited = pl_module.batch.requests
        pl_module.scores = scored = self._score(trainer, pl_module, edited) if edited else {}
        self.just_after.update(scored)
        self.batches.append([request.id for request in edited])
        self.steps += pl_module.targets.steps
        summary = summarize(scored.values())
        for kind in KINDS:
            value = summary[kind]["success" if summary[kind]["success"] is not None else "accuracy"]
            if value is not None:
                pl_module.log(f"just_after/{kind}", value, batch_size=len(edited), prog_bar=kind == "efficacy")
        if time.perf_counter() - self._written >= WRITE_EVERY:
            self._write(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Editor, outputs: Any, batch: EditBatch, *_: Any
    ) -> None:
        """Score all facts edited so far; on a model without edits, all facts."""
        edited = set(pl_module.edited)
        requests = [request for request in batch.requests if not edited or request.id in edited]
        if requests:
            self.final.update(self._score(trainer, pl_module, requests))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: Editor) -> None:
        """Start a new measurement."""
        self.final = {}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Editor) -> None:
        """Report on all edits."""
        if not self.final:
            return
        if self.text:
            self.perplexity["final"] = self._perplexity(trainer, pl_module)
        for name, value in self._finish(pl_module).items():
            pl_module.log(f"final/{name}", value, batch_size=1)
        self._write(trainer, pl_module)
        if trainer.state.fn != "fit":
            self._print(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: Editor) -> None:
        """Score all edits, unless an evaluation just did, as when `val_check_interval` does not divide the batches."""
        if not self.report or self._evaluated_at == pl_module.made or not trainer.enable_validation:
            return
        self.final, edited = {}, set(pl_module.edited)
        requests = [request for request in trainer.datamodule.requests if request.id in edited]
        size = trainer.datamodule.batch_size
        for i in track(range(0, len(requests), size), "Scoring all edits", transient=True):
            self.final.update(self._score(trainer, pl_module, requests[i : i + size]))
        if self.text:
            self.perplexity["final"] = self._perplexity(trainer, pl_module)
        self._finish(pl_module)

    def _finish(self, editor: Editor) -> dict[str, float]:
        """Sum an evaluation up, for the loggers and the ledger."""
        summary = summarize(self.final.values())
        found = {f"{kind}_{measure}": summary[kind][measure] for kind in KINDS for measure in MEASURES}
        if self.text:
            found["perplexity"] = self.perplexity["final"]
        found = {name: value for name, value in found.items() if value is not None}
        editor.events.append({"event": "evaluation", "edits": editor.made, **found})
        self._evaluated_at = editor.made
        return found

    def on_fit_end(self, trainer: Trainer, pl_module: Editor) -> None:
        """Print the scorecard and where things are."""
        self._write(trainer, pl_module)
        self._print(trainer, pl_module)

    def card(self, trainer: Trainer, editor: Editor) -> dict[str, Any]:
        """Assemble the scorecard."""
        data, done = trainer.datamodule, [name for batch in self.batches for name in batch]
        norms = {layer: editor.language_model.weight(layer).norms() for layer in editor.language_model.layers}
        return {
            "method": editor.method,
            "model": editor.pretrained,
            "data": data.name,
            "protocol": PROTOCOL,
            "edits": editor.made,
            "batch_size": data.batch_size,
            "before": _section(self.unedited, done or list(self.unedited)),
            "just_after": _section(self.just_after, done),
            "final": _section(self.final, list(self.final)),
            "retention": self._retention(),
            **({"perplexity": dict(self.perplexity)} if self.text else {}),
            **({"steps": _mean_and_median(self.steps)} if self.steps else {}),
            "weight_norms": {
                str(layer): {"before": round(before, 4), "after": round(after, 4)}
                for layer, (before, after) in norms.items()
            },
            "seconds": {
                **{name: round(editor.seconds.get(name, 0.0), 2) for name in ACTIVITIES},
                "total": round(self._total_seconds(), 2),
            },
            "device": _device_name(trainer.strategy.root_device),
            "versions": versions(),
        }

    def _retention(self) -> list[dict[str, Any]]:
        """Final efficacy by age of edit, the oldest batch first; age 0 is the last batch."""
        kept = []
        for number, batch in enumerate(self.batches):
            scored = [self.final[name] for name in batch if name in self.final]
            if scored:
                efficacy = summarize(scored)["efficacy"]
                kept.append({"batch": number, "age": len(self.batches) - 1 - number, "edits": len(scored), **efficacy})
        return kept

    def _score(self, trainer: Trainer, editor: Editor, requests: Sequence[EditRequest]) -> dict[str, Scores]:
        with trainer.precision_plugin.forward_context(), editor.timed("evaluation"), editor.as_read():
            model = editor.language_model
            team = Team.of(model.network)
            share = team.share(requests)  # every edit's own scores are gathered: nothing is averaged before
            scored = team.gather(score(model, share, self.max_tokens) if share else [])
        return {request.id: scores for request, scores in zip(requests, scored, strict=True)}

    def _perplexity(self, trainer: Trainer, editor: Editor) -> float:
        with trainer.precision_plugin.forward_context(), editor.timed("evaluation"), editor.as_read():
            documents = read_documents(self.text or [])
            found = perplexity(editor.language_model, documents, self.text_tokens, max_tokens=self.max_tokens)
        return round(found, 4)

    def _total_seconds(self) -> float:
        return self._earlier + (time.perf_counter() - self._started if self._started else 0.0)

    def _write(self, trainer: Trainer, editor: Editor) -> None:
        if not (self.report and trainer.is_global_zero):
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "scorecard.json", json.dumps(self.card(trainer, editor), indent=1) + "\n")
        self._written = time.perf_counter()

    def _print(self, trainer: Trainer, editor: Editor) -> None:
        if not (self.report and trainer.is_global_zero):
            return
        card, console = self.card(trainer, editor), Console()
        table = Table(
            title=f"{card['method']} · {card['edits']} edits of {card['data']} in batches of {card['batch_size']}",
            caption=f"{PROTOCOL}; success (accuracy), fractions of 1",
        )
        table.add_column("")
        for kind in (*KINDS, "S"):
            table.add_column(kind, justify="right")
        for moment in ("before", "just_after", "final"):
            if card[moment]:
                cells = [_cell(card[moment][kind]) for kind in KINDS]
                table.add_row(moment.replace("_", " "), *cells, _number(card[moment]["score"]))
        console.print(table)
        growth = " ".join(f"{layer}: x{n['after'] / n['before']:.2f}" for layer, n in card["weight_norms"].items())
        console.print(f"Norm growth of the edited matrices, by layer  {growth}")
        if self.text:
            measured = {name: value for name, value in self.perplexity.items() if value is not None}
            console.print("Perplexity of untouched text  " + ", ".join(f"{n} {v:.2f}" for n, v in measured.items()))
        console.print("Seconds  " + ", ".join(f"{name} {value:.1f}" for name, value in card["seconds"].items()))
        console.print(f"Scorecard   {Path(trainer.default_root_dir) / 'scorecard.json'}", soft_wrap=True)
        saved = getattr(trainer.checkpoint_callback, "last_model_path", "")
        if saved:
            console.print(f"Checkpoint  {saved}", soft_wrap=True)


def _section(scores: dict[str, Scores], names: Sequence[str]) -> dict[str, Any] | None:
    found = [scores[name] for name in names if name in scores]
    return summarize(found) if found else None


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _mean_and_median(steps: Sequence[int]) -> dict[str, float]:
    return {"mean": round(statistics.mean(steps), 2), "median": statistics.median(steps)}


def _cell(measures: dict[str, float | None]) -> str:
    return f"{_number(measures['success'])} ({_number(measures['accuracy'])})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
