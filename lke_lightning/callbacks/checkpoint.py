"""When checkpoints are written: between batches only, where all of a run's state agrees."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lke_lightning import checkpoints
from lke_lightning.distributed import Team
from lke_lightning.editor import Editor
from lke_lightning.edits import EditError, check_number
from lke_lightning.results import replace


class RunCheckpoint(Checkpoint):
    """Saves a run every so many batches, every so many minutes, at its end, and on a signal to stop.

    Checkpoints never start in the middle of a batch, so whatever kills a run, it continues from the end of one. Where
    an evaluation is due after a batch, the checkpoint waits for it: continuing from there must not skip it.

    The signals to stop are SIGTERM and, under SLURM, the one at which Lightning requeues (SIGUSR1 unless the plug-in
    sets another), after which the job is requeued. Whichever process receives it, all stop after the same batch.

    Args:
        every_n_train_steps: save every so many batches; 0: not by count.
        train_time_interval: also save when this much time has passed.
        keep: how many of the newest checkpoints stay on disk; at least 2, so that there is one to go back to, or -1 to
            keep all, or 0 to write none.
    """

    def __init__(
        self,
        every_n_train_steps: int = 10,
        train_time_interval: timedelta | None = None,
        keep: int = 2,
    ) -> None:
        if keep not in (-1, 0) and keep < 2:
            raise EditError(f"checkpoint.keep is {keep}: at least 2, or -1 for all, or 0 for none")
        check_number("checkpoint.every_n_train_steps", every_n_train_steps, at_least=0)
        if train_time_interval is not None:
            check_number("checkpoint.train_time_interval in seconds", train_time_interval.total_seconds(), above=0)
        self.every_n_train_steps, self.keep = every_n_train_steps, keep
        self.interval = train_time_interval
        self.last_model_path = ""
        self._saved_at, self._saved_batches = time.monotonic(), -1
        self._signal: int | None = None

    def setup(self, trainer: Trainer, pl_module: Editor, stage: str) -> None:
        """Find the folder, which is fixed within a run's folder: resuming looks nowhere else."""
        self.folder = Path(trainer.default_root_dir) / checkpoints.FOLDER

    def on_train_start(self, trainer: Trainer, pl_module: Editor) -> None:
        """Start to listen for signals; set aside checkpoints newer than the one resumed from."""
        source = Path(trainer.ckpt_path).resolve() if trainer.ckpt_path else None
        if source is not None and source.parent == self.folder.resolve() and trainer.is_global_zero:
            checkpoints.set_newer_aside(source)
        self._listen(trainer)
        self._saved_batches = trainer.global_step if trainer.ckpt_path else -1
        self.last_model_path = str(trainer.ckpt_path or "")

    def on_train_batch_end(self, trainer: Trainer, pl_module: Editor, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save if it is due and no evaluation is; before the last batch too, whose evaluation may take long."""
        self._agree_to_stop(trainer)
        left = trainer.num_training_batches - (batch_idx + 1)
        every: Any = trainer.val_check_batch  # a number, once the fit has begun
        is_evaluation_due = bool(trainer.enable_validation) and (batch_idx + 1) % every == 0
        if left and not is_evaluation_due and (left == 1 or self._is_due(trainer)):
            self._save(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: Editor, *_: Any) -> None:
        """Allow a stop during an evaluation, which is then repeated on resuming."""
        if trainer.state.fn == "fit":
            self._agree_to_stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: Editor) -> None:
        """Save if it was due before the evaluation."""
        if trainer.state.fn == "fit" and trainer.global_step < trainer.num_training_batches and self._is_due(trainer):
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: Editor) -> None:
        """Save the finished run, evaluation and all."""
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: Editor, exception: BaseException) -> None:
        """Requeue a job whose time is up."""
        is_over = isinstance(exception, SIGTERMException) and self._signal not in (None, signal.SIGTERM)
        if is_over and self.keep and trainer.is_global_zero:
            _requeue()

    def _listen(self, trainer: Trainer) -> None:
        """Take signals over from Lightning, whose handlers act at once, in the middle of a batch.

        On SIGTERM they talk to the other processes, which may be waiting for something else; at SLURM's they save.
        """
        environment = getattr(trainer.strategy, "cluster_environment", None)
        numbers = [signal.SIGTERM]
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            numbers.append(environment.requeue_signal or signal.SIGUSR1)

        def receive(number: int, _: Any) -> None:
            strategy: Any = trainer.strategy  # only some have a launcher, and only some of these can kill
            if self._signal is None and hasattr(strategy.launcher, "kill"):
                strategy.launcher.kill(signal.SIGTERM)  # processes that this one has started
            self._signal = self._signal or number

        for number in numbers if threading.current_thread() is threading.main_thread() else ():
            signal.signal(number, receive)

    def _agree_to_stop(self, trainer: Trainer) -> None:
        """Tell Lightning, on all processes at the same point, if one received a signal to stop."""
        received = [number for number in Team.of().everyones(self._signal) if number is not None]
        if received:
            self._signal = signal.SIGTERM if signal.SIGTERM in received else received[0]
            trainer._signal_connector.received_sigterm = True

    def _is_due(self, trainer: Trainer) -> bool:
        if trainer.received_sigterm:
            return True
        by_count = self.every_n_train_steps > 0 and trainer.global_step % self.every_n_train_steps == 0
        is_late = self.interval is not None and time.monotonic() - self._saved_at >= self.interval.total_seconds()
        return by_count or trainer.strategy.broadcast(is_late)

    def _save(self, trainer: Trainer) -> None:
        if self.keep == 0 or self._saved_batches == trainer.global_step:
            return
        path = self.folder / checkpoints.file_name(trainer.global_step)
        editor: Any = trainer.lightning_module
        with editor.working("checkpoint"):
            trainer.save_checkpoint(path, weights_only=False)  # all of the run's state
        self._saved_at, self._saved_batches, self.last_model_path = time.monotonic(), trainer.global_step, str(path)
        if trainer.is_global_zero:
            checkpoints.link_last(path)
            if self.keep > 0:
                checkpoints.keep_newest(path.parent, self.keep, Path(trainer.ckpt_path) if trainer.ckpt_path else None)
        Team.of().wait()  # no process ends, and takes the others with it, before the files are in order
        if trainer.received_sigterm:
            rank_zero_info(f"stopped by a signal after {trainer.global_step} batches: continue with --ckpt_path {path}")


def _requeue() -> None:
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ["SLURM_JOB_ID"]
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else job
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        rank_zero_warn(f"job {job} could not be requeued: {error}")


class SafeCheckpointIO(CheckpointIO):
    """What Lightning saves and loads checkpoints with."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, whole or not at all."""
        replace(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint that is whole."""
        checkpoint = checkpoints.read(path)
        rank_zero_info(f"Continuing from {path}")
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)
