"""Rows for stage one: everything that a change at the slot cannot affect is computed once, the rest at every step.

That is: all blocks up to the layer of the change, and every token before the slot in the blocks above it. The rest,
from the slot to the end of each row, runs in groups of nearly equal length, with little padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lke_lightning.model.activations import change_output
from lke_lightning.model.batching import by_length
from lke_lightning.model.cache import Padded
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.prefix import Held, Prefixes
from lke_lightning.model.targets import Site
from lke_lightning.model.tokens import Row


@dataclass(frozen=True)
class Read:
    """A position whose prediction is read."""

    row: int
    position: int
    """In the whole row; the slot or after it."""


@dataclass(frozen=True)
class _Group:
    """Rows that run together. All tensors of numbers are int64."""

    rows: Tensor
    """Which of the replay's rows these are, (rows,)."""
    batch: Padded
    """The tokens after the prefixes; each row begins at its slot."""
    hidden: Tensor
    """Input of the first block that runs, (rows, length, hidden size)."""
    reads: Tensor
    """Which of the replay's reads these are, (reads,)."""
    read_rows: Tensor
    read_positions: Tensor

    def keep(self, rows: Tensor, reads: Tensor) -> _Group:
        """Drop rows; the arguments map the replay's old row and read numbers to new ones, -1 for gone."""
        kept, read_kept = rows[self.rows] >= 0, reads[self.reads] >= 0
        group = replace(self, rows=rows[self.rows[kept]], reads=reads[self.reads[read_kept]])
        if kept.all():
            return group
        places = kept.nonzero().squeeze(1)
        batch = self.batch.select(places)
        return replace(
            group,
            batch=batch,
            hidden=self.hidden[places, : batch.ids.shape[1]],
            read_rows=renumber(kept)[self.read_rows[read_kept]],
            read_positions=self.read_positions[read_kept],
        )


@dataclass(frozen=True)
class Replay:
    """Rows that run repeatedly with a change at each row's slot, under the weights of `record`."""

    model: LanguageModel
    site: Site
    start: int
    """First block that runs."""
    groups: list[_Group]
    order: Tensor
    """The position of each read in the concatenated results of the groups, (reads,) int64."""
    initial: Tensor
    """The unchanged activation at each row's slot, (rows, width), in the wide dtype; beside the matrix's output, behind
    it, that of the attention, where it is changed too."""
    inside: tuple[nn.Module, ...] = ()
    """The modules of the target block whose outputs are changed, each by a hidden size of the width; none where the
    block's own output is."""

    @classmethod
    def record(
        cls,
        model: LanguageModel,
        rows: Sequence[Row],
        reads: Sequence[Read],
        layer: int,
        site: Site,
        max_tokens: int,
        held: Mapping[int, Held] | None = None,
        attention: bool = False,
    ) -> Replay:
        """Compute everything that does not change.

        Args:
            model: the language model.
            rows: whole rows.
            reads: places whose predictions `logits` returns.
            layer: where the change will be added.
            site: where in that layer.
            max_tokens: how many tokens run at once.
            held: by row, the outputs that stand at the site at tokens before its slot; rows with one prefix have the
                same.
            attention: a second change will be added at the output of the attention's matrix, at the site `matrix` only.

        Raises:
            EditError: the attention's matrix is not known.
        """
        device = model.device
        start = layer + 1 if site == "block" else layer
        standing = {rows[i].ids[: rows[i].slot]: part for i, part in (held or {}).items() if part}
        prefixes = Prefixes.run(model, [row.ids[: row.slot] for row in rows], max_tokens, standing, site, layer)
        block, inside = model.architecture.blocks[layer], ()
        if site == "matrix":
            beside = (model.architecture.attention_matrix(layer),) if attention else ()
            inside = (model.architecture.matrix(layer), *beside)
        of_row: list[list[int]] = [[] for _ in rows]
        for number, read in enumerate(reads):
            of_row[read.row].append(number)
        width = model.architecture.hidden_size * max(1, len(inside))
        initial = torch.empty(len(rows), width, dtype=model.wide_dtype, device=device)
        groups = []
        for members in by_length([len(row.ids) - row.slot for row in rows], max_tokens, device):
            chosen = [rows[i] for i in members]
            batch = prefixes.followed_by(
                model, [row.ids[: row.slot] for row in chosen], [row.ids[row.slot :] for row in chosen]
            )
            (block_in, block_out), *seen = model.observe(batch, [block, *inside], stop=layer + 1)
            numbers = torch.tensor(members, device=device)
            changed = [output for _, output in seen] or [block_out]
            initial[numbers] = torch.cat([output[:, 0] for output in changed], dim=1).to(initial.dtype)
            wanted = [(number, place) for place, i in enumerate(members) for number in of_row[i]]
            positions = [reads[number].position - chosen[place].slot for number, place in wanted]
            read_numbers, read_rows = torch.tensor(wanted, device=device).reshape(-1, 2).T
            groups.append(
                _Group(
                    numbers,
                    replace(batch, past=None if batch.past is None else batch.past.above(start)),
                    block_out if site == "block" else block_in,
                    read_numbers,
                    read_rows,
                    torch.tensor(positions, dtype=torch.long, device=device),
                )
            )
        return cls(model, site, start, groups, _order(groups), initial, inside)

    def keep(self, rows: Tensor, reads: Tensor) -> Replay:
        """Keep the rows and reads marked in (rows,) and (reads,) bool, in their order."""
        row_numbers, read_numbers = renumber(rows), renumber(reads)
        groups = [group.keep(row_numbers, read_numbers) for group in self.groups if rows[group.rows].any()]
        return replace(self, groups=groups, order=_order(groups), initial=self.initial[rows])

    def logits(self, change: Tensor) -> Tensor:
        """Compute logits (reads, vocabulary) with `change` (rows, width) added at the slots; differentiable."""
        with _attention(change.device):
            states = [self._states(group, change[group.rows]) for group in self.groups]
        return self.model.head(torch.cat(states)[self.order])

    def _states(self, group: _Group, change: Tensor) -> Tensor:
        def add(part: Tensor, hidden: Tensor) -> Tensor:
            first = (hidden[:, 0] + part.to(hidden.dtype)).unsqueeze(1)
            return torch.cat([first, hidden[:, 1:]], dim=1)

        reads = group.batch, group.read_rows, group.read_positions
        if not self.inside:
            return self.model.states(*reads, self.start, add(change, group.hidden))
        with ExitStack() as stack:
            for module, part in zip(self.inside, change.chunk(len(self.inside), dim=1), strict=True):
                stack.enter_context(change_output(module, partial(add, part), len(group.batch)))
            return self.model.states(*reads, self.start, group.hidden)


def _attention(device: torch.device) -> AbstractContextManager[None]:
    """Choose the kernel: for a few queries per row, plain attention has the faster backward on a CPU."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def renumber(kept: Tensor) -> Tensor:
    """Map old numbers to new ones after dropping those not marked in `kept` (items,) bool; -1 for the dropped."""
    return torch.where(kept, kept.long().cumsum(0) - 1, -1)


def _order(groups: Sequence[_Group]) -> Tensor:
    return torch.cat([group.reads for group in groups]).argsort()
