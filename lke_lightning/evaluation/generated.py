"""The generated protocol: the model sees the prompt alone and generates freely.

*Answers* are decoded greedily up to an end token, a line break or a maximum number of tokens, and compared as texts
(`lke_lightning.metrics.answers`). *Continuations* for fluency and consistency follow ROME: top-5 sampling, 100 tokens
including the prompt, no stop; unlike there, seeded by their prompts.

Prompts are encoded as everywhere, in the chat template if the model is set to use one (`TextEncoder.prompts`). They
run together, each prompt once; shared prefixes are computed once; finished rows leave the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from lke_lightning.edits import EditRequest
from lke_lightning.evaluation.teacher_forced import Question, Scores, questions
from lke_lightning.metrics import TextSimilarity, digest, match, ngram_entropy
from lke_lightning.model.batching import within_memory
from lke_lightning.model.cache import Padded, PrefixCache
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.prefix import Prefixes

GENERATED, SAID, TEXTS = "/generated", "neighborhood/said", "texts"
"""Names in `Scores`.

Behind a kind, `GENERATED`: exact, prefix, judged (NaN: not judged), (prompts, 3) float64. `SAID`: digests of the
texts generated after the neighborhood's prompts, (prompts,) int64. `TEXTS`: fluency and consistency, (1, 2) float64,
NaN where there is nothing to measure.
"""

TOP_K, TOTAL_TOKENS = 5, 100
"""Sampling of continuations, as in ROME."""

Ids = tuple[int, ...]


class Decides(Protocol):
    """Decides whether answers are correct."""

    def __call__(self, asked: Sequence[tuple[str, str, tuple[str, ...]]]) -> list[float]:
        """Take (prompt, generated text, accepted answers); return 1 or 0 for each, NaN where undecided."""


@dataclass(frozen=True)
class Answered:
    """What the model generated about one edit."""

    scores: Scores
    text: str
    """After the edited prompt."""


def protocol(model: LanguageModel, new_tokens: int) -> str:
    """Name what answers without a judge depend on, beside the weights and the questions."""
    return f"generated, {new_tokens} tokens, ends {sorted(end_tokens(model))}"


def answer(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    new_tokens: int = 32,
    max_tokens: int = 16384,
    judge: Decides | None = None,
) -> list[Answered]:
    """Let the model, as it is, generate answers to the prompts of edits.

    Args:
        model: the language model.
        requests: edits, made or not.
        new_tokens: maximum length of an answer; a truncated answer is rarely exact.
        max_tokens: how many tokens are held at once.
        judge: also judges every answer; `None`: no judge.
    """
    asked = [questions(request) for request in requests]
    flat = [question for by_kind in asked for part in by_kind.values() for question in part]
    prompts = list(dict.fromkeys(question.prompt for question in flat))
    texts = dict(zip(prompts, respond(model, prompts, new_tokens, max_tokens), strict=True))
    judged = {(question.prompt, texts[question.prompt], _accepted(question)): torch.nan for question in flat}
    if judge is not None:
        judged = dict(zip(judged, judge(list(judged)), strict=True))
    answered = []
    for request, by_kind in zip(requests, asked, strict=True):
        scores = {}
        for kind, part in by_kind.items():
            answers = [(question.prompt, texts[question.prompt], _accepted(question)) for question in part]
            found = [(*match(text, accepted), judged[prompt, text, accepted]) for prompt, text, accepted in answers]
            scores[kind + GENERATED] = torch.tensor(found, dtype=torch.float64).reshape(-1, 3)
        scores[SAID] = torch.tensor([digest(texts[q.prompt]) for q in by_kind["neighborhood"]], dtype=torch.long)
        answered.append(Answered(scores, texts[request.text]))
    return answered


def _accepted(question: Question) -> tuple[str, ...]:
    return (question.wanted, *question.aliases)


def write_about(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    similarity: TextSimilarity | None = None,
    max_tokens: int = 16384,
) -> list[Scores]:
    """Let the model continue the requests' generation prompts, and measure fluency and consistency.

    Args:
        model: the language model.
        requests: edits, already made or not; one without generation prompts gets neither figure.
        similarity: compares with reference texts; `None`: consistency is not measured.
        max_tokens: how many tokens are held at once.
    """
    prompts = list(dict.fromkeys(prompt for request in requests for prompt in request.generation))
    texts = dict(zip(prompts, continue_freely(model, prompts, max_tokens=max_tokens), strict=True))
    scored: list[Scores] = []
    for request in requests:
        written = [prompt.rstrip() + texts[prompt] for prompt in request.generation]
        fluency = sum(map(ngram_entropy, written)) / len(written) if written else torch.nan
        consistency = similarity(written, request.references) if similarity is not None else torch.nan
        scored.append({TEXTS: torch.tensor([[fluency, consistency]], dtype=torch.float64)})
    return scored


def respond(
    model: LanguageModel,
    prompts: Sequence[str],
    new_tokens: int,
    max_tokens: int = 16384,
    choose: Callable[[Tensor, Tensor, int], Tensor] | None = None,
) -> list[str]:
    """Answer questions as the edited model does: as a module beside the network answers them, else by `complete`."""
    if model.answering is None:
        return complete(model, prompts, new_tokens, max_tokens, choose)
    return model.answering.answer(prompts, new_tokens, lambda texts, tokens: complete(model, texts, tokens, max_tokens))


def complete(
    model: LanguageModel,
    prompts: Sequence[str],
    new_tokens: int,
    max_tokens: int = 16384,
    choose: Callable[[Tensor, Tensor, int], Tensor] | None = None,
) -> list[str]:
    """Continue prompts up to an end token, a line break or `new_tokens` tokens.

    Args:
        model: the language model.
        prompts: what is continued.
        new_tokens: maximum length.
        max_tokens: how many tokens are held at once.
        choose: chooses tokens, as in `decode`; default: the most probable ones.

    Returns:
        The generated texts before their ends, without the prompts; they usually begin with a space.
    """
    ends, lines = end_tokens(model), _LineBreaks(model)
    rows = model.text.prompts(prompts)

    def over(token: int) -> bool:
        return token in ends or lines(token)

    found = decode(model, rows, [new_tokens] * len(rows), choose or first_choice, over, max_tokens)
    return [text.split("\n")[0] for text in texts_of(model, rows, found)]


def continue_freely(
    model: LanguageModel,
    prompts: Sequence[str],
    total_tokens: int = TOTAL_TOKENS,
    top_k: int = TOP_K,
    seed: int = 0,
    max_tokens: int = 16384,
) -> list[str]:
    """Continue prompts by sampling from the `top_k` most probable tokens, until they have `total_tokens` tokens.

    The random numbers of a prompt depend only on the prompt and `seed`, not on the rest of the batch.

    Returns:
        The generated texts, without the prompts and special tokens.
    """
    rows = model.text.prompts(prompts)
    noise = torch.stack([_noise(prompt, seed, total_tokens, top_k) for prompt in prompts]) if rows else torch.zeros(0)

    def choose(logits: Tensor, numbers: Tensor, step: int) -> Tensor:
        best = logits.topk(min(top_k, logits.shape[1]), dim=1)
        drawn = best.values.log_softmax(1) + noise[numbers, step, : best.values.shape[1]].to(logits)  # the Gumbel trick
        return best.indices.gather(1, drawn.argmax(1, keepdim=True)).squeeze(1)

    written = model.text.encode([prompt.rstrip() for prompt in prompts])  # without the chat template
    limits = [max(0, total_tokens - len(ids)) for ids in written]
    return texts_of(model, rows, decode(model, rows, limits, choose, lambda token: False, max_tokens))


@torch.no_grad()
def decode(
    model: LanguageModel,
    rows: Sequence[Ids],
    limits: Sequence[int],
    choose: Callable[[Tensor, Tensor, int], Tensor],
    ends: Callable[[int], bool],
    max_tokens: int = 16384,
) -> list[list[int]]:
    """Generate tokens after rows, many rows at once.

    Args:
        model: the language model.
        rows: token ids, each at least one.
        limits: maximum number of new tokens of each row; the model's context limits it too.
        choose: takes logits (rows, vocabulary), the numbers of the rows (rows,) and the step, returns tokens (rows,).
        ends: whether a token ends its row.
        max_tokens: how many tokens are held at once, including room for new ones.

    Returns:
        The generated tokens of each row, with the one that ended it.
    """
    positions = model.context_length
    room = [min(limit, positions - len(row)) if positions else limit for row, limit in zip(rows, limits, strict=True)]
    found: list[list[int]] = [[] for _ in rows]

    def run(numbers: list[int]) -> None:
        for number in numbers:
            found[number] = []  # also where a pass ran out of memory
        prefixes = Prefixes.run(model, [rows[i][:-1] for i in numbers], max_tokens)
        batch = prefixes.followed_by(model, [rows[i][:-1] for i in numbers], [rows[i][-1:] for i in numbers])
        step = 0
        while numbers:
            logits = model.logits(batch, torch.arange(len(numbers), device=model.device), torch.zeros_like(batch.slots))
            chosen = choose(logits.to(model.wide_dtype), torch.tensor(numbers), step)
            going = []
            for place, (number, token) in enumerate(zip(numbers, chosen.tolist(), strict=True)):
                found[number].append(token)
                if not ends(token) and len(found[number]) < room[number]:
                    going.append(place)
            batch = _next(batch, chosen, going)
            numbers, step = [numbers[place] for place in going], step + 1

    alive = [i for i in range(len(rows)) if room[i] > 0]
    # rows of similar length together: shorter prefixes are padded
    within_memory(run, sorted(alive, key=lambda i: (len(rows[i]), i)), lambda i: len(rows[i]) + room[i], max_tokens)
    return found


def _next(batch: Padded, chosen: Tensor, going: list[int]) -> Padded:
    """Append the chosen tokens to the rows that continue; earlier tokens are in the cache, or before them."""
    rows = torch.tensor(going, dtype=torch.long, device=chosen.device)
    past = batch.past
    if past is None:
        return batch.continued(chosen, rows)
    for layer in past.layers:
        layer.length += 1
    past = PrefixCache(past.layers, torch.cat([past.mask, past.mask.new_ones(len(chosen), 1)], 1))
    if len(going) < len(chosen):
        past = past.select(rows)
    ids = chosen[rows].unsqueeze(1)
    positions = batch.positions[rows] + 1  # type: ignore[index]  # rows with a cache have them
    return Padded(ids, torch.ones_like(ids), torch.zeros_like(rows), positions, past)


def first_choice(logits: Tensor, numbers: Tensor, step: int) -> Tensor:
    """Choose the most probable token, for `decode`."""
    return logits.argmax(1)


def _noise(prompt: str, seed: int, steps: int, width: int) -> Tensor:
    """Draw the Gumbel noise (steps, width) of a prompt."""
    number = int.from_bytes(hashlib.sha256(f"{seed} {prompt}".encode()).digest()[:8], "big") >> 1
    uniform = torch.rand(steps, width, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    return -(-uniform.clamp(min=1e-12).log()).log()


def end_tokens(model: LanguageModel) -> frozenset[int]:
    """Return the tokens that end a text: the tokenizer's and those in the model's generation settings."""
    settings = getattr(model.network, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    several: Iterable[int | None] = named if isinstance(named, (list, tuple)) else [named]
    return frozenset(token for token in (model.text.tokenizer.eos_token_id, *several) if token is not None)


class _LineBreaks:
    """Knows which tokens hold a line break; each is looked up once."""

    def __init__(self, model: LanguageModel) -> None:
        self._tokenizer = model.text.tokenizer
        self._known: dict[int, bool] = {}

    def __call__(self, token: int) -> bool:
        if token not in self._known:
            self._known[token] = "\n" in self._tokenizer.decode([token])
        return self._known[token]


def texts_of(model: LanguageModel, rows: Sequence[Ids], found: Sequence[Sequence[int]]) -> list[str]:
    """Decode generated tokens as they read after their prompts: some tokenizers drop a leading space."""
    tokenizer = model.text.tokenizer
    read = partial(tokenizer.batch_decode, skip_special_tokens=True)
    wholes = read([[*row, *new] for row, new in zip(rows, found, strict=True)])
    starts, alone = read([list(row) for row in rows]), read([list(new) for new in found])
    return [
        whole[len(start) :] if whole.startswith(start) else new
        for whole, start, new in zip(wholes, starts, alone, strict=True)
    ]
