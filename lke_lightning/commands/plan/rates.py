"""What the engine's activities cost: curves over size, for the least network and for each block more."""

from __future__ import annotations

import gc
import statistics
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BUDGET = 1.0
"""Seconds: nothing larger is tried once a call has taken longer; beyond it the last slope is continued."""


@dataclass(frozen=True)
class Curve:
    """A cost by size, from points (size, cost) in ascending order: straight between them and beyond the last."""

    points: tuple[tuple[float, float], ...]

    @classmethod
    def proportional(cls, cost: float) -> Curve:
        """Make a curve of so much for each unit of size."""
        return cls(((1e-9, cost * 1e-9), (1.0, cost)))

    def at(self, size: float) -> float:
        """Return the cost of a size; below the smallest measured one, that one's."""
        (x, y), *more = self.points
        if size <= x:
            return y if size > 0 else 0.0
        if not more:
            return y * size / x
        low, high = (x, y), more[0]
        for following in more[1:]:
            if size <= high[0]:
                break
            low, high = high, following
        return low[1] + (size - low[0]) * max(0.0, high[1] - low[1]) / (high[0] - low[0])

    def __sub__(self, other: Curve) -> Curve:
        """Subtract at the sizes that both were measured at; never below zero."""
        others = dict(other.points)
        return Curve(tuple((x, max(0.0, y - others[x])) for x, y in self.points if x in others))


NOTHING = Curve.proportional(0.0)


@dataclass(frozen=True)
class Cost:
    """Seconds and bytes of one activity by size, where it runs the fewest blocks, and for each block more."""

    seconds: Curve
    block_seconds: Curve
    bytes: Curve = NOTHING
    """Peak memory on top of what was held before."""
    block_bytes: Curve = NOTHING

    def takes(self, size: float, more_blocks: float = 0.0) -> float:
        """Return seconds."""
        return self.seconds.at(size) + more_blocks * self.block_seconds.at(size)

    def holds(self, size: float, more_blocks: float = 0.0) -> float:
        """Return bytes."""
        return self.bytes.at(size) + more_blocks * self.block_bytes.at(size)


@dataclass(frozen=True)
class Solve:
    """One layer's solver. Bytes are those of tensors."""

    init_seconds: float
    init_bytes: float
    """Peak while the memory is prepared, the memory itself included."""
    seconds: float
    """One batch, transform included."""
    bytes: float
    """Peak of one batch on top of the memory."""
    on_device: float
    on_host: float
    """Parts of the memory that are never on a GPU."""
    saved: float
    """Bytes of a fresh memory in a checkpoint."""
    growth: float
    """Bytes that each edit adds to it, on the host and in checkpoints."""
    eigen_bytes: float
    """Bytes of a cached decomposition of the statistics, 0 where none is asked for."""
    readout_seconds: float


@dataclass(frozen=True)
class Rates:
    """What was measured. Sizes are requests for the stages and evaluation, tokens for text."""

    how: str
    """Where the figures come from, in words."""
    record: Cost
    """Stage one before its first step; blocks run what comes before the slots."""
    step: Cost
    """One step of a descent; blocks are those above the target layer."""
    drop: Cost
    """Rows of requests that stopped are dropped; blocks are those above the target layer."""
    read: Cost
    """Stage two reads the keys and outputs of a layer."""
    score: Cost
    contexts: Cost
    """Sampling the context templates, size 1."""
    statistics: Cost
    """Keys of text and their products, one layer."""
    product: Curve
    """The products of one layer more."""
    perplexity: Cost
    encoding: float
    """Seconds per token of ordinary text."""
    solve: Solve
    hashing: float
    """Bytes per second of hashing weights."""
    saving: float
    """Bytes per second of writing a checkpoint."""
    scores_bytes: float
    """Bytes of one request's scores in a checkpoint."""


def timed(call: Callable[[], Any], device: torch.device, repeats: int = 5) -> float:
    """Return the median time of some calls in seconds; long ones are not repeated."""
    taken: list[float] = []
    while len(taken) < repeats and sum(taken) < BUDGET / 4:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def measured(
    make: Callable[[int], Callable[[], Any]], sizes: Sequence[int], device: torch.device, repeats: int = 5
) -> tuple[Curve, Curve]:
    """Measure something at growing sizes, until a call takes longer than `BUDGET`.

    Args:
        make: prepares a call of a size.
        sizes: ascending.
        device: where it runs.
        repeats: how often short calls are repeated; their median counts.

    Returns:
        Seconds and peak bytes by size.
    """
    seconds, held = [], []
    for i, size in enumerate(dict.fromkeys(sizes)):
        call = make(size)
        if not i:
            call()  # the first call of all also loads kernels and allocates
        seconds.append((size, timed(call, device, repeats)))
        held.append((size, float(peak(call, device))))
        if seconds[-1][1] > BUDGET:
            break
    return Curve(tuple(seconds)), Curve(tuple(held))


def peak(call: Callable[[], Any], device: torch.device) -> int:
    """Return the peak bytes of tensors that a call makes, on top of those that were there."""
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _Tensors() as tensors:
        call()
    return tensors.most


class _Tensors(TorchDispatchMode):
    """Counts the bytes of all tensors that are made while it is on and still there."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in given and key not in self._known:
                    self._known.add(key)
                    self.now += size
                    weakref.finalize(storage, self._freed, key, size)
        self.most = max(self.most, self.now)
        return result

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
