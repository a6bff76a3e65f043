"""When checkpoints are written: between batches only, where all of a run's state agrees."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info

from lke_lightning import checkpoints
from lke_lightning.editor import Editor
from lke_lightning.edits import EditError


class RunCheckpoint(Checkpoint):
    """Saves a run every so many batches, every so many minutes, at its end, and when the process is told to stop.

    Checkpoints never start in the middle of a batch, so whatever kills a run, it continues from the end of one. Where
    an evaluation is due after a batch, the checkpoint waits for it: continuing from there must not skip it.

    Args:
        dirpath: folder to write into; default: `checkpoints` in the run's folder.
        every_n_train_steps: save after so many batches; 0: not by count.
        train_time_interval: save when so much time has passed as well.
        keep: how many checkpoints stay on disk, the newest; at least 2, so that there is one to go back to, or
            -1 for all of them, or 0 to write none.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        every_n_train_steps: int = 10,
        train_time_interval: timedelta | None = None,
        keep: int = 2,
    ) -> None:
        if keep not in (-1, 0) and keep < 2:
            raise EditError(f"checkpoint.keep is {keep}: at least 2, or -1 for all, or 0 for none")
        self.dirpath, self.every_n_train_steps, self.keep = dirpath, every_n_train_steps, keep
        self.interval = train_time_interval
        self.last_model_path = ""
        self._saved_at, self._saved_batches = time.monotonic(), -1

    def setup(self, trainer: Trainer, pl_module: Editor, stage: str) -> None:
        """Find the folder."""
        self.dirpath = self.dirpath or str(Path(trainer.default_root_dir) / checkpoints.FOLDER)

    def on_train_start(self, trainer: Trainer, pl_module: Editor) -> None:
        """Note what is on disk already; what is newer than the checkpoint gone on from is no part of this run."""
        if trainer.ckpt_path and trainer.is_global_zero:
            checkpoints.set_newer_aside(Path(trainer.ckpt_path))
        self._saved_batches = trainer.global_step if trainer.ckpt_path else -1
        self.last_model_path = str(trainer.ckpt_path or "")

    def on_train_batch_end(self, trainer: Trainer, pl_module: Editor, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save if it is due and no evaluation is; before the last batch too, whose evaluation may take long."""
        left = trainer.num_training_batches - (batch_idx + 1)
        is_evaluation_due = bool(trainer.enable_validation) and (batch_idx + 1) % trainer.val_check_batch == 0
        if left and not is_evaluation_due and (left == 1 or self._is_due(trainer)):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: Editor) -> None:
        """Save if it was due before the evaluation."""
        if trainer.state.fn == "fit" and trainer.global_step < trainer.num_training_batches and self._is_due(trainer):
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: Editor) -> None:
        """Save the finished run, evaluation and all."""
        self._save(trainer)

    def _is_due(self, trainer: Trainer) -> bool:
        if trainer.received_sigterm:
            return True
        by_count = self.every_n_train_steps > 0 and trainer.global_step % self.every_n_train_steps == 0
        is_late = self.interval is not None and time.monotonic() - self._saved_at >= self.interval.total_seconds()
        return by_count or trainer.strategy.broadcast(is_late)

    def _save(self, trainer: Trainer) -> None:
        if self.keep == 0 or self._saved_batches == trainer.global_step:
            return
        path = Path(self.dirpath) / checkpoints.file_name(trainer.global_step)
        with trainer.lightning_module.timed("checkpoint"):
            trainer.save_checkpoint(path)
        self._saved_at, self._saved_batches, self.last_model_path = time.monotonic(), trainer.global_step, str(path)
        if trainer.is_global_zero:
            checkpoints.link_last(path)
            if self.keep > 0:
                checkpoints.keep_newest(path.parent, self.keep, Path(trainer.ckpt_path) if trainer.ckpt_path else None)
        if trainer.received_sigterm:
            rank_zero_info(f"told to stop after {trainer.global_step} batches: continue with --ckpt_path {path}")
