"""The published, teacher-forced protocol: likelihoods of given continuations, batched over prompts and records.

The model is shown the continuation; nothing is generated. Definitions: `lke_lightning.metrics.preference` and
`lke_lightning.metrics.tokens`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lke_lightning.edits import KINDS, EditRequest, Probe
from lke_lightning.evaluation.likelihood import likelihoods
from lke_lightning.model.batching import by_length, within_memory
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.prefix import Prefixes, shared_beginnings
from lke_lightning.progress import track

ASKED = (*KINDS, "portability", "two_hop")
"""All kinds of prompts; the last two only where records have them."""

TOKENS, SAYS = "/tokens", "neighborhood/says"

SHARED_COST = 1.5
"""Cost of a token behind a prefix that was run before, in tokens of a whole row: attention with a mask, keys and values
copied for every row, and passes of their own for the prefixes (bfloat16 and float32 on a CPU)."""

Ids = tuple[int, ...]
Read = tuple[int, int, int]
"""Position in a row, label, number of the token in the result."""
Reads = dict[Ids, list[Read]]
"""What is read in each row."""

Scores = dict[str, Tensor]
"""The scores of one edit, by name.

For each kind of `ASKED`, (prompts, 3) float64: nll of the wanted continuation, nll of the other (NaN: none), correct;
those outside `KINDS` only where a record has them. With the suffix `TOKENS`, (prompts, 4) float64: how many tokens of
the wanted continuation are the most probable ones, and how many there are; the same of the other (NaN: none). As
`SAYS`, int32: the most probable token at every position of the neighborhood's answers, one answer after another.
"""


@dataclass(frozen=True)
class Question:
    """A prompt, the continuation that should win, and the one that should lose."""

    prompt: str
    wanted: str
    other: str | None
    aliases: tuple[str, ...] = ()
    """Other accepted wordings of `wanted`, for generated answers."""


def questions(request: EditRequest) -> dict[str, list[Question]]:
    """List the questions about one edit, by kind."""
    rival = request.target if request.original is not None else None
    asked = {
        "efficacy": [_about_the_edit(request, request.text)],
        "paraphrase": [_about_the_edit(request, prompt) for prompt in request.paraphrases],
        "neighborhood": [_about(probe, rival) for probe in request.neighborhood],
    }
    further = {"portability": request.portability, "two_hop": request.two_hop}
    return asked | {kind: [_about(probe, None) for probe in probes] for kind, probes in further.items() if probes}


def asked_pairs(request: EditRequest) -> list[tuple[str, str]]:
    """List what is scored about one edit, (prompt, continuation), in the order of its questions."""
    return [
        (question.prompt, continuation)
        for part in questions(request).values()
        for question in part
        for continuation in (question.wanted, question.other)
        if continuation is not None
    ]


def _about_the_edit(request: EditRequest, prompt: str) -> Question:
    return Question(prompt, request.target, request.original, request.aliases)


def _about(probe: Probe, rival: str | None) -> Question:
    return Question(probe.prompt, probe.answer, rival, probe.aliases)


@torch.no_grad()
def score(model: LanguageModel, requests: Sequence[EditRequest], max_tokens: int = 16384) -> list[Scores]:
    """Score requests with the model as it is.

    Args:
        model: the language model.
        requests: edits, already made or not.
        max_tokens: how many tokens are run at once.

    Returns:
        The scores of each request; none where a module beside the network answers, which likelihoods do not tell.
    """
    if model.answering is not None:
        return [{} for _ in requests]
    asked = [questions(request) for request in requests]
    found = continuations(model, [pair for request in requests for pair in asked_pairs(request)], max_tokens)
    nll, right, tokens = found.nll.tolist(), found.right.tolist(), found.tokens.tolist()
    top = found.top.int().split(tokens)
    scored: list[Scores] = []
    pair = 0
    for by_kind in asked:
        scores, neighborhood = {}, []
        for kind, part in by_kind.items():
            rows, counts = [], []
            for question in part:
                wanted, other = pair, None if question.other is None else pair + 1
                pair += 1 if other is None else 2
                compared = torch.nan if other is None else nll[other]
                rows.append((nll[wanted], compared, right[wanted] == tokens[wanted]))
                rival = (torch.nan, torch.nan) if other is None else (right[other], tokens[other])
                counts.append((right[wanted], tokens[wanted], *rival))
                if kind == "neighborhood":
                    neighborhood.append(top[wanted])
            scores[kind] = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)
            scores[kind + TOKENS] = torch.tensor(counts, dtype=torch.float64).reshape(-1, 4)
        scores[SAYS] = torch.cat(neighborhood) if neighborhood else torch.zeros(0, dtype=torch.int32)
        scored.append(scores)
    return scored


@dataclass(frozen=True)
class Continuations:
    """A model's scores of continuations of prompts."""

    nll: Tensor
    """Mean negative log-likelihood per token of each, (pairs,) float64."""
    right: Tensor
    """How many of its tokens are the most probable ones, (pairs,) int64."""
    tokens: Tensor
    """How many tokens it has, (pairs,) int64."""
    top: Tensor
    """The most probable token at each position, one continuation after another, (all tokens,) int64."""


def continuation_nll(
    model: LanguageModel, pairs: Sequence[tuple[str, str]], max_tokens: int = 16384
) -> tuple[Tensor, Tensor]:
    """Score continuations of prompts; see `continuations`.

    Returns:
        Mean negative log-likelihood per token of each continuation, (pairs,) float64, and whether each of its tokens
        is the most probable one, (pairs,) bool.
    """
    found = continuations(model, pairs, max_tokens)
    return found.nll, found.right == found.tokens


@torch.no_grad()
def continuations(model: LanguageModel, pairs: Sequence[tuple[str, str]], max_tokens: int = 16384) -> Continuations:
    """Score continuations of prompts.

    A row that begins another one is read in that one, so that a prompt with several one-token continuations runs once.
    Long prefixes that prompts share run once.

    Args:
        model: the language model.
        pairs: (prompt, continuation).
        max_tokens: how many tokens are run at once.

    Raises:
        EditError: a prompt and its continuation exceed the model's context.
    """
    encoded = model.text.continuations(pairs)
    reads: Reads = {}
    count = 0
    for prompt, target in encoded:
        row = prompt + target[:-1]
        first = len(row) - len(target)
        reads.setdefault(row, []).extend((first + j, label, count + j) for j, label in enumerate(target))
        count += len(target)
    reads = _in_longest_rows(reads)
    nll = torch.zeros(count, dtype=torch.float64)
    top = torch.zeros(count, dtype=torch.long)

    def run(rows: list[Ids]) -> None:
        """Fill in the results of rows; rows that ran out of memory are filled in again."""
        for wanted, states in _states(model, rows, reads, max_tokens):
            _, label, number = torch.tensor(wanted).T
            nll[number], top[number] = likelihoods(model, states, label.to(states.device))

    within_memory(run, sorted(reads), len, max_tokens)
    lengths = torch.tensor([len(target) for _, target in encoded], dtype=torch.long)
    labels = torch.tensor([label for _, target in encoded for label in target], dtype=torch.long)
    pair = torch.arange(len(pairs)).repeat_interleave(lengths)
    total = torch.zeros(len(pairs), dtype=torch.float64).index_add_(0, pair, nll)
    right = torch.zeros(len(pairs), dtype=torch.long).index_add_(0, pair, (top == labels).long())
    return Continuations(total / lengths, right, lengths, top)


def _in_longest_rows(reads: Reads) -> Reads:
    """Read what stands at the beginning of a longer row in that row: no token sees what follows it."""
    found: Reads = {}
    longest: Ids = ()
    for row in sorted(reads, reverse=True):
        if longest[: len(row)] != row:
            longest, found[row] = row, []
        found[longest] += reads[row]
    return found


def _states(
    model: LanguageModel, rows: Sequence[Ids], reads: Reads, max_tokens: int
) -> Iterator[tuple[list[Read], Tensor]]:
    """Yield reads and what the head sees there, (reads, hidden size).

    Prefixes that sorted neighbors share run once where that pays: by twos and threes, as in CounterFact, prompts share
    a fifth of their tokens, and another pass to make their keys and values costs more than it saves.
    """
    first_read = [min(position for position, _, _ in reads[row]) for row in rows]
    shared = [ids[:first] for ids, first in zip(shared_beginnings(rows), first_read, strict=True)]
    apart, alike = sum(map(len, rows)), sum(map(len, shared))
    if not model.is_token_wise or SHARED_COST * (apart - alike + sum(map(len, set(shared)))) > apart:
        shared = [()] * len(rows)
    prefixes = Prefixes.run(model, shared, max_tokens)
    groups = by_length([len(rows[i]) - len(shared[i]) for i in range(len(rows))], max_tokens, model.device)
    for members in track(groups, "reading prompts", "passes"):
        batch = prefixes.followed_by(model, [shared[i] for i in members], [rows[i][len(shared[i]) :] for i in members])
        wanted = [(place, len(shared[i]), read) for place, i in enumerate(members) for read in reads[rows[i]]]
        number = torch.tensor([place for place, _, _ in wanted], device=model.device)
        position = torch.tensor([read[0] - start for _, start, read in wanted], device=model.device)
        yield [read for _, _, read in wanted], model.states(batch, number, position)
