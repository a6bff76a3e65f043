"""Facts that are edited twice: does the latest target win? `python -m benchmarks.conflicts`."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import harness
from lke_lightning.api import edit
from lke_lightning.data.formats import DemoWorld
from lke_lightning.edits import EditRequest
from lke_lightning.evaluation.teacher_forced import continuation_nll
from lke_lightning.model.language_model import resolve


def stream(edits: int, repeats: float) -> tuple[list[EditRequest], list[tuple[EditRequest, EditRequest]]]:
    """Return edits of the demo world of which a share states a fact edited before anew; and (older, later) pairs."""
    draw = random.Random(0)
    again = round(edits * repeats)
    data = DemoWorld(limit=edits - again)
    data.setup("fit")
    first = data.requests
    pairs = []
    for older in draw.sample(first, again):
        others = {r.target for r in first if r.relation == older.relation} - {older.target, older.original}
        target = draw.choice(sorted(others))
        pairs.append((older, dataclasses.replace(older, id=f"{older.id}-again", target=target, original=older.target)))
    requests = list(first)
    for older, later in pairs:  # anywhere after the older one
        place = draw.randint(requests.index(older) + 1, len(requests))
        requests.insert(place, later)
    return requests, pairs


def run(edits: int, repeats: float, batch_size: int, retire: bool) -> dict[str, Any]:
    """Edit the demo model with the stream and ask for every fact that was edited twice."""
    folder = resolve("demo")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    requests, pairs = stream(edits, repeats)
    if not retire:  # a fact of its own for each edit: nothing is recognised as stated before
        requests = [dataclasses.replace(r, relation=f"{r.relation} {r.id}") for r in requests]
    result = edit(model, tokenizer, requests, batch_size=batch_size)
    asked = [(later.text, r.target) for older, later in pairs for r in (later, older)]
    nll, correct = continuation_nll(result.editor.language_model, asked)
    return {
        "retire": retire,
        "edits": edits,
        "edited_twice": len(pairs),
        "batch_size": batch_size,
        "latest_wins": round((nll[::2] < nll[1::2]).double().mean().item(), 4),
        "latest_is_first_choice": round(correct[::2].double().mean().item(), 4),
        "efficacy_of_all": result.after["efficacy"]["success"],
        "score": result.after["score"],
    }


def main(edits: int = 250, repeats: float = 0.2, batch_size: int = 25) -> None:
    """Measure what becomes of facts that are edited twice, with and without retiring the older edit.

    Args:
        edits: length of the stream.
        repeats: share of it that states an earlier fact anew.
        batch_size: edits of one step.
    """
    harness.report("conflicts", {"runs": [run(edits, repeats, batch_size, retire) for retire in (True, False)]})


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
