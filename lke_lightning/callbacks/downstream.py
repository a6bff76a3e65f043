"""Measures general capabilities on downstream tasks: before, every so many edits and at the end."""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from rich.table import Table

from lke_lightning.editor import Editor
from lke_lightning.edits import EditBatch, EditError, check_number
from lke_lightning.evaluation.downstream import Result, Task
from lke_lightning.evaluation.harness import LmEval
from lke_lightning.evaluation.tasks import MMLU, MRPC, NLI, RTE, SST2, CoLA
from lke_lightning.evaluation.text_choices import Agreement, Completion
from lke_lightning.evaluation.text_perplexity import MEPPL
from lke_lightning.results import versions, write

NAME = "downstream.json"

TASKS = (SST2, MRPC, CoLA, RTE, NLI, MMLU, MEPPL, Agreement, Completion, LmEval)
"""Tasks whose `class_path` needs no module."""


class Downstream(Callback):
    """Writes `downstream.json` into the run's folder, and a `downstream` entry to the ledger at each measurement.

    Without tasks it does nothing and costs nothing. Checkpoints contain the results, which are not measured again.

    Args:
        tasks: the tasks to measure; see docs/capability.md.
        every_n_edits: measure after the batch that completes every so many edits; 0: only before, after each time step
            of the data, if it has any, and at the end.
        before: measure the unedited model first; without it there is nothing to compare with.
        max_tokens: how many tokens are run at once.

    Raises:
        EditError: a task cannot be measured, two have one name, or a number is too small.
    """

    def __init__(
        self,
        tasks: list[Task] | None = None,
        every_n_edits: int = 0,
        before: bool = True,
        max_tokens: int = 16384,
    ) -> None:
        self.tasks = {task.name: task for task in tasks or []}
        twice = [name for name, count in Counter(task.name for task in tasks or []).items() if count > 1]
        if twice:
            raise EditError(f"downstream.tasks has {twice[0]} twice")
        check_number("downstream.every_n_edits", every_n_edits, at_least=0)
        check_number("downstream.max_tokens", max_tokens, at_least=1)
        for task in self.tasks.values():
            task.check()
        self.every_n_edits, self.before, self.max_tokens = every_n_edits, before, max_tokens
        self.found: dict[int, dict[str, Result]] = {}
        """What was measured, by number of edits and by task."""
        self.seconds: dict[int, float] = {}
        """How long that took, by number of edits."""

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured so far."""
        return {"found": [[edits, results, self.seconds[edits]] for edits, results in self.found.items()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the measurements of the interrupted run."""
        self.found = {edits: {**results} for edits, results, _ in state_dict["found"]}
        self.seconds = {edits: seconds for edits, _, seconds in state_dict["found"]}

    def on_fit_start(self, trainer: Trainer, pl_module: Editor) -> None:
        """Measure the unedited model, also on tasks that were added when the run was resumed."""
        if self.before:
            with pl_module.as_unedited():
                self._measure(trainer, pl_module, 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Editor, outputs: Any, batch: EditBatch, batch_idx: int
    ) -> None:
        """Measure if it is due."""
        last, every = max(self.found, default=0), self.every_n_edits
        often = every and pl_module.made // every > last // every
        if self.tasks and (often or trainer.datamodule.due(trainer.global_step)):
            self._measure(trainer, pl_module, pl_module.made)
            self._log(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Editor) -> None:
        """Measure the model that `validate` is given."""
        if self.tasks and trainer.state.fn == "validate":
            self.found.pop(pl_module.made, None)
            self._measure(trainer, pl_module, pl_module.made)
            self._log(pl_module)
            self._print(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: Editor) -> None:
        """Measure the edited model."""
        self._measure(trainer, pl_module, pl_module.made)

    def on_fit_end(self, trainer: Trainer, pl_module: Editor) -> None:
        """Print the results and their path."""
        self._print(trainer)

    def _measure(self, trainer: Trainer, editor: Editor, edits: int) -> None:
        """Measure the present model, after `edits` edits, on every task without a result for it."""
        waiting = [task for name, task in self.tasks.items() if name not in self.found.get(edits, {})]
        for task in waiting:
            rank_zero_info(f"Measuring {task.name} after {edits} edits")
            start = time.perf_counter()
            with ExitStack() as stack:
                stack.enter_context(editor.working("downstream"))
                if edits:
                    stack.enter_context(editor.as_read())
                result = task.measure(editor.language_model, self.max_tokens)
            self.found.setdefault(edits, {})[task.name] = result
            self.seconds[edits] = self.seconds.get(edits, 0.0) + time.perf_counter() - start
            self._write(trainer, editor)
        if waiting:
            results = {task.name: self.found[edits][task.name] for task in waiting}
            editor.events.append({"event": "downstream", "edits": edits, "tasks": results})

    def card(self, trainer: Trainer, editor: Editor) -> dict[str, Any]:
        """Assemble what `downstream.json` holds."""
        return {
            "method": editor.method,
            "model": editor.pretrained,
            "data": trainer.datamodule.name,
            "tasks": {name: task.about() for name, task in self.tasks.items()},
            "measurements": [
                {
                    "edits": edits,
                    "mean_f1": mean_f1(self.found[edits]),
                    "results": self.found[edits],
                    "seconds": round(self.seconds[edits], 2),
                }
                for edits in sorted(self.found)
            ],
            "versions": versions(),
        }

    def _write(self, trainer: Trainer, editor: Editor) -> None:
        if trainer.is_global_zero:
            write(Path(trainer.default_root_dir) / NAME, json.dumps(self.card(trainer, editor), indent=1) + "\n")

    def _log(self, editor: Editor) -> None:
        for name, value in _headlines(self.found[editor.made]).items():
            editor.log(f"downstream/{name}", value, batch_size=1)

    def _print(self, trainer: Trainer) -> None:
        if not (self.found and self.tasks and trainer.is_global_zero):
            return
        columns = list(dict.fromkeys(name for results in self.found.values() for name in _headlines(results)))
        table = Table(
            title="Downstream tasks", caption="weighted F1 where a task has one; chance is in downstream.json"
        )
        table.add_column("edits", justify="right")
        for name in columns:
            table.add_column(name, justify="right")
        for edits in sorted(self.found):
            values = _headlines(self.found[edits])
            table.add_row(str(edits), *(_number(values.get(name)) for name in columns))
        Console().print(table)
        Console().print(f"Downstream  {Path(trainer.default_root_dir) / NAME}", soft_wrap=True)


def mean_f1(results: dict[str, Result]) -> float | None:
    """Return the mean of the tasks' weighted F1, the figure of the publication's plots; `None` where none has one."""
    found = [f1 for result in results.values() if (f1 := result.get("f1")) is not None]
    return round(sum(found) / len(found), 6) if found else None


def _headlines(results: dict[str, Result]) -> dict[str, float]:
    """Return one figure of each task, the first that it has, and the mean F1."""
    first = {name: next((v for v in result.values() if v is not None), None) for name, result in results.items()}
    found = {**first, "mean_f1": mean_f1(results)}
    return {name: float(value) for name, value in found.items() if value is not None}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value < 100 else f"{value:.4g}"
