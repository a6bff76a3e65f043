"""The solve of one batch: our maintained inverse beside a fresh float64 LU: `python -m benchmarks.solver`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks import harness
from lke_lightning.stage_two.preservation import BaseStatistics, NormPenalty, PastEdits
from lke_lightning.stage_two.solvers import EditSystem, LeastSquares

LAMBDA_P, LAMBDA_N = 20000.0, 10.0
"""ENCORE's hyperparameters for GPT2-XL (arXiv 2502.01636)."""


class Problem:
    """Keys whose second moments fall by four decades from the first direction to the last, and their C0."""

    def __init__(self, d_key: int, edits: int, device: torch.device) -> None:
        self.generator = torch.Generator(device).manual_seed(0)
        self.scales = torch.logspace(0, -2, d_key, device=device)
        self.d_key, self.edits, self.device = d_key, edits, device
        text = self.keys(2 * d_key)
        self.second_moment = text.T @ text / len(text)

    def keys(self, count: int) -> Tensor:
        """Draw keys (count, d_key), float32."""
        return torch.randn(count, self.d_key, generator=self.generator, device=self.device) * self.scales

    def batches(self) -> Iterator[EditSystem]:
        """Draw batches of edits, with residuals of a quarter of the keys' size as in GPT-2."""
        while True:
            keys = self.keys(self.edits)
            residuals = torch.randn(self.edits, self.d_key // 4, generator=self.generator, device=self.device)
            yield EditSystem(keys, keys, residuals)


class AsPublished:
    """A fresh factorisation for every batch, in float64; earlier keys as a Gram matrix."""

    def __init__(self, second_moment: Tensor) -> None:
        self.second_moment = second_moment
        self.past = torch.zeros_like(second_moment, dtype=torch.float64)

    def compute(self, asked: EditSystem) -> Tensor:
        """Return the update (d_out, d_key)."""
        keys = asked.keys.double().T
        gram = LAMBDA_P * self.second_moment.double() + self.past + keys @ keys.T
        gram += LAMBDA_N * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        update = asked.residuals.double().T @ torch.linalg.solve(gram, keys).T
        self.past += keys @ keys.T
        return update


def run(d_key: int, edits: int, dtype: Literal["float64", "float32"], batches: int) -> dict[str, Any]:
    """Compare over some batches with memory; the fastest batch of each counts, the largest error."""
    problem = Problem(d_key, edits, harness.device())
    solver = LeastSquares([BaseStatistics(LAMBDA_P), NormPenalty(LAMBDA_N)], PastEdits(), dtype=dtype)
    init = harness.measure(lambda: solver.init(problem.second_moment))
    memory, published, errors = init.value, AsPublished(problem.second_moment), []
    ours_best = published_best = None
    for _, asked in zip(range(batches), problem.batches(), strict=False):
        ours = harness.measure(lambda memory=memory, asked=asked: solver.compute(memory, asked))
        update, memory = ours.value
        theirs = harness.measure(lambda asked=asked: published.compute(asked))
        errors.append(((update.double() - theirs.value).norm() / theirs.value.norm()).item())
        ours_best = min(ours_best or ours, ours, key=lambda measured: measured.seconds)
        published_best = min(published_best or theirs, theirs, key=lambda measured: measured.seconds)
    return {
        "d_key": d_key,
        "edits": edits,
        "dtype": dtype,
        "init_seconds": round(init.seconds, 3),
        "ours_seconds": round(ours_best.seconds, 4),
        "published_seconds": round(published_best.seconds, 4),
        "ratio": round(published_best.seconds / ours_best.seconds, 1),
        "max_relative_error": float(f"{max(errors):.2g}"),
        "drift": float(f"{solver.drift(memory):.2g}"),
        "ours_peak_mib": round(ours_best.peak_mib),
        "published_peak_mib": round(published_best.peak_mib),
        "memory_mib": round(sum(part.numel() * part.element_size() for part in memory.values()) / 2**20),
    }


def main(
    d_keys: list[int] = [1024, 4096, 6400],  # noqa: B006
    edits: int = 100,
    dtypes: list[Literal["float64", "float32"]] = ["float64", "float32"],  # noqa: B006
    batches: int = 3,
) -> None:
    """Compare the solve of one batch with a fresh LU.

    Args:
        d_keys: sizes of the keys; 14336 is Llama-3-8B's.
        edits: edits of a batch.
        dtypes: dtypes of our inverse.
        batches: how many batches are solved, one after another.
    """
    harness.report("solver", {"runs": [run(d_key, edits, dtype, batches) for d_key in d_keys for dtype in dtypes]})


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
