"""What a batch costs after many edits: solver and ledger alone, on random keys of a small width, without a model.

`python -m benchmarks.million` makes 100,000 edits in batches of 100 and tells the cost of a batch by how many edits
came before it. What grows with edits is written down beside: bytes of memory, of the ledger, of a checkpoint.
"""

from __future__ import annotations

import tempfile
import time
from statistics import median
from typing import Any

import torch

from benchmarks import harness
from lke_lightning.ledger import Ledger
from lke_lightning.stage_two.preservation import BaseStatistics, NormPenalty, PastEdits
from lke_lightning.stage_two.solvers import EditSystem, LeastSquares
from lke_lightning.stage_two.solvers.least_squares import PER_EDIT


def main(edits: int = 100_000, batch: int = 100, d_key: int = 256, d_out: int = 128, again_every: int = 10) -> None:
    """Edit again and again.

    Args:
        edits: how many in all; a hundred batches at least, so that each tenth retires one.
        batch: edits of a batch.
        d_key: entries of a key.
        d_out: entries of an output.
        again_every: one batch in so many first retires an edit of long ago.
    """
    draw = torch.Generator().manual_seed(0)
    spectrum = torch.logspace(0, -2, d_key).sqrt()
    solver = LeastSquares([BaseStatistics(10.0), NormPenalty(1.0)], PastEdits())
    memory = solver.init(torch.diag(spectrum.double() ** 2))
    change = torch.zeros(d_out, d_key, dtype=torch.float64)
    seconds: dict[str, list[float]] = {"solve": [], "retire": [], "ledger": []}
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(folder)
        for number in range(edits // batch):
            if number % again_every == again_every - 1:
                start = time.perf_counter()
                update, memory = solver.retire(memory, [number * batch // 2], change)
                seconds["retire"].append(time.perf_counter() - start)
                change += update
            keys = torch.randn(batch, d_key, generator=draw) * spectrum
            residuals = torch.randn(batch, d_out, generator=draw) - keys @ change.float().T
            start = time.perf_counter()
            system = EditSystem(keys, keys, residuals, keys @ change.float().T)
            update, memory = solver.compute(memory, system)
            seconds["solve"].append(time.perf_counter() - start)
            change += update
            start = time.perf_counter()
            ledger.append(_entry(number * batch + i) for i in range(batch))
            seconds["ledger"].append(time.perf_counter() - start)
        ledger_bytes = Ledger(folder).size
    per_edit = sum(memory[name].numel() * memory[name].element_size() for name in PER_EDIT) / edits
    run = {
        "edits": edits,
        "batch": batch,
        "d_key": d_key,
        "d_out": d_out,
        "milliseconds_per_batch_by_tenth": {name: _tenths(found) for name, found in seconds.items()},
        "memory_bytes_per_edit_and_layer": per_edit,
        "ledger_bytes_per_edit": ledger_bytes / edits,
        "drift_at_the_end": float(f"{solver.drift(memory):.2g}"),
    }
    harness.report("million", {"runs": [run]})


def _tenths(found: list[float]) -> list[float]:
    """Return the median of each tenth of the run, in milliseconds."""
    size = len(found) // 10
    return [round(1000 * median(found[i * size : (i + 1) * size]), 3) for i in range(10)]


def _entry(number: int) -> dict[str, Any]:
    """Make an entry of the length that the recorder writes."""
    return {
        "event": "edit", "number": number, "id": str(number), "batch": number // 100,
        "prompt": "The official language of {} is", "subject": f"Country {number}", "target": "Spanish",
        "original": "French", "relation": "P37", "weight": 1.0, "steps": 12, "stopped_by": "MostProbable",
        "first_loss": 8.412345678, "loss": 0.412345678, "target_norm": 12.345678901, "memory_row": number,
        "replaces": None, "accurate_just_after": True, "nll_just_after": 0.0123456789, "success_just_after": True,
        "nll_of_original_just_after": 9.123456789,
    }  # fmt: skip


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
