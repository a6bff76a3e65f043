"""The change of a weight: the only file that writes parameters of the language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lke_lightning.distributed import as_stored
from lke_lightning.model.architecture import is_transposed, matrix_shape

if TYPE_CHECKING:
    from lke_lightning.model.architecture import Matrix


class EditedWeight(nn.Module):
    """One edited matrix: live weight = base + delta.

    The delta is kept in float32 or better, so that many small edits of a bfloat16 model keep their sum; the live
    weight is the only thing rounded to the model's dtype. The delta is saved in checkpoints, the base is not.
    """

    delta: Tensor
    """Total change since the unedited model, (d_out, d_key)."""
    base: Tensor
    """The unedited weight in the model's dtype, stored as the matrix stores it."""

    def __init__(self, matrix: Matrix) -> None:
        super().__init__()
        self._matrix = (matrix,)  # in a tuple, so that the network's module is not registered here a second time
        self.register_buffer("base", matrix.weight.detach().clone(), persistent=False)
        wide = torch.promote_types(matrix.weight.dtype, torch.float32)
        self.register_buffer("delta", torch.zeros(matrix_shape(matrix), dtype=wide, device=matrix.weight.device))

    @property
    def matrix(self) -> Matrix:
        """The module of the network whose weight this is."""
        return self._matrix[0]

    @torch.no_grad()
    def add(self, update: Tensor) -> None:
        """Add an update (d_out, d_key) to the total change and to the live weight."""
        self.delta += update.to(self.delta)
        self.refresh()

    @torch.no_grad()
    def revert(self) -> None:
        """Discard all changes: the live weight is the base, bit for bit."""
        self.delta.zero_()
        self._store(self.base)

    @torch.no_grad()
    def restore(self, delta: Tensor) -> None:
        """Return to an earlier total change (d_out, d_key), bit for bit."""
        self.delta.copy_(delta)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Write base + delta into the network; without any change, the exact base, including the signs of its zeros."""
        if not self.delta.any():
            self._store(self.base)
            return
        change = self.delta.T if is_transposed(self.matrix) else self.delta
        self._store(self.base.to(change.dtype) + change)

    def _store(self, value: Tensor) -> None:
        # looked up anew each time: a sharded network has other parameter objects while a block is whole
        parameter = self.matrix.weight
        parameter.copy_(as_stored(value.to(parameter.dtype), parameter))

    def wide_base(self) -> Tensor:
        """Return the unedited weight in the delta's dtype and shape, (d_out, d_key); it may be the base itself."""
        base = self.base.T if is_transposed(self.matrix) else self.base
        return base.to(self.delta.dtype)

    def live(self) -> Tensor:
        """Return base + delta before rounding to the model's dtype, (d_out, d_key)."""
        return self.wide_base() + self.delta

    @contextmanager
    @torch.no_grad()
    def read_as(self, transform: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
        """Let the network run with `transform(base, delta)` in place of the total change; the delta itself stays."""
        exact = self.delta
        try:
            self.delta = transform(self.wide_base(), exact).to(exact)
            self.refresh()
            yield
        finally:
            self.delta = exact
            self.refresh()

    @contextmanager
    @torch.no_grad()
    def unedited(self) -> Iterator[None]:
        """Let the live weight be the base, bit for bit, and the change zero; afterwards both are as they were."""
        exact = self.delta
        try:
            self.delta = torch.zeros_like(exact)
            self._store(self.base)
            yield
        finally:
            self.delta = exact
            self.refresh()

    @property
    def written(self) -> tuple[int, int]:
        """Identify the present change: another one after every write, the same after `read_as` and `unedited`."""
        return id(self.delta), self.delta._version

    @torch.no_grad()
    def norms(self) -> tuple[float, float]:
        """Return the Frobenius norms of the unedited and of the live weight."""
        change = self.delta.T if is_transposed(self.matrix) else self.delta
        base = self.base.to(change.dtype)
        return base.norm().item(), (base + change).norm().item()

    @torch.no_grad()
    def held(self) -> Tensor:
        """Return what the live weight, in the model's dtype, holds of the change, (d_out, d_key)."""
        base = self.wide_base()
        return (base + self.delta).to(self.base.dtype).to(base.dtype) - base

    def lost(self) -> float:
        """Return the Frobenius norm of what it does not hold of it."""
        return (self.held() - self.delta).norm().item()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EditedWeight:
        """Move or cast, but never round the delta below float32 (`Trainer(precision="bf16-true")` casts all)."""
        exact = self.delta
        super()._apply(fn, recurse)
        if torch.finfo(self.delta.dtype).bits < torch.finfo(exact.dtype).bits and exact.dtype == torch.float32:
            self.delta = exact.to(self.delta.device)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.refresh()
