"""What edits survive: half precision, weight-only quantisation, low rank. `python -m benchmarks.survival`."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import seed_everything
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import harness
from lke_lightning.api import edit
from lke_lightning.configuration import configs
from lke_lightning.data.formats import CounterFact, DemoWorld
from lke_lightning.data.stream import EditStream
from lke_lightning.editor import Editor
from lke_lightning.edits import EditRequest
from lke_lightning.evaluation.summary import summarize
from lke_lightning.evaluation.teacher_forced import score
from lke_lightning.export import changes
from lke_lightning.low_rank import approximate
from lke_lightning.model.architecture import is_transposed
from lke_lightning.model.language_model import LanguageModel, resolve
from lke_lightning.published import published

GROUP = 64
"""Entries of a row that share a scale in 4 bits."""


def rounded(weight: Tensor, bits: int, group: int | None = None) -> Tensor:
    """Round a weight (d_out, d_key) to signed integers of some bits times a scale: symmetric, largest entry exact.

    Args:
        weight: float32.
        bits: of each entry; 8 are -127 to 127.
        group: entries of a row that share a scale; `None`: the whole row.
    """
    rows, columns = weight.shape
    size = group or columns
    groups = pad(weight, (0, -columns % size)).reshape(rows, -1, size)
    largest = 2 ** (bits - 1) - 1
    scale = (groups.abs().amax(2, keepdim=True) / largest).clamp(min=torch.finfo(weight.dtype).tiny)
    return ((groups / scale).round() * scale).reshape(rows, -1)[:, :columns]


def cast(dtype: torch.dtype) -> Callable[[nn.Module, nn.Module], None]:
    """Round every parameter of the network to a dtype, and keep computing in float32."""

    def change(network: nn.Module, blocks: nn.Module) -> None:
        for weight in network.parameters():
            weight.copy_(weight.to(dtype))

    return change


def quantised(bits: int, group: int | None = None) -> Callable[[nn.Module, nn.Module], None]:
    """Round every matrix of the blocks, as weight-only quantisers do, and leave embeddings, norms and head."""

    def change(network: nn.Module, blocks: nn.Module) -> None:
        for matrix in [m for m in blocks.modules() if isinstance(m, nn.Linear) or is_transposed(m)]:
            weight = matrix.weight.T if is_transposed(matrix) else matrix.weight
            weight.copy_(rounded(weight, bits, group))

    return change


@dataclass(frozen=True)
class Rounding:
    """A way to round the weights of a network."""

    apply: Callable[[nn.Module, nn.Module], None]
    """Called with the network and its blocks."""
    beside: bool = False
    """Round the unedited weights and add the change in float32, as an adapter does."""


ROUNDING = {
    "float32": Rounding(lambda network, blocks: None),
    "bfloat16": Rounding(cast(torch.bfloat16)),
    "float16": Rounding(cast(torch.float16)),
    "8 bits, a scale per row": Rounding(quantised(8)),
    f"4 bits, a scale per {GROUP}": Rounding(quantised(4, GROUP)),
    "4 bits, the change beside them in float32": Rounding(quantised(4, GROUP), beside=True),
}


def knowledge(model: LanguageModel, requests: list[EditRequest]) -> dict[str, Any]:
    """Score facts that nobody edited: is the original still preferred to the target that was never written?"""
    asked_for_original = [replace(r, target=r.original, original=r.target) for r in requests]
    facts, neighbors = score(model, asked_for_original), score(model, requests)
    return summarize(
        {**fact, "neighborhood": near["neighborhood"]} for fact, near in zip(facts, neighbors, strict=True)
    )


@torch.no_grad()
def roundings(editor: Editor, edited: list[EditRequest], control: list[EditRequest]) -> list[dict[str, Any]]:
    """Round the edited and the unedited model in every way and score both; the editor's model stays as it is."""
    found, rows = changes(editor), []
    for name, rounding in ROUNDING.items():
        scores: dict[str, Any] = {}
        for of in ("edited model", "unedited model"):
            copied = copy.deepcopy(editor.language_model)
            weights = dict(copied.network.named_parameters())
            if of == "unedited model" or rounding.beside:
                for matrix, change in found.items():
                    weights[matrix].copy_(change.base)
            rounding.apply(copied.network, copied.architecture.blocks)
            if of == "edited model":
                if rounding.beside:
                    for matrix, change in found.items():
                        weights[matrix].add_(change.stored())
                scores["edits"] = summarize(score(copied, edited))
            scores[f"control, {of}"] = knowledge(copied, control)
        rows.append({"weights": name, **scores})
        print(name, *(f"{part} {summary['score']:.3f}" for part, summary in scores.items()), flush=True)
    return rows


@torch.no_grad()
def ranks(editor: Editor, edited: list[EditRequest], control: list[EditRequest]) -> list[dict[str, Any]]:
    """Cut the change to lower ranks and score what is left; the editor's model stays as it is."""
    found, rows = changes(editor), []
    d_out, d_key = next(iter(found.values())).total.shape
    for rank in itertools.takewhile(lambda rank: rank * (d_out + d_key) < d_out * d_key, (32, 64, 96, 128)):
        copied = copy.deepcopy(editor.language_model)
        weights, lost = dict(copied.network.named_parameters()), []
        for matrix, change in found.items():
            low = approximate(matrix, change.stored(), rank)
            weights[matrix].copy_(change.base + low.up @ low.down)
            lost.append(round(low.error, 4))
        scores = {"edits": summarize(score(copied, edited)), "control, edited model": knowledge(copied, control)}
        size = round(rank * (d_out + d_key) / (d_out * d_key), 3)
        rows.append({"weights": f"change of rank {rank}", "relative_errors": lost, "size": size, **scores})
        print(rank, lost, scores["edits"]["score"], flush=True)
    return rows


def run(name: str, pretrained: str, data: EditStream, config: str, edits: int) -> dict[str, Any]:
    """Edit a model with the first facts of the data, keep as many as control, and see what rounding leaves."""
    start = time.perf_counter()
    seed_everything(0, verbose=False)
    folder = resolve(pretrained)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        AutoTokenizer.from_pretrained(folder),
    )
    data.setup("fit")
    edited, control = data.requests[:edits], data.requests[edits : 2 * edits]
    result = edit(model, tokenizer, edited, batch_size=data.batch_size, config=config)
    return {
        "model": name,
        "data": data.name,
        "edits": len(edited),
        "control": len(control),
        "batch_size": data.batch_size,
        "rows": roundings(result.editor, edited, control) + ranks(result.editor, edited, control),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main(edits: int = 200, pretrained: str | None = None, facts: str | None = None) -> None:
    """Measure what rounding the weights and lowering the rank of their change leaves of edits and of other facts.

    Rounding is simulated: the values of the weights are rounded, the arithmetic stays in float32.

    Args:
        edits: how many facts are edited, and how many of those that follow are the control.
        pretrained: a second model beside the demo model, with the hyperparameters of tests/conf/cf-llama-9m.yaml.
        facts: a file of CounterFact records that it knows.
    """
    runs = [run("demo", "demo", DemoWorld(limit=2 * edits), str(configs() / "method" / "encore.yaml"), edits)]
    if pretrained and facts:
        data = CounterFact(facts, batch_size=50, limit=2 * edits)
        published("encore", "cf-llama-9m", output="runs/survival.yaml", table="tests/conf/cf-llama-9m.yaml")
        runs.append(run("cf-llama-9m", pretrained, data, "runs/survival.yaml", edits))
    harness.report("survival", {"arithmetic": "float32; only the values of the weights are rounded", "runs": runs})


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
