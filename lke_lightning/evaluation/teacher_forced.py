"""The published, teacher-forced protocol: probabilities of given continuations, batched over prompts and records.

The model is shown the continuation; nothing is generated. Definitions: `lke_lightning.metrics.preference`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lke_lightning.edits import EditRequest
from lke_lightning.model.batching import by_length, within_memory
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.prefix import Prefixes, shared_beginnings

KINDS = ("efficacy", "paraphrase", "neighborhood")

Scores = dict[str, Tensor]
"""For each kind, (prompts, 3) float64: nll of the wanted continuation, nll of the other (NaN: none), correct."""


@dataclass(frozen=True)
class Question:
    """A prompt, the continuation that should win, and the one that should lose."""

    prompt: str
    wanted: str
    other: str | None


def questions(request: EditRequest) -> dict[str, list[Question]]:
    """List what is asked about one edit, by kind."""
    asked = [request.text], request.paraphrases
    efficacy, paraphrase = ([Question(prompt, request.target, request.original) for prompt in part] for part in asked)
    rival = request.target if request.original is not None else None
    neighborhood = [Question(probe.prompt, probe.answer, rival) for probe in request.neighborhood]
    return {"efficacy": efficacy, "paraphrase": paraphrase, "neighborhood": neighborhood}


@torch.no_grad()
def score(model: LanguageModel, requests: Sequence[EditRequest], max_tokens: int = 16384) -> list[Scores]:
    """Score requests with the model as it is.

    Args:
        model: the language model.
        requests: edits, made or not.
        max_tokens: how many tokens are run at once.
    """
    asked = [questions(request) for request in requests]
    pairs = [
        (question.prompt, continuation)
        for by_kind in asked
        for part in by_kind.values()
        for question in part
        for continuation in (question.wanted, question.other)
        if continuation is not None
    ]
    nll, correct = continuation_nll(model, pairs, max_tokens)
    values = iter(zip(nll.tolist(), correct.tolist(), strict=True))
    scored: list[Scores] = []
    for by_kind in asked:
        scores = {}
        for kind, part in by_kind.items():
            rows = []
            for question in part:
                wanted, right = next(values)
                rows.append((wanted, torch.nan if question.other is None else next(values)[0], right))
            scores[kind] = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)
        scored.append(scores)
    return scored


@torch.no_grad()
def continuation_nll(
    model: LanguageModel, pairs: Sequence[tuple[str, str]], max_tokens: int = 16384
) -> tuple[Tensor, Tensor]:
    """Score continuations of prompts.

    Prompts with several one-token continuations run once, and so does what prompts begin with alike.

    Args:
        model: the language model.
        pairs: (prompt, continuation).
        max_tokens: how many tokens are run at once.

    Returns:
        Mean negative log-likelihood per token of each continuation, (pairs,) float64, and whether each of its tokens
        is the most probable one, (pairs,) bool.
    """
    encoded = model.text.continuations(pairs)
    reads: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}  # row -> (position, label, pair)
    for pair, (prompt, target) in enumerate(encoded):
        row = prompt + target[:-1]
        first = len(row) - len(target)
        reads.setdefault(row, []).extend((first + j, label, pair) for j, label in enumerate(target))

    def run(rows: list[tuple[int, ...]]) -> Tensor:
        """Return (pairs, 2): the summed negative log-likelihood, and how many tokens another one beats."""
        sums = torch.zeros(len(pairs), 2, dtype=torch.float64)
        for wanted, logits in _predict(model, rows, reads, max_tokens):
            _, label, pair = torch.tensor(wanted, device=model.device).T
            nll = logits.logsumexp(1) - logits.gather(1, label.unsqueeze(1)).squeeze(1)
            beaten = logits.argmax(1) != label
            sums.index_add_(0, pair.cpu(), torch.stack([nll.double(), beaten.double()], 1).cpu())
        return sums

    found, _ = within_memory(run, sorted(reads), len, max_tokens)
    total, wrong = torch.stack(found).sum(0).T
    lengths = torch.tensor([len(target) for _, target in encoded], dtype=torch.float64)
    return total / lengths, wrong == 0


def _predict(
    model: LanguageModel,
    rows: Sequence[tuple[int, ...]],
    reads: dict[tuple[int, ...], list[tuple[int, int, int]]],
    max_tokens: int,
) -> Iterator[tuple[list[tuple[int, int, int]], Tensor]]:
    """Yield reads and their logits (reads, vocabulary); what sorted neighbours begin with alike is run once."""
    first_read = [min(position for position, _, _ in reads[row]) for row in rows]
    shared = [ids[:first] for ids, first in zip(shared_beginnings(rows), first_read, strict=True)]
    prefixes = Prefixes.run(model, shared, max_tokens)
    for members in by_length([len(rows[i]) - len(shared[i]) for i in range(len(rows))], max_tokens, model.device):
        batch = prefixes.followed_by(model, [shared[i] for i in members], [rows[i][len(shared[i]) :] for i in members])
        wanted = [(place, len(shared[i]), read) for place, i in enumerate(members) for read in reads[rows[i]]]
        number = torch.tensor([place for place, _, _ in wanted], device=model.device)
        position = torch.tensor([read[0] - start for _, start, read in wanted], device=model.device)
        yield [read for _, _, read in wanted], model.logits(batch, number, position).to(model.wide_dtype)
