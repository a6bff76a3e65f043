"""Edits of the demo world taken back: what the model says then, how exact it is, what it costs.

`python -m benchmarks.undo`.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import harness
from lke_lightning import EditedModel, edit
from lke_lightning.data.formats import DemoWorld
from lke_lightning.edits import EditRequest
from lke_lightning.evaluation.teacher_forced import continuation_nll
from lke_lightning.model.language_model import resolve


def says(result: EditedModel, requests: Sequence[EditRequest], answers: Sequence[str]) -> Tensor:
    """Tell for each request whether the model's first choice is the answer, token by token, (requests,) bool."""
    asked = list(zip((request.text for request in requests), answers, strict=True))
    return continuation_nll(result.editor.language_model, asked)[1]


def prefers(result: EditedModel, requests: Sequence[EditRequest]) -> float:
    """Return the share of requests after which the old answer is more probable than the edit's target."""
    asked = [(request.text, answer) for request in requests for answer in (request.original, request.target)]
    nll, _ = continuation_nll(result.editor.language_model, asked)
    return (nll[::2] < nll[1::2]).double().mean().item()


def error(result: EditedModel) -> float:
    """Return the largest relative distance of a change to the solution from the keys and values that count alone."""
    largest = 0.0
    for layer, memory in result.stages.two.memory.items():
        keys, changes = (memory[name][memory["counts"]].double() for name in ("keys", "changes"))
        expected = torch.linalg.solve(memory["gram"] + keys.T @ keys, keys.T @ changes).T
        found = result.editor.language_model.weight(layer).delta
        largest = max(largest, ((found - expected).norm() / expected.norm()).item())
    return largest


def edited(dtype: str, requests: Sequence[EditRequest], batch_size: int) -> EditedModel:
    """Edit the demo model."""
    folder = resolve("demo")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    return edit(model, AutoTokenizer.from_pretrained(folder), requests, batch_size=batch_size)


def run(dtype: str, edits: int, undone: int, batch_size: int) -> dict[str, Any]:
    """Edit the demo model, undo some of the edits, redo them; and never make them, for comparison."""
    data = DemoWorld(limit=edits)
    data.setup("fit")
    requests = data.requests
    gone = random.Random(0).sample(requests, undone)
    kept = [request for request in requests if request not in gone]
    targets, originals = [request.target for request in kept], [request.original for request in gone]
    result = edited(dtype, requests, batch_size)
    deltas = copy.deepcopy([weight.delta for weight in result.editor.language_model.edited.values()])
    before = {
        "undone_said_before": _share(says(result, gone, [request.target for request in gone])),
        "kept_said_before": _share(says(result, kept, targets)),
        "error_before": error(result),
    }
    start = time.perf_counter()
    result.undo(*(request.id for request in gone))
    seconds = time.perf_counter() - start
    after = {
        "old_answer_preferred": prefers(result, gone),
        "old_answer_said": _share(says(result, gone, originals)),
        "kept_said_after": _share(says(result, kept, targets)),
        "error_after": error(result),
    }
    result.redo(*(request.id for request in gone))
    now = [weight.delta for weight in result.editor.language_model.edited.values()]
    distances = [((new - old).norm() / old.norm()).item() for new, old in zip(now, deltas, strict=True)]
    never = edited(dtype, kept, batch_size)
    return {
        **{"dtype": dtype, "edits": edits, "batch_size": batch_size, "undone": undone},
        **{"undo_seconds": round(seconds, 3), "distance_after_redo": max(distances)},
        **before,
        **after,
        "never_edited": {
            "old_answer_preferred": prefers(never, gone),
            "old_answer_said": _share(says(never, gone, originals)),
            "kept_said": _share(says(never, kept, targets)),
        },
    }


def _share(said: Tensor) -> float:
    return round(said.double().mean().item(), 4)


ARMS = (("float32", 60, 20), ("float32", 200, 20), ("float32", 200, 100), ("float64", 60, 20))


def main(batch_size: int = 20) -> None:
    """Measure undo on the demo world: dtype of the model, edits made, edits taken back.

    Args:
        batch_size: edits of one step.
    """
    harness.report("undo", {"runs": [run(*arm, batch_size) for arm in ARMS]})


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
