"""How much memory and disk a stage two will need, from the shapes of what its parts keep."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lke_lightning.stage_two.solvers import EditSystem, Solver
from lke_lightning.stage_two.writing import Writing

SMALL_OUT, SMALL_KEY = 10, 24
"""The size of a weight at which parts are run to see the shapes of what they keep."""


@dataclass(frozen=True)
class Space:
    """Bytes that a part of a run needs; on a CPU, `device` is 0."""

    what: str
    device: int = 0
    host: int = 0
    disk: int = 0
    """At once, where it is a file of its own."""
    saved: int = 0
    """In each checkpoint."""


@contextmanager
def _silently() -> Iterator[None]:
    """Run a block without what parts say, which means nothing about made-up numbers."""
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def solver_bytes(solver: Solver, d_out: int, d_key: int, edits: int) -> tuple[int, int, int]:
    """Return the bytes of a solver's memory for one layer: on the device, on the host, in a checkpoint.

    The solver is run at a small size, and the shapes of its memory are scaled. A length that is neither d_key, d_out
    nor the number of edits is the rank of something: it counts as d_key, its upper bound.
    """
    count = 7
    lengths = {SMALL_KEY: d_key, SMALL_OUT: d_out, count: edits, 1: 1, 2: 2}
    moment, draw = torch.eye(SMALL_KEY), torch.Generator().manual_seed(0)
    half_unused = torch.tensor([0.0, math.inf]).repeat_interleave(SMALL_KEY // 2)
    keys, nothing = torch.randn(count, SMALL_KEY, generator=draw), torch.zeros(count, SMALL_OUT)
    with _silently():
        memory = solver.init(moment, keys, lambda _: (half_unused, moment))
        _, memory = solver.compute(memory, EditSystem(keys, keys, nothing, nothing))

    def scaled(parts: dict[str, Tensor]) -> int:
        return sum(p.itemsize * math.prod(lengths.get(length, d_key) for length in p.shape) for p in parts.values())

    near = {name: part for name, part in memory.items() if name in solver.on_device}
    return scaled(near), scaled(memory) - scaled(near), scaled(solver.saved(memory))


def transform_bytes(writing: Writing, d_out: int, d_key: int, wide: int) -> int:
    """Return the bytes of what a transform keeps of one layer; it is started at a small size, as in `solver_bytes`."""
    if writing.transform is None:
        return 0
    lengths = {SMALL_OUT: d_out, SMALL_KEY: d_key}
    base = torch.randn(SMALL_OUT, SMALL_KEY, generator=torch.Generator().manual_seed(0))
    with _silently():
        state = writing.transform.start(base)
    shapes = [[lengths.get(length, min(d_out, d_key)) for length in part.shape] for part in state.values()]
    return wide * (sum(map(math.prod, shapes)) + d_out * d_key * writing.compensate)
