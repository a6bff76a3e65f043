"""One line per edit batch, and how many are done."""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, Trainer

from lke_lightning.editor import Editor
from lke_lightning.edits import EditBatch
from lke_lightning.progress import work


class BatchLine(Callback):
    """Prints the time, steps, efficacy and fulfilment of each edit batch, the last one as the median of layers."""

    def __init__(self) -> None:
        self._started = 0.0
        self._open = ExitStack()
        self._going: Any = None  # a `Work`, once training has begun

    def on_train_start(self, trainer: Trainer, pl_module: Editor) -> None:
        """Start the clock."""
        self._started = time.perf_counter()
        batches: Any = trainer.num_training_batches  # a stream has an end
        self._going = self._open.enter_context(work("Editing", batches, "batches"))
        self._going.advance(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Editor, outputs: Any, batch: EditBatch, _: int) -> None:
        """Print the line."""
        self._going.advance()
        if not trainer.is_global_zero:
            return
        now = time.perf_counter()
        seconds, self._started = now - self._started, now
        efficacy = trainer.callback_metrics.get("just_after/efficacy")
        shares = pl_module.step.shares.values()
        done, steps = len(pl_module.step), pl_module.step.targets.steps
        print(  # not by a console of its own, which would write into the bar
            f"batch {trainer.global_step}/{trainer.num_training_batches}  {done} edits in {seconds:.1f} s"
            + (f"  median {statistics.median(steps):g} steps" if done else "")
            + (f"  {pl_module.step.rounds} rounds" if pl_module.step.rounds > 1 else "")
            + (f"  efficacy {efficacy:.2f}" if efficacy is not None and pl_module.step.scores else "")
            + (f"  fulfilment {statistics.median(shares):.2f}" if shares and done else "")
            + (f"  {len(pl_module.step.left_out)} left out" if pl_module.step.left_out else ""),
            flush=True,
        )

    def on_train_end(self, trainer: Trainer, pl_module: Editor) -> None:
        """Let the bar go."""
        self._open.close()

    def on_exception(self, trainer: Trainer, pl_module: Editor, exception: BaseException) -> None:
        """Let the bar go."""
        self._open.close()
