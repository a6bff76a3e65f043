"""Running statistics of rows over a whole run: what `OutputGradients` normalises with. Torch only."""

from __future__ import annotations

import torch
from torch import Tensor

Memory = dict[str, Tensor]

FLOOR = 1e-6
"""The smallest eigenvalue of a covariance that counts, as a share of the largest."""


class RunningMoments:
    """Mean and spread of a growing number of rows; exactly those of all rows at once, in whatever parts they came.

    The update is Chan, Golub and LeVeque's, with the biased variance of each part, as the paper of UltraEdit (arXiv
    2505.14679) writes it: a part of b rows with mean m and variance v adds b v + n b (m - mean)^2 / (n + b) to the sum
    of squares of the n rows before it. One row alone has no spread; then, and where a column never varies, it is 0.

    A memory is a dict of float64 tensors that is taken and returned, never changed: `rows` (), `mean` and `squares`
    (columns,), and with `whitened` the matrix `products` (whitened, whitened), the sums of products about the mean.

    Args:
        whitened: how many of the last columns are whitened together, by their whole covariance, once there are more
            rows than that (StableEdit, arXiv 2605.11836); 0: each column is divided by its own deviation.
    """

    def __init__(self, whitened: int = 0) -> None:
        self.whitened = whitened

    def update(self, memory: Memory, rows: Tensor) -> Memory:
        """Return the memory with further rows (rows, columns), all finite; an empty memory is that of no rows."""
        rows, memory = rows.double(), _beside(memory, rows)
        count, columns = len(rows), rows.shape[1]
        before = memory.get("rows", rows.new_zeros(()))
        total = (before + count).clamp_min(1)
        mean = memory.get("mean", rows.new_zeros(columns))
        of_rows = rows.sum(0) / max(count, 1)
        apart = of_rows - mean
        squares = memory.get("squares", rows.new_zeros(columns)) + (rows - of_rows).square().sum(0)
        found = {
            "rows": before + count,
            "mean": mean + apart * (count / total),
            "squares": squares + apart.square() * (before * count / total),
        }
        if self.whitened:
            own, between = (rows - of_rows)[:, -self.whitened :], apart[-self.whitened :]
            products = memory.get("products", rows.new_zeros(self.whitened, self.whitened)) + own.T @ own
            found["products"] = products + torch.outer(between, between) * (before * count / total)
        return found

    def normalised(self, memory: Memory, rows: Tensor) -> Tensor:
        """Return rows (rows, columns), less the mean, in units of the spread so far, float64."""
        memory = _beside(memory, rows)
        centred = rows.double() - memory["mean"]
        spread = (memory["squares"] / (memory["rows"] - 1).clamp_min(1)).sqrt()
        scaled = torch.where(spread > 0, centred / spread, 0 * centred)  # what is not finite stays so
        spare = memory["rows"].item() - self.whitened - 1
        if self.whitened and spare > 0:
            values, vectors = torch.linalg.eigh(memory["products"] / spare)
            values = values.clamp_min(FLOOR * values[-1].clamp_min(torch.finfo(values.dtype).tiny))
            scaled[:, -self.whitened :] = centred[:, -self.whitened :] @ (vectors / values.sqrt()) @ vectors.T
        return scaled


def _beside(memory: Memory, rows: Tensor) -> Memory:
    """Return a memory on the device of rows: one from a checkpoint is elsewhere."""
    return {name: part.to(rows.device) for name, part in memory.items()}
