"""All rows of several requests as one batch, which runs at every step and shrinks as requests finish."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.prefix import Held
from lke_lightning.model.replay import Read, Replay, renumber
from lke_lightning.model.targets import Site
from lke_lightning.model.tokens import Row
from lke_lightning.stage_one.rows import RequestRows

MASSIVE = 4.0
"""How many times its median over contexts the norm of an activation may count."""


@dataclass(frozen=True)
class PackedRows:
    """Rows of the requests still being optimized. Numbers are int64; target reads come before essence reads."""

    replay: Replay
    contexts: int
    members: int
    """How many requests share each change; it counts as one request in what follows."""
    others: int
    """How many of the contexts, the last ones, are about something else."""
    row_requests: Tensor
    """Which request each row belongs to, (rows,)."""
    labels: Tensor
    """The token that each target read should predict, (target reads,)."""
    cells: Tensor
    """Which (request, context) each target read belongs to, (target reads,)."""
    essences: Tensor
    """Which request each essence read belongs to, (essence reads,)."""

    @classmethod
    def build(
        cls,
        model: LanguageModel,
        built: Sequence[RequestRows],
        layer: int,
        site: Site,
        max_tokens: int,
        attention: bool = False,
    ) -> PackedRows:
        """Compute what is the same at every step; arguments are those of `Replay.record`."""
        rows: list[Row] = []
        row_requests: list[int] = []
        labels: list[int] = []
        reads, cells, essence_reads, essences = [], [], [], []
        held: dict[int, Held] = {}
        others = len(built[0].others)
        contexts = len(built[0].contexts) + others
        for i, request in enumerate(built):
            held |= {len(rows) + c: part for c, part in enumerate(request.held)}
            asked = [*zip(request.contexts, request.targets, strict=True), *request.others]
            for c, (row, target) in enumerate(asked):
                first = len(row.ids) - len(target)
                reads += [Read(len(rows), first + j) for j in range(len(target))]
                labels += target
                cells += [i * contexts + c] * len(target)
                rows.append(row)
            if request.essence is not None:
                essence_reads.append(Read(len(rows), request.essence_read))
                essences.append(i)
                rows.append(request.essence)
            row_requests += [i] * (len(rows) - len(row_requests))
        replay = Replay.record(model, rows, reads + essence_reads, layer, site, max_tokens, held, attention)
        numbers = (torch.tensor(part, dtype=torch.long) for part in (row_requests, labels, cells, essences))
        return cls(replay, contexts, built[0].members, others, *(part.to(model.device) for part in numbers))

    @property
    def initial(self) -> Tensor:
        """The unchanged activations on the bare prompts, (requests, members, width of a change)."""
        is_first = torch.ones_like(self.row_requests, dtype=torch.bool)
        is_first[1:] = self.row_requests[1:] != self.row_requests[:-1]
        return self.replay.initial[is_first.nonzero() + self.bare]

    def norms(self, size: int) -> Tensor:
        """Return the norm of each request's unchanged activation on the first bare prompt, (requests, changes).

        It counts no more than `MASSIVE` times its median over the request's rows: the first tokens of a text may have
        activations a hundred times the usual ones from some layer on, and where the subject stands there, on the bare
        prompt alone, they are no measure of a change that all contexts share.

        Args:
            size: of a change; two of them stand side by side where the attention's output is changed, too.
        """
        of_rows = self.replay.initial.unflatten(1, (-1, size)).norm(dim=2)
        initial = self.initial[:, 0].unflatten(1, (-1, size)).norm(dim=2)
        counts = self.row_requests.bincount().tolist()  # rows of a request stand together
        usual = pad_sequence(of_rows.split(counts), batch_first=True, padding_value=math.nan).nanmedian(1).values
        return torch.minimum(initial, MASSIVE * usual)

    @property
    def bare(self) -> Tensor:
        """Which contexts of a request are its members' bare prompts, (members,)."""
        own = self.contexts - self.others
        return torch.arange(0, own, own // self.members, device=self.row_requests.device)

    def predict(self, change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run all rows with delta (requests, width of a change) at their slots.

        Returns:
            Mean negative log-likelihood of the target's tokens, (requests, contexts); whether all of them are the
            most probable ones, (requests, contexts) bool; log-probabilities after the essence prompt, (requests,
            vocabulary), zero for requests without one.
        """
        logits = self.replay.logits(change[self.row_requests]).split([len(self.labels), len(self.essences)])
        log_probs, essence_log_probs = (part.to(change.dtype).log_softmax(1) for part in logits)

        cells = len(change) * self.contexts
        of_label = log_probs.gather(1, self.labels.unsqueeze(1)).squeeze(1)
        total = change.new_zeros(cells).index_add(0, self.cells, -of_label)
        tokens = change.new_zeros(cells).index_add(0, self.cells, torch.ones_like(of_label))
        wrong = change.new_zeros(cells).index_add(0, self.cells, (log_probs.argmax(1) != self.labels).to(change.dtype))
        essence = change.new_zeros(len(change), log_probs.shape[1]).index_copy(0, self.essences, essence_log_probs)
        shape = (len(change), self.contexts)
        return (total / tokens).view(shape), (wrong == 0).view(shape), essence

    def keep(self, kept: Tensor) -> PackedRows:
        """Keep the requests marked in `kept` (requests,) bool."""
        requests = renumber(kept)
        cells = renumber(kept.repeat_interleave(self.contexts))
        rows_kept, targets_kept, essences_kept = kept[self.row_requests], cells[self.cells] >= 0, kept[self.essences]
        return PackedRows(
            self.replay.keep(rows_kept, torch.cat([targets_kept, essences_kept])),
            self.contexts,
            self.members,
            self.others,
            requests[self.row_requests[rows_kept]],
            self.labels[targets_kept],
            cells[self.cells[targets_kept]],
            requests[self.essences[essences_kept]],
        )
