"""Strategies for several devices: a full replica of the model on each, or a shard."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy, Strategy

from lke_lightning.distributed import shard

PATIENCE = timedelta(minutes=30)
"""How long processes wait for one another before a run ends."""


class Replicated(DDPStrategy):
    """The model on every device; the edits of a batch are divided between them.

    Lightning's `ddp` gives the same results. This one leaves out its wrapper, which watches over gradients that editing
    does not have, and sends all weights and changes around to begin with.

    Args:
        timeout: how long processes wait for one another before the run ends; more than the slowest does alone, such as
            an eigendecomposition.
        process_group_backend: `gloo` or `nccl`; default: by device.
    """

    def __init__(self, timeout: timedelta = PATIENCE, process_group_backend: str | None = None) -> None:
        super().__init__(timeout=timeout, process_group_backend=process_group_backend)

    def configure_ddp(self) -> None:
        """Leave the module as it is."""


class Sharded(ModelParallelStrategy):
    """A part of every block on each device (FSDP2), for models larger than one; all devices do the same work.

    A block is whole while it runs and apart otherwise. Each pass needs all devices, so edits are not divided between
    them: this saves memory, not time. The whole model is read into the host's memory by every process at the start.
    Checkpoints hold the change alone, as they always do, so a run may be resumed with any other strategy.

    Args:
        timeout: how long processes wait for one another before the run ends.
        process_group_backend: `gloo` or `nccl`; default: by device.
    """

    def __init__(self, timeout: timedelta = PATIENCE, process_group_backend: str | None = None) -> None:
        super().__init__(
            save_distributed_checkpoint=False, timeout=timeout, process_group_backend=process_group_backend
        )

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Restore while the model is whole: the start of a run asks what its checkpoint knew."""
        return False

    def setup_environment(self) -> None:
        """Lay all processes out in one row."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Divide the network, then do as usual."""
        editor: Any = self.lightning_module
        model = editor.language_model
        shard(model.network, model.architecture.blocks, self.device_mesh["data_parallel"])
        super().setup(trainer)

    # What is saved is small and whole on every process: as for a single device, without collecting any weights.

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the module's own state."""
        return Strategy.lightning_module_state_dict(self)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Hand the module its own state."""
        Strategy.load_model_state_dict(self, checkpoint, strict)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Return the state of the clock's optimizer."""
        return ParallelStrategy.optimizer_state(self, optimizer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write from the first process."""
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read on every process."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)
