"""What a run does, counted from its settings and its real records before anything is computed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from lke_lightning.edits import SLOT, EditRequest
from lke_lightning.evaluation.teacher_forced import questions
from lke_lightning.model.prefix import shared_beginnings
from lke_lightning.model.tokens import Row, TextEncoder
from lke_lightning.stage_one.contexts import ContextTemplates
from lke_lightning.stage_one.rows import RequestRows, build_rows

SAMPLE = 200
"""Requests that are encoded and counted: evenly spread over the stream, they speak for all."""


@dataclass(frozen=True)
class Tokens:
    """What one request costs on average, in tokens that are run and places where the head predicts."""

    whole: float
    """All tokens of its rows in stage one; these bound how many requests descend together."""
    before_slot: float
    """Tokens before the slots, what is shared counted once: run once in every block."""
    from_slot: float
    """Tokens from the slots on: run at every step in the blocks above the target layer."""
    reads: float
    """Predictions of every step."""
    upto_slot: float
    """Tokens up to the slots in all contexts: run by stage two to read keys."""
    questions: float
    """Tokens of its evaluation, what is shared counted once."""
    answers: float
    """Predictions of its evaluation."""
    encoding_seconds: float
    """Measured time of turning its texts into tokens."""


def spread(requests: Sequence[EditRequest], count: int) -> list[EditRequest]:
    """Choose so many requests evenly from a stream, all of them where there are fewer."""
    count = min(count, len(requests))
    return [requests[i * len(requests) // count] for i in range(count)]


def stand_in_contexts(contexts: ContextTemplates, requests: Sequence[EditRequest], text: TextEncoder) -> list[str]:
    """Make contexts of the length that the run will sample, out of words of the stream; `"{}"` first."""
    if contexts.templates is not None:
        return [SLOT, *contexts.templates]
    words = text.encode([" ".join(request.text for request in requests[:20])])[0][len(text.prefix) :]
    made = [SLOT]
    for i, ids in enumerate(text.encode(contexts.seeds)):
        need = max(0, contexts.length - len(ids))
        start = i * need % max(1, len(words) - need)
        sentence = text.tokenizer.decode((*ids, *words[start : start + need]), skip_special_tokens=True)
        made.append(" ".join(sentence.replace("{", " ").replace("}", " ").split()) + ". " + SLOT)
    return made


def count_tokens(
    requests: Sequence[EditRequest], contexts: Sequence[str], text: TextEncoder, reference_quirks: bool, batch_size: int
) -> Tokens:
    """Count what some requests cost; what is shared is shared within batches of `batch_size`.

    Raises:
        EditError: a request that cannot be encoded.
    """
    start = time.perf_counter()
    built = build_rows(requests, contexts, text, reference_quirks)
    pairs = [
        (question.prompt, continuation)
        for request in requests
        for part in questions(request).values()
        for question in part
        for continuation in (question.wanted, question.other)
        if continuation is not None
    ]
    asked = text.continuations(pairs)
    seconds = time.perf_counter() - start
    count = len(requests)
    parts = [built[i : i + batch_size] for i in range(0, count, batch_size)]
    rows = [row for request in built for row in rows_of(request)]
    wholes = sorted({prompt + answer[:-1] for prompt, answer in asked})
    return Tokens(
        sum(request.count_tokens() for request in built) / count,
        sum(_run_once([row.ids[: row.slot] for request in part for row in rows_of(request)]) for part in parts) / count,
        sum(len(row.ids) - row.slot for row in rows) / count,
        sum(len(request.target) * len(contexts) + (request.essence is not None) for request in built) / count,
        sum(row.slot + 1 for request in built for row in request.contexts) / count,
        _run_once(wholes) / count,
        sum(len(answer) for _, answer in asked) / count,
        seconds / count,
    )


def rows_of(request: RequestRows) -> list[Row]:
    """Return all rows of a request."""
    return [*request.contexts, *([request.essence] if request.essence else [])]


def _run_once(sequences: Sequence[tuple[int, ...]]) -> int:
    """Count the tokens of distinct sequences that are run where neighbours in sorted order share beginnings."""
    distinct = sorted(set(sequences))
    shared = shared_beginnings(distinct)
    stems = sum(len(ids) for ids in set(shared))
    return stems + sum(len(ids) - len(stem) for ids, stem in zip(distinct, shared, strict=True))


def active(count: int, mean_steps: float, max_steps: int, check_every: int = 1) -> list[float]:
    """Expect how many requests still have rows at each step of a descent.

    The same share is taken to stop at every step, so that `mean_steps` is the mean and `max_steps` the limit.

    Args:
        count: requests that descend together.
        mean_steps: steps that a request takes on average.
        max_steps: steps at most; `mean_steps` at or above that: all take so many.
        check_every: finished requests keep their rows until the next multiple of this.

    Returns:
        One number per step, at least 1; the steps at which less than half a request would be left do not happen.
    """
    staying = 1.0
    if mean_steps < max_steps:
        low, high = 0.0, 1.0
        for _ in range(60):
            staying = (low + high) / 2
            mean = sum(staying**step for step in range(max_steps))
            low, high = (staying, high) if mean < mean_steps else (low, staying)
    left = []
    for step in range(max_steps):
        if step and count * staying**step < 0.5:
            break
        left.append(max(1.0, count * staying ** (step // check_every * check_every)))
    return left
