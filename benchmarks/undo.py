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
from lke_lightning.api import EditResult, edit
from lke_lightning.data.formats import DemoWorld
from lke_lightning.edits import EditRequest
from lke_lightning.evaluation.teacher_forced import continuation_nll
from lke_lightning.model.language_model import resolve


def says(result: EditResult, requests: Sequence[EditRequest], answers: Sequence[str]) -> Tensor:
    """Tell for each request whether the model's first choice is the answer, token by token, (requests,) bool."""
    asked = list(zip((request.text for request in requests), answers, strict=True))
    return continuation_nll(result.editor.language_model, asked)[1]


def error(result: EditResult) -> float:
    """Return the largest relative distance of a change to the solution from the keys and values that count alone."""
    largest = 0.0
    for layer, memory in result.stage_two.memory.items():
        keys, changes = (memory[name][memory["counts"]].double() for name in ("keys", "changes"))
        expected = torch.linalg.solve(memory["gram"] + keys.T @ keys, keys.T @ changes).T
        found = result.editor.language_model.weight(layer).delta
        largest = max(largest, ((found - expected).norm() / expected.norm()).item())
    return largest


def run(dtype: str, edits: int, undone: int, batch_size: int) -> dict[str, Any]:
    """Edit the demo model, undo some of the edits, redo them."""
    folder = resolve("demo")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    data = DemoWorld(limit=edits)
    data.setup("fit")
    requests = data.requests
    result = edit(model, AutoTokenizer.from_pretrained(folder), requests, batch_size=batch_size)
    gone = random.Random(0).sample(requests, undone)
    kept = [request for request in requests if request not in gone]
    targets, originals = [request.target for request in kept], [request.original for request in gone]
    before = {"error": error(result), "kept_said": says(result, kept, targets).double().mean().item()}
    said = says(result, gone, [request.target for request in gone]).double().mean().item()
    deltas = copy.deepcopy([weight.delta for weight in result.editor.language_model.edited.values()])

    start = time.perf_counter()
    result.undo(*(request.id for request in gone))
    seconds = time.perf_counter() - start
    line = {
        "dtype": dtype,
        "edits": edits,
        "batch_size": batch_size,
        "undone": undone,
        "undo_seconds": round(seconds, 3),
        "undone_said_before": said,
        "undone_back_to_the_old_answer": says(result, gone, originals).double().mean().item(),
        "kept_said_before": before["kept_said"],
        "kept_said_after": says(result, kept, targets).double().mean().item(),
        "error_before": before["error"],
        "error_after": error(result),
    }
    result.redo(*(request.id for request in gone))
    now = [weight.delta for weight in result.editor.language_model.edited.values()]
    distances = [((new - old).norm() / old.norm()).item() for new, old in zip(now, deltas, strict=True)]
    return line | {"distance_after_redo": max(distances)}


def main(edits: int = 200, undone: Sequence[int] = (1, 20, 100), batch_size: int = 20) -> None:
    """Measure undo on the demo world, with the model in float32 and float64.

    Args:
        edits: how many are made.
        undone: how many of them are taken back, one run each.
        batch_size: edits of one step.
    """
    arms = [(dtype, count) for dtype in ("float32", "float64") for count in undone]
    harness.report("undo", {"runs": [run(dtype, edits, count, batch_size) for dtype, count in arms]})


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
