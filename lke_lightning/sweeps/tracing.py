"""Causal tracing: find the states that carry a fact by corrupting the subject and restoring one state at a time.

Meng et al., Locating and Editing Factual Associations in GPT, arXiv 2202.05262, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lke_lightning.edits import EditRequest
from lke_lightning.model.activations import change_output
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.tokens import Row

PLACES = ("subject's last token", "last token")


@dataclass(frozen=True)
class Trace:
    """The effect of restoring on one fact; probabilities of the answer's first token, averaged over noise samples."""

    clean: float
    corrupted: float
    restored: dict[str, list[float]]
    """For each of `PLACES`, the probability with that token's state of each layer restored."""


@dataclass(frozen=True)
class _Asked:
    """A fact as tokens."""

    row: Row
    start: int
    """Where the subject begins."""
    answer: int


@torch.no_grad()
def trace(
    model: LanguageModel, facts: Sequence[EditRequest], noise: float = 3.0, samples: int = 10, seed: int = 0
) -> list[Trace]:
    """Trace facts that the model knows, each with a subject and an original answer, all in one batch.

    Args:
        model: the unedited language model.
        facts: the facts; a fact's result does not depend on which others are in the batch.
        noise: standard deviation of the noise on the subject's embeddings, in units of that of all embeddings.
        samples: how many noise samples are averaged; more make the map smoother.
        seed: seed of the noise.
    """
    asked = [_encode(model, fact) for fact in facts]
    batch = model.text.pad([fact.row for fact in asked for _ in range(samples)], model.device)
    blocks = list(model.architecture.blocks)
    numbers = torch.arange(len(batch), device=model.device)
    last = batch.mask.sum(1) - 1
    answers = torch.tensor([fact.answer for fact in asked], device=model.device).repeat_interleave(samples)

    def probability(states: Tensor) -> Tensor:
        chances = model.head(states).to(model.wide_dtype).softmax(1)
        return chances.gather(1, answers.unsqueeze(1)).view(-1, samples).mean(1)

    clean = [output for _, output in model.observe(batch, blocks, stop=len(blocks))]
    embeddings = model.network.get_input_embeddings()
    shape = (*batch.ids.shape, embeddings.weight.shape[1])
    added = _noise(asked, shape, samples, seed) * noise * embeddings.weight.float().std().cpu()
    with change_output(embeddings, lambda states: states + added.to(states)):
        corrupted = [output for _, output in model.observe(batch, blocks, stop=len(blocks))]

    def run(layer: int, hidden: Tensor) -> Tensor:
        return probability(model.states(batch, numbers, last, layer + 1, hidden))

    end = len(blocks) - 1
    known, lost = run(end, clean[end]).tolist(), run(end, corrupted[end]).tolist()
    restored: dict[str, list[list[float]]] = {place: [] for place in PLACES}
    for place, position in zip(PLACES, (batch.slots, last), strict=True):
        for layer in range(len(blocks)):
            hidden = corrupted[layer].clone()
            hidden[numbers, position] = clean[layer][numbers, position]
            restored[place].append(run(layer, hidden).tolist())
    return [
        Trace(known[i], lost[i], {place: [by_layer[i] for by_layer in restored[place]] for place in PLACES})
        for i in range(len(facts))
    ]


def _encode(model: LanguageModel, fact: EditRequest) -> _Asked:
    whole, upto = fact.in_context("{}")
    before = upto[: len(upto) - len(fact.subject or "")].rstrip()
    [row] = model.text.rows([(whole, upto)])
    [(_, answer)] = model.text.continuations([(whole, fact.original or "")])
    start = model.text.rows([(whole, before)])[0].slot + 1 if before else len(model.text.prefix)
    return _Asked(row, min(start, row.slot), answer[0])


def _noise(asked: Sequence[_Asked], shape: tuple[int, ...], samples: int, seed: int) -> Tensor:
    """Draw unit noise on the subjects, (facts * samples, length, size), each fact's from a generator of its own."""
    noise = torch.zeros(shape)
    for i, fact in enumerate(asked):
        width = fact.row.slot + 1 - fact.start
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(samples, width, shape[2], generator=generator)
        noise[i * samples : (i + 1) * samples, fact.start : fact.row.slot + 1] = drawn
    return noise
