"""All rows of some requests as one batch that a descent runs at every step and that shrinks as requests finish."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.replay import Replay
from lke_lightning.model.targets import Site
from lke_lightning.stage_one.rows import RequestRows


@dataclass(frozen=True)
class Reads:
    """Where logits are needed; all tensors are (reads,) int64."""

    rows: Tensor
    positions: Tensor
    labels: Tensor
    """The target token predicted there; unused for essence reads."""
    groups: Tensor
    """Which (request, context) a target read belongs to; which request an essence read belongs to."""

    def keep(self, rows: Tensor, groups: Tensor) -> Reads:
        """Drop reads of rows that are gone; `rows` and `groups` map old numbers to new ones, -1 for gone."""
        kept = rows[self.rows] >= 0
        return Reads(rows[self.rows[kept]], self.positions[kept], self.labels[kept], groups[self.groups[kept]])


@dataclass(frozen=True)
class PackedRows:
    """Rows of the requests that are still optimised."""

    replay: Replay
    requests: Tensor
    """Which request each row belongs to, (rows,)."""
    contexts: int
    targets: Reads
    essences: Reads

    @classmethod
    def build(cls, model: LanguageModel, built: Sequence[RequestRows], site: Site) -> PackedRows:
        """Pad the rows, run their lower blocks once."""
        rows, requests, targets, essences = [], [], [], []
        contexts = len(built[0].contexts)
        for i, request in enumerate(built):
            for c, row in enumerate(request.contexts):
                first = len(row.ids) - len(request.target)
                targets += [(len(rows), first + j, label, i * contexts + c) for j, label in enumerate(request.target)]
                rows.append(row)
                requests.append(i)
            if request.essence is not None:
                essences.append((len(rows), request.essence_read, 0, i))
                rows.append(request.essence)
                requests.append(i)
        device = model.device
        replay = Replay.record(model, rows, site)
        return cls(
            replay,
            torch.tensor(requests, device=device),
            contexts,
            Reads(*torch.tensor(targets, device=device).T),
            Reads(*torch.tensor(essences, dtype=torch.long, device=device).reshape(-1, 4).T),
        )

    @property
    def initial(self) -> Tensor:
        """The unchanged activation on the bare prompt, (requests, hidden size)."""
        first = torch.ones_like(self.requests, dtype=torch.bool)
        first[1:] = self.requests[1:] != self.requests[:-1]
        return self.replay.initial[first]

    def predict(self, change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run all rows with delta (requests, hidden size) at their slots.

        Returns:
            Mean negative log-likelihood of the target's tokens, (requests, contexts); whether all of them are the
            most probable ones, (requests, contexts) bool; log-probabilities after the essence prompt, (requests,
            vocabulary), zero for requests without one.
        """
        positions = torch.cat([self.targets.positions, self.essences.positions])
        rows = torch.cat([self.targets.rows, self.essences.rows])
        log_probabilities = self.replay.logits(change[self.requests], rows, positions).to(change.dtype).log_softmax(1)
        count, cells = len(self.targets.rows), len(change) * self.contexts
        said, essence_said = log_probabilities[:count], log_probabilities[count:]

        groups, labels = self.targets.groups, self.targets.labels
        of_label = said.gather(1, labels.unsqueeze(1)).squeeze(1)
        total = change.new_zeros(cells).index_add(0, groups, -of_label)
        tokens = change.new_zeros(cells).index_add(0, groups, torch.ones_like(of_label))
        wrong = change.new_zeros(cells).index_add(0, groups, (said.argmax(1) != labels).to(change.dtype))
        essence = change.new_zeros(len(change), said.shape[1]).index_copy(0, self.essences.groups, essence_said)
        shape = (len(change), self.contexts)
        return (total / tokens).view(shape), (wrong == 0).view(shape), essence

    def keep(self, kept: Tensor) -> PackedRows:
        """Keep the requests marked in `kept` (requests,) bool."""
        row_kept = kept[self.requests]
        request_numbers, row_numbers = _renumber(kept), _renumber(row_kept)
        cells = torch.arange(self.contexts, device=kept.device)
        cell_numbers = (request_numbers.unsqueeze(1) * self.contexts + cells).flatten()
        return PackedRows(
            self.replay.select(row_kept.nonzero().squeeze(1)),
            request_numbers[self.requests[row_kept]],
            self.contexts,
            self.targets.keep(row_numbers, cell_numbers),
            self.essences.keep(row_numbers, request_numbers),
        )


def _renumber(kept: Tensor) -> Tensor:
    """Map old positions to new ones after dropping, -1 for the dropped."""
    return torch.where(kept, kept.long().cumsum(0) - 1, -1)


def parts(built: Sequence[RequestRows], max_tokens: int) -> Iterator[list[RequestRows]]:
    """Split requests, in order, into parts of at most `max_tokens` tokens with padding, one request at least."""
    part: list[RequestRows] = []
    rows = width = 0
    for request in built:
        added = [*request.contexts, *([request.essence] if request.essence else [])]
        wider = max(width, *(len(row.ids) for row in added))
        if part and (rows + len(added)) * wider > max_tokens:
            yield part
            part, rows, wider = [], 0, max(len(row.ids) for row in added)
        part.append(request)
        rows, width = rows + len(added), wider
    if part:
        yield part
