"""From a request to the token rows that stage one runs: one row per context, and one about the subject's essence."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lke_lightning.edits import SLOT, EditError, EditRequest
from lke_lightning.model.prefix import Held
from lke_lightning.model.tokens import Row, TextEncoder
from lke_lightning.model.units import Other

ESSENCE = "{} is a"
"""What the model says after this about the subject shall not change."""


@dataclass(frozen=True)
class RequestRows:
    """The rows of one request, or of requests that share a target. A bare prompt is the first of `contexts`."""

    contexts: tuple[Row, ...]
    """Prompt in context, followed by all tokens of its target but the last; the last positions predict the target."""
    targets: tuple[tuple[int, ...], ...]
    """The target of each of them."""
    essence: Row | None
    """The essence prompt, or `None` where no subject is marked."""
    essence_read: int
    """Position in the essence row whose prediction is preserved."""
    members: int = 1
    """How many requests share the change; each has as many of `contexts`."""
    others: tuple[Other, ...] = ()
    """Rows about something else that the change is added to as well; they count as further contexts."""
    held: tuple[Held, ...] = ()
    """For each of `contexts`, targets of earlier units that stand before its slot; empty: none."""
    seen: Mapping[str, Tensor] = field(default_factory=dict)
    """What the target space has seen of the request, or of the first of them, before the descent."""

    @classmethod
    def together(cls, members: Sequence[RequestRows]) -> RequestRows:
        """Put the rows of requests together whose activations one change shall serve."""
        contexts = tuple(row for member in members for row in member.contexts)
        targets = tuple(target for member in members for target in member.targets)
        others, held = (tuple(itertools.chain(*(getattr(m, name) for m in members))) for name in ("others", "held"))
        first = members[0]
        return cls(contexts, targets, first.essence, first.essence_read, len(members), others, held, first.seen)

    @property
    def key(self) -> tuple[tuple[int, ...], ...]:
        """What the keys of a request follow from: the tokens up to the slot, in every context."""
        return tuple(row.ids[: row.slot + 1] for row in self.contexts)

    def shape(self) -> tuple[int, int]:
        """Return how many rows there are of either kind; those of one shape are found together."""
        return len(self.contexts), len(self.others)

    def count_tokens(self) -> int:
        """Count the tokens of all rows."""
        rows = (*self.contexts, *(row for row, _ in self.others), *([self.essence] if self.essence else []))
        return sum(len(row.ids) for row in rows)


def build_rows(
    requests: Sequence[EditRequest], contexts: Sequence[str], text: TextEncoder, reference_quirks: bool = False
) -> list[RequestRows]:
    """Encode requests, each in all contexts.

    Args:
        requests: the edits.
        contexts: templates, `"{}"` first.
        text: the tokenizer.
        reference_quirks: preserve the prediction at the subject's last token, as the published code does, not at the
            end of "{subject} is a". Causality then makes the words after the subject irrelevant: they are left out.

    Raises:
        EditError: a target that the vocabulary cannot say.
    """
    placed = [request.in_context(template) for request in requests for template in contexts]
    rows = text.rows(placed)
    targets = text.continuations([(whole, requests[i // len(contexts)].target) for i, (whole, _) in enumerate(placed)])
    essences = [r.subject and (ESSENCE.replace(SLOT, r.subject), r.subject) for r in requests]
    essence_rows = iter(text.rows([pair for pair in essences if pair]))

    built = []
    for i, request in enumerate(requests):
        span = slice(i * len(contexts), (i + 1) * len(contexts))
        target = targets[span.start][1]
        in_contexts = tuple(Row(row.ids + target[:-1], row.slot) for row in rows[span])
        essence = next(essence_rows) if request.subject else None
        if essence and reference_quirks:
            essence = Row(essence.ids[: essence.slot + 1], essence.slot)
        built.append(
            RequestRows(in_contexts, (target,) * len(contexts), essence, len(essence.ids) - 1 if essence else 0)
        )
    return built


def grouped(marks: Sequence[Hashable]) -> list[list[int]]:
    """Group requests that have one mark, by their places; groups of one come first, in the order of the requests."""
    groups: dict[Hashable, list[int]] = {}
    for place, mark in enumerate(marks):
        groups.setdefault(mark, []).append(place)
    return sorted(groups.values(), key=len)


def check_requests(requests: Sequence[EditRequest], contexts: Sequence[str], text: TextEncoder) -> None:
    """Check that every request can be encoded and fits into the model, alone and in the longest context.

    Args:
        requests: the edits.
        contexts: templates.
        text: the tokenizer.

    Raises:
        EditError: one cannot be; the message has its id.
    """
    extremes = [SLOT, max(contexts, key=lambda template: len(text.encode([template])[0]))]
    try:
        build_rows(requests, extremes, text)
    except EditError:  # which one?
        for request in requests:
            try:
                build_rows([request], extremes, text)
            except EditError as error:
                raise EditError(f"edit {request.id}: {error}") from error
        raise
