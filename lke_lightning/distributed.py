"""Several processes, one run: who does what, and how it comes together. The only file that lets processes talk.

Every process has the whole edit batch and the whole solver. What is costly is divided, gathered in the order of the
edits, and from there on every process computes the same; where rounding could tell them apart, the first one decides.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from lke_lightning.edits import EditError

Item = TypeVar("Item")

RUN_FOLDER = "LKE_RUN_FOLDER"
"""Environment variable through which the first process tells those it starts where the run is."""


@dataclass(frozen=True)
class Team:
    """The processes of a run, seen from one of them. With a single process every method is the identity.

    Where a process group exists, all of its processes have to come to every method, in the same order.

    Raises:
        EditError: from any method that waits for other processes: one of them has ended, or does not answer.
    """

    rank: int
    size: int
    in_step: bool
    """Every process does all of the work, because the network is sharded: each of its passes needs all of them."""

    @classmethod
    def of(cls, network: nn.Module | None = None) -> Team:
        """Look at the process group, and at whether the network is sharded over it."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls(0, 1, False)
        return cls(distributed.get_rank(), distributed.get_world_size(), is_sharded(network))

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and decides."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return the items that this process works on: consecutive ones, as many as any other has or one more."""
        if self.size == 1 or self.in_step:
            return items
        each, more = divmod(len(items), self.size)
        start = self.rank * each + min(self.rank, more)
        return items[start : start + each + (self.rank < more)]

    def gather(self, found: Sequence[Item]) -> list[Item]:
        """Gather the results of all shares, in the order of the items; CPU objects only."""
        if self.in_step:
            return self.first(list(found))
        return [item for part in self.everyones(list(found)) for item in part]

    def gather_rows(self, rows: Tensor | None, device: torch.device) -> Tensor:
        """Put rows (share, ...) together into (items, ...) on `device`; `None` where the share is empty."""
        if self.size == 1:
            return rows  # type: ignore[return-value]  # the share is all of them
        return torch.cat(self.gather([] if rows is None else [rows.cpu()])).to(device)

    def first(self, value: Any) -> Any:
        """Return the first process's value; CPU objects only."""
        if self.size == 1:
            return value
        box = [value]
        _together(lambda: distributed.broadcast_object_list(box, 0))
        return box[0]

    def first_tensor(self, value: Tensor) -> Tensor:
        """Return the first process's tensor; all give one of the same shape and dtype, on their own devices."""
        if self.size == 1:
            return value
        value = value.contiguous()
        _together(lambda: distributed.broadcast(value, 0))
        return value

    def alike(self, value: Tensor) -> Tensor:
        """Return the first process's tensor where all do the same work, else one's own."""
        return self.first_tensor(value) if self.in_step else value

    def sum(self, value: Tensor) -> Tensor:
        """Sum the results of all shares; any shape and dtype."""
        if self.size == 1 or self.in_step:
            return self.alike(value)
        _together(lambda: distributed.all_reduce(value))
        return value

    def everyones(self, value: Any) -> list[Any]:
        """Return the values of all processes, in the order of their ranks; CPU objects only."""
        values = [value] * self.size
        if self.size > 1:
            _together(lambda: distributed.all_gather_object(values, value))
        return values

    def check_same(self, value: str, what: str) -> None:
        """Raise `EditError` on all processes unless all of them have the same `value`."""
        values = self.everyones(value)
        other = next((rank for rank, theirs in enumerate(values) if theirs != values[0]), None)
        if other is not None:
            raise EditError(f"process {other} has another {what} ({values[other]}) than process 0 ({values[0]})")

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.everyones(None)


def shard(network: nn.Module, blocks: Sequence[nn.Module], mesh: Any) -> None:
    """Divide a network's parameters over the processes of a device mesh, block by block (FSDP2).

    Blocks are whole while they run only; what is outside of them stays whole after the first pass.
    """
    from torch.distributed.fsdp import fully_shard

    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(network, mesh=mesh)


def is_sharded(network: nn.Module | None) -> bool:
    """Tell whether `shard` was called on a network."""
    if network is None or not distributed.is_available():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(network, FSDPModule)


def as_stored(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a whole matrix, the same on all processes, as the parameter is stored: whole, or this process's shard."""
    if not distributed.is_available():
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def named_folder(is_first: bool) -> str | None:
    """Return a folder for the run that all its processes know without talking; `None`: this one is free to name it.

    Args:
        is_first: whether this is the first process.

    Raises:
        EditError: others have started the processes, and nothing tells them one name.
    """
    given = os.environ
    if int(given.get("SLURM_NTASKS", 1)) > 1 and given.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        return f"runs/slurm-{given.get('SLURM_ARRAY_JOB_ID') or given['SLURM_JOB_ID']}" + (
            f"-{given['SLURM_ARRAY_TASK_ID']}" if "SLURM_ARRAY_TASK_ID" in given else ""
        )
    if "TORCHELASTIC_RUN_ID" in given and int(given.get("WORLD_SIZE", 1)) > 1:
        if given["TORCHELASTIC_RUN_ID"] == "none":
            raise EditError(
                "torchrun's processes cannot agree on a folder named by the clock: give --trainer.default_root_dir, "
                "or torchrun's --rdzv-id"
            )
        return f"runs/{given['TORCHELASTIC_RUN_ID']}"
    return None if is_first else given.get(RUN_FOLDER)


def _together(call: Callable[[], Any]) -> None:
    """Run a collective operation; explain the failure if other processes do not join."""
    try:
        call()
    except RuntimeError as error:  # DistBackendError and gloo's own errors are ones
        raise EditError(
            f"process {distributed.get_rank()} of {distributed.get_world_size()} waited in vain for the others: one "
            f"has ended or hangs; see its output. Continue with --ckpt_path last ({str(error).splitlines()[0]})"
        ) from error
