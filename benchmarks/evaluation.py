"""Teacher-forced evaluation: our batches beside one continuation at a time: `python -m benchmarks.evaluation`."""

from __future__ import annotations

import random
from typing import Any

import torch

from benchmarks import harness, shapes
from lke_lightning.edits import EditRequest, Probe
from lke_lightning.evaluation.teacher_forced import questions, score
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.testing import tiny_tokenizer

DRAW = random.Random(0)
LEXICON = ["".join(DRAW.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(600)]
TOKENIZER = tiny_tokenizer([" ".join(LEXICON)] * 2, vocabulary=2000)
"""Knows most of these words as one token."""


def records(count: int) -> list[EditRequest]:
    """Make records as CounterFact's: 34 relations; a prompt, two paraphrases, ten neighbours of the same relation."""
    draw = random.Random(0)

    def words(least: int, most: int) -> str:
        return " ".join(draw.choice(LEXICON) for _ in range(draw.randint(least, most)))

    relations = [(words(0, 4), words(1, 4)) for _ in range(34)]
    made = []
    for number in range(count):
        before, after = draw.choice(relations)
        target, original = draw.sample(LEXICON, 2)
        paraphrases = tuple(f"{words(4, 6)} {words(2, 4)} {after}" for _ in range(2))
        neighborhood = tuple(Probe(f"{before} {words(2, 4)} {after}".strip(), original) for _ in range(10))
        prompt = f"{before} {{}} {after}".strip()
        made.append(
            EditRequest(
                str(number),
                prompt,
                target,
                words(2, 4),
                original,
                paraphrases=paraphrases,
                neighborhood=neighborhood,
            )
        )
    return made


@torch.no_grad()
def one_at_a_time(model: LanguageModel, requests: list[EditRequest]) -> list[float]:
    """Score each continuation of each prompt with a forward of its own."""
    found = []
    for request in requests:
        for kind in questions(request).values():
            for question in kind:
                for continuation in (question.wanted, question.other):
                    [(prompt, target)] = model.text.continuations([(question.prompt, continuation)])
                    logits = model.network(torch.tensor([prompt + target], device=model.device)).logits[0]
                    said = logits[len(prompt) - 1 : -1].float().log_softmax(-1)
                    found.append(-said[range(len(target)), target].mean().item())
    return found


def run(shape: str, dtype: str, count: int, sample: int, repeats: int) -> dict[str, Any]:
    """Compare both on one shape; the plain way scores only the first `sample` records."""
    model = shapes.build(shape, getattr(torch, dtype), harness.device(), TOKENIZER)
    made = records(count)
    score(model, made[:1])
    found = harness.alternate(
        {"ours": lambda: score(model, made), "plain": lambda: one_at_a_time(model, made[:sample])}, repeats
    )
    ours, plain = found["ours"], found["plain"]
    scored = torch.cat([part[:, :2].flatten() for scores in ours.value[:sample] for part in scores.values()])
    return {
        "shape": shape,
        "dtype": dtype,
        "records": count,
        "ours_records_per_second": round(count / ours.seconds, 2),
        "plain_records_per_second": round(sample / plain.seconds, 2),
        "ratio": round((count / ours.seconds) / (sample / plain.seconds), 2),
        "ours_peak_mib": round(ours.peak_mib),
        "plain_peak_mib": round(plain.peak_mib),
        "max_difference_in_nats": round((scored - torch.tensor(plain.value).double()).abs().max().item(), 6),
    }


def main(
    shapes: list[str] = ["gpt2-small", "llama-100m"],  # noqa: B006
    dtypes: list[str] = ["float32", "bfloat16"],  # noqa: B006
    records: int = 100,
    sample: int = 20,
    repeats: int = 2,
) -> None:
    """Compare evaluation with one prompt at a time.

    Args:
        shapes: names in benchmarks/shapes.py.
        dtypes: dtypes of the model.
        records: how many records are scored together.
        sample: how many of them are scored one prompt at a time.
        repeats: how often each is run; the fastest counts.
    """
    runs = [run(shape, dtype, records, sample, repeats) for shape in shapes for dtype in dtypes]
    harness.report("evaluation", {"runs": runs})


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
