"""Memories of keys and values, a row for each unit of an edit: what GRACE and NeuralDB have in common."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lke_lightning.edits import EditError
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.reading import SlotReader, Spread
from lke_lightning.stage_two.keys import ContextMean
from lke_lightning.stage_two.memories.side import SideMemory, SideModule
from lke_lightning.stage_two.register import UNDONE, Register
from lke_lightning.stage_two.room import Space
from lke_lightning.stage_two.solvers import EditSystem
from lke_lightning.stage_two.stage import Again
from lke_lightning.step import EditStep


class Store(SideModule):
    """Rows by the numbers of the run's register; what is read of them follows from which of them are live, in order.

    So an edit is undone exactly: the others are read as if it had never been made.
    """

    keys: Tensor
    """(rows, d_key), float32 or better; a row is never changed."""
    values: Tensor
    """(rows, d_out)."""
    live: Tensor
    """Which rows are of edits that hold, (rows,) bool."""

    def begin(self, model: LanguageModel) -> dict[str, Tensor]:
        """Return no rows."""
        d_out, d_key = model.weight(self.layer).delta.shape
        keys, values = (torch.zeros(0, size, dtype=model.wide_dtype) for size in (d_key, d_out))
        return {"keys": keys, "values": values, "live": torch.zeros(0, dtype=torch.bool)}

    @property
    def is_empty(self) -> bool:
        """Whether no row is live."""
        return not self.live.any()

    def add(self, **rows: Tensor) -> None:
        """Append rows, given by the names of the buffers that have one entry for each; they are live."""
        first, count = len(self.keys), len(rows["keys"])
        for name, new in {**rows, "live": torch.ones(count, dtype=torch.bool)}.items():
            old = getattr(self, name)
            setattr(self, name, torch.cat([old, new.to(old)]))
        self.settle(first)

    def move(self, out: Sequence[int], back: Sequence[int]) -> None:
        """Let rows be live no more, and others be live again."""
        if out or back:
            self.live[list(out)] = False
            self.live[list(back)] = True
            self.settle(0)

    def is_of(self, units: Sequence[int]) -> bool:
        """See `Beside.is_of`."""
        return {len(buffer) for buffer in self.buffers()} == {sum(units)}

    @abstractmethod
    def settle(self, first: int) -> None:
        """Find what is read of the live rows; what was found of those before row `first` still holds."""


class StoreMemory(SideMemory):
    """Fills a `Store`: keys at the slots, averaged over contexts, and what the matrix is to return there."""

    needs_targets, USE = True, "stores targets"

    def spaces(self, shapes: Sequence[tuple[int, int]], edits: int, wide: int, on_gpu: bool) -> list[Space]:
        """Return the rows of all edits."""
        size = edits * sum(wide * (d_out + d_key) for d_out, d_key in shapes)
        return [Space(f"memory of {edits:,} edits", size, saved=size)]

    @abstractmethod
    def rows(self, keys: Tensor, outputs: Tensor, residuals: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return new rows of the store.

        Args:
            keys: (units, d_key).
            outputs: of the matrix without any memory, (units, d_out).
            residuals: what they lack of the targets, (units, d_out).
            labels: equal where the same is to be said, (units,) int64.
        """

    @torch.no_grad()
    def write(
        self, model: LanguageModel, step: EditStep, register: Register, again: Again | None = None
    ) -> dict[int, EditSystem]:
        """Store a batch, in the place of earlier edits of its facts, and enter it into the register.

        Raises:
            EditError: numbers are not finite; nothing is changed then.
        """
        if not step.requests:
            return {}
        [layer], module, count = model.layers, self.module(model), len(step.contexts)
        weights = ContextMean().key_weights(count, False), ContextMean().anchor_weights(count)
        with module.switched_off():
            reader = SlotReader(model, step.requests, step.contexts, step.expansion)
            asked = step.targets.asked(layer, 1.0, Spread(reader, *weights, layer))
            outputs = reader.outputs("matrix", weights[1], layer)
        if not all(part.isfinite().all() for part in (asked.keys, outputs, asked.residuals)):
            raise EditError(f"keys or targets at layer {layer} are not finite: check the model and stage_one")
        self.move(model, register, register.numbers_of(step.requests), [])
        wanted = [(r.target, unit) for r, n in zip(step.requests, step.targets.units, strict=True) for unit in range(n)]
        module.add(**self.rows(asked.keys, outputs, asked.residuals, torch.tensor([_label(*part) for part in wanted])))
        register.enter(step.requests, step.targets.groups, step.targets.units)
        return {}

    def revert(self, model: LanguageModel, register: Register) -> None:
        """Undo all edits: the model is the unedited one, bit for bit; their rows stay, for `redo` and for the order."""
        self.move(model, register, register.holding, [])
        register.deactivate(register.holding, UNDONE)

    def why_not_exact(self) -> str | None:
        """Return nothing: each edit has rows of its own."""
        return None

    def move(self, model: LanguageModel, register: Register, out: Sequence[int], back: Sequence[int]) -> None:
        """Close rows of edits, and open others again."""
        self.module(model).move(register.rows(out), register.rows(back))


def _label(target: str, unit: int) -> int:
    """Return a number that stands for what is to be said, the same in every process and run."""
    return int.from_bytes(hashlib.sha256(f"{unit} {target}".encode()).digest()[:7], "big")
