"""Stage one: our engine beside the published algorithm as published, on the same requests.

`python -m benchmarks.stage_one` on a CPU; on a GPU add `--shapes '[llama3-8b]' --dtypes '[bfloat16]' --requests 100`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cosine_similarity
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import harness, shapes
from lke_lightning.model.activations import change_output
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.stage_one.objectives import EssenceKL, NegativeLogLikelihood, TargetNorm
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_one.rows import RequestRows
from lke_lightning.stage_one.stopping import LossBelow, StopRule
from lke_lightning.stage_one.target_space import NormBall

LR, CLAMP, KL, DECAY = 0.5, 4.0, 0.0625, 0.5

EARLY = {"gpt2-small": 10.6, "llama-100m": 10.0, "gpt2-xl": 10.6, "llama3-8b": 11.4}
"""Losses at which requests to these random weights stop after 8 or 9 steps on average, and spread over all counts."""


def as_published(
    model: LanguageModel, built: Sequence[RequestRows], steps: int, below: float
) -> tuple[torch.Tensor, list[int]]:
    """Optimise one request at a time: all layers and all positions at every step, logits of all positions twice."""
    network, block = model.network, model.architecture.blocks[model.target_layer]
    head = network.get_output_embeddings()
    vectors, counts = [], []
    for request in built:
        rows = [*request.contexts, request.essence]
        count = len(request.contexts)
        batch = model.text.pad(rows, model.device)
        everyone, last = torch.arange(len(rows), device=model.device), batch.mask.sum(1) - 1
        labels = torch.full_like(batch.ids[:count], -100)
        labels[everyone[:count], last[:count]] = request.targets[0][0]
        delta = torch.zeros(model.architecture.hidden_size, device=model.device, requires_grad=True)
        optimizer = torch.optim.Adam([delta], lr=LR)
        initial = before = None

        def add(output: torch.Tensor, batch: Any = batch, delta: torch.Tensor = delta) -> torch.Tensor:
            nonlocal initial
            hidden = output.clone()
            slots = (torch.arange(len(hidden), device=hidden.device), batch.slots)
            initial = hidden[0, batch.slots[0]].detach().float() if initial is None else initial
            hidden[slots] = hidden[slots] + delta.to(hidden.dtype)
            return hidden

        for step in range(1, steps + 1):
            with change_output(block, add):
                output = network(
                    input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, output_hidden_states=True
                )
            essence = output.logits[count, request.essence_read].float().log_softmax(-1)
            before = essence.detach() if before is None else before
            said = head(output.hidden_states[-1][:count]).float().log_softmax(-1)
            found = said.gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2) * (labels >= 0)
            kl = (essence.exp() * (essence - before)).sum()
            loss = -found.sum(1).mean() + KL * kl + DECAY * delta.norm() / initial.norm() ** 2
            if loss.item() < below or step == steps:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                limit = CLAMP * initial.norm()
                if delta.norm() > limit:
                    delta *= limit / delta.norm()
        vectors.append((initial + delta).detach())
        counts.append(step)
    return torch.stack(vectors), counts


def floor(model: LanguageModel, built: Sequence[RequestRows], counts: Sequence[int]) -> float:
    """Count what the mathematics demands of the matrices, in FLOP: only what depends on delta, each thing once."""
    block = sum(weight.numel() for weight in model.architecture.blocks[0].parameters() if weight.dim() == 2)
    above = len(model.architecture.blocks) - 1 - model.target_layer
    head = model.network.get_output_embeddings().weight.numel()
    every_row = [row for request in built for row in [*request.contexts, request.essence]]
    before_slots = len({row.ids[:end] for row in every_row for end in range(1, row.slot + 1)})
    from_slots = sum(len(row.ids) - row.slot for row in every_row)
    total = (before_slots + from_slots) * block * (model.target_layer + 1) + before_slots * block * above
    for request, steps in zip(built, counts, strict=True):
        rows = [*request.contexts, request.essence]
        each = sum(len(row.ids) - row.slot for row in rows) * block * above + len(rows) * head
        total += (2 * steps - 1) * each  # the last step has no backward
    return 2 * total


def run(shape: str, dtype: str, count: int, steps: int, repeats: int, early: bool, sample: int) -> dict[str, Any]:
    """Compare both on one shape; the published algorithm works on the first `sample` requests only."""
    kind, device, below = getattr(torch, dtype), harness.device(), EARLY[shape] if early else 0.0
    sample = count if early else min(sample, count)  # step counts differ between requests
    model = shapes.build(shape, kind, device)
    built = shapes.requests(count, model.network.config.vocab_size)
    rules: list[StopRule] = [LossBelow(below)] if early else []
    stage = TargetOptimization(
        [NegativeLogLikelihood(), EssenceKL(KL), TargetNorm(DECAY)], rules, NormBall(CLAMP), lr=LR, max_steps=steps
    )
    stage.descend(model, built[:2])
    as_published(model, built[:2], 2, below)
    found = harness.alternate(
        {
            "ours": lambda: stage.descend(model, built),
            "published": lambda: as_published(model, built[:sample], steps, below),
        },
        repeats,
    )
    ours, published = found["ours"], found["published"]
    with FlopCounterMode(display=False) as counter:
        stage.descend(model, built)
    expected, counts = published.value
    start = stage_start(model, built[:sample])
    delta, expected = ours.value.vectors[:sample] - start, expected - start
    moved = (delta.norm(dim=1) > 0) | (expected.norm(dim=1) > 0)  # not those that stop at their first step
    cosine = cosine_similarity(delta[moved], expected[moved])
    rate = harness.matmul_rate(kind)
    return {
        "shape": shape,
        "dtype": dtype,
        "requests": count,
        "max_steps": steps,
        "early_stop": early,
        "mean_steps": sum(ours.value.steps) / count,
        "ours_seconds_per_edit": round(ours.seconds / count, 4),
        "published_seconds_per_edit": round(published.seconds / sample, 4),
        "ratio": round(published.seconds / sample / (ours.seconds / count), 2),
        "ours_peak_mib": round(ours.peak_mib),
        "published_peak_mib": round(published.peak_mib),
        "ours_gflop_per_edit": round(counter.get_total_flops() / count / 1e9, 2),
        "floor_gflop_per_edit": round(floor(model, built, ours.value.steps) / count / 1e9, 2),
        "ours_gflop_per_second": round(counter.get_total_flops() / ours.seconds / 1e9, 1),
        "matmul_gflop_per_second": round(rate / 1e9, 1),
        "min_cosine_of_delta": round(cosine.min().item(), 6),
        "equal_steps": ours.value.steps[:sample] == counts,
    }


def stage_start(model: LanguageModel, built: Sequence[RequestRows]) -> torch.Tensor:
    """Return the unchanged activations: a descent of one step has not moved yet."""
    return TargetOptimization(stopping=[], max_steps=1).descend(model, built).vectors


def main(
    shapes: list[str] = ["gpt2-small", "llama-100m"],  # noqa: B006
    dtypes: list[str] = ["float32", "bfloat16"],  # noqa: B006
    requests: int = 32,
    steps: int = 20,
    sample: int = 16,
    repeats: int = 1,
) -> None:
    """Compare stage one with the published algorithm.

    Args:
        shapes: names in benchmarks/shapes.py.
        dtypes: dtypes of the model.
        requests: size of the edit batch.
        steps: steps at most.
        sample: how many of the requests the published algorithm is run on where all take as many steps.
        repeats: how often each is run; the fastest counts.
    """
    runs = [
        run(shape, dtype, requests, steps, repeats, early, sample)
        for shape in shapes
        for dtype in dtypes
        for early in (False, True)
    ]
    harness.report("stage_one", {"runs": runs})


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
