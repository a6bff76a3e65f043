"""Measure a run's own solver at a size that takes seconds, and scale it to the size of the run."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from lke_lightning.commands.plan import rates
from lke_lightning.commands.plan.rates import Solve
from lke_lightning.commands.plan.shape import Shape
from lke_lightning.stage_two.solvers import EditSystem, Memory, Solver
from lke_lightning.stage_two.update import WeightUpdate

SOLVER_SIZE = {"cpu": 1536, "cuda": 4096}
"""Largest d_key at which a solver is measured; larger ones follow from its order, d_key^3 once, d_key^2 a batch."""


def solver(stage: WeightUpdate, shape: Shape, edits: int, device: torch.device) -> Solve:
    """Measure the run's own solver, transform and readout, on random statistics with many unused directions.

    Args:
        stage: holds them.
        shape: gives d_key and d_out; larger ones than `SOLVER_SIZE` are scaled down.
        edits: of one batch.
        device: where it runs.
    """
    size = min(shape.d_key, SOLVER_SIZE.get(device.type, 1536))
    larger = shape.d_key / size
    square, d_out = larger**2, max(1, round(shape.d_out / larger))
    draw = torch.Generator(device).manual_seed(0)
    keys = torch.randn(edits, size, device=device, generator=draw)
    residuals = torch.randn(edits, d_out, device=device, generator=draw)
    system = EditSystem(keys, keys, residuals, torch.zeros_like(residuals))
    first, init_seconds, init_bytes, asked = _init(stage.solver, size, draw)
    after: list[Memory] = []
    live, total = torch.randn(d_out, size, device=device), torch.zeros(d_out, size, device=device)

    def write() -> None:
        update, remembered = stage.solver.compute({k: v.clone() for k, v in first.items()}, system)
        after[:] = [remembered]
        total.add_(update if stage.transform is None else stage.transform(live, update))

    seconds = rates.timed(write, device)
    batch_bytes = rates.peak(write, device)
    readout = 0.0 if stage.readout is None else rates.timed(lambda: stage.readout(live, total), device)
    saved, saved_after = (sum(p.nbytes for p in stage.solver.saved(m).values()) for m in (first, after[0]))
    on_device = sum(part.nbytes for name, part in first.items() if name in stage.solver.on_device)
    return Solve(
        init_seconds * larger**3,
        init_bytes * square,
        seconds * square,
        batch_bytes * square,
        on_device * square,
        (sum(part.nbytes for part in first.values()) - on_device) * square,
        saved * square,
        (saved_after - saved) / edits * larger,
        8.0 * shape.d_key * (shape.d_key + 1) * asked,
        readout * larger**3,
    )


def _init(solver: Solver, size: int, draw: torch.Generator) -> tuple[Memory, float, float, bool]:
    """Prepare a memory; return it, seconds, peak bytes, and whether eigenvalues were asked for.

    Half the directions of the statistics are hardly used, so that a null space of them is neither empty nor all.
    """
    few = torch.randn(size // 2 + 1, size, device=draw.device, generator=draw)
    moment = few.T @ few / len(few) + 1e-4 * torch.eye(size, device=draw.device)
    asked: list[Tensor] = []

    def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(matrix)
        return torch.linalg.eigh(matrix)

    made: list[Memory] = []
    start = time.perf_counter()
    held = rates.peak(lambda: made.append(solver.init(moment, eigen)), draw.device)
    return made[0], time.perf_counter() - start, held, bool(asked)
