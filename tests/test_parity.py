"""Both stages against tensors that the published code computed, in float64, on a GPT-2 of 8.5M parameters.

Every folder holds the edits of a few batches, the settings, and what came out: targets, keys and updates. The README
beside the folders gives the format and the tolerances; it also allows one request of a batch to be off by a hundred
times as much, which is not used here. With `-s`, the largest errors of each folder are shown.
"""

import hashlib
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lke_lightning.edits import EditRequest
from lke_lightning.model.language_model import LanguageModel, load
from lke_lightning.stage_one.objectives import EssenceKL, NegativeLogLikelihood, TargetNorm
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_one.stopping import LossBelow, MostProbable
from lke_lightning.stage_one.target_space import NormBall
from lke_lightning.stage_two.keys import ConsistentKeys, ContextMean, MixedKeys
from lke_lightning.stage_two.preservation import BaseStatistics, NormPenalty, NullSpace, PastEdits
from lke_lightning.stage_two.register import Register
from lke_lightning.stage_two.solvers import EqualityConstrained, LeastSquares
from lke_lightning.stage_two.statistics import StoredStatistics
from lke_lightning.stage_two.update import WeightUpdate
from lke_lightning.step import EditStep

PARITY = Path(__file__).parents[2] / "shared" / "parity"
FOLDERS = ["alphaedit-gpt2", "encore-gpt2", "encore-multitoken-gpt2", "memit-gpt2", "r-rome-gpt2", "rome-gpt2"]
TOLERANCES = {"targets": (1e-6, 1e-5), "keys": (1e-6, 1e-5), "delta": (1e-5, 1e-4)}
"""Relative, in the first batch and in later ones."""

pytestmark = pytest.mark.skipif(not PARITY.is_dir(), reason=f"the recorded tensors are not here ({PARITY})")


def least_squares(settings):
    """MEMIT and ENCORE, which differ in their penalty on the norm."""
    terms = [BaseStatistics(settings["preservation"]), NormPenalty(settings["norm_penalty"])]
    return LeastSquares(terms, PastEdits() if settings["past_edits"] else None)


def null_space(settings):
    """AlphaEdit."""
    past_edits = PastEdits() if settings["past_edits"] else None
    return LeastSquares([NormPenalty(settings["l2"])], past_edits, NullSpace(settings["nullspace_threshold"]))


def equality(settings):
    """ROME and r-ROME, which differ in their keys."""
    return EqualityConstrained([BaseStatistics(1.0)])


METHODS = {
    "AlphaEdit": ("block", null_space, ContextMean),
    "ENCORE": ("block", least_squares, ContextMean),
    "MEMIT with memory": ("block", least_squares, ContextMean),
    "ROME": ("matrix", equality, MixedKeys),
    "r-ROME": ("matrix", equality, ConsistentKeys),
}
"""By the name in `inputs.json`: where the target is, the solver, the keys."""


@pytest.fixture(params=FOLDERS)
def folder(request):
    return PARITY / request.param


@pytest.fixture
def inputs(folder):
    """What was recorded, and with which model: on another one nothing could agree."""
    inputs = json.loads((folder / "inputs.json").read_text())
    weights = folder / inputs["model"] / "model.safetensors"
    if hashlib.sha256(weights.read_bytes()).hexdigest() != inputs["model_sha256"]:
        pytest.fail(f"{weights.resolve()} is not the model that {folder.name} was recorded with: model_sha256 differs")
    return inputs


def make_stage_one(inputs):
    settings = inputs["hyper_parameters"]
    extra_steps = settings.get("extra_steps")
    return TargetOptimization(
        [NegativeLogLikelihood(), EssenceKL(settings["kl_weight"]), TargetNorm(settings["target_norm_weight"])],
        [*([] if extra_steps is None else [MostProbable(extra_steps)]), LossBelow(settings["loss_threshold"])],
        NormBall(settings["clamp"]),
        lr=settings["lr"],
        max_steps=settings["max_steps"],
        site=METHODS[inputs["method"]][0],
        reference_quirks=True,
    )


def make_stage_two(inputs, folder):
    _, solver, keys = METHODS[inputs["method"]]
    statistics = StoredStatistics(str(folder / inputs["statistics"]))
    return WeightUpdate(solver(inputs["hyper_parameters"]), keys(), statistics, norm_limit=None, reference_quirks=True)


def run(inputs, folder):
    """Edit all batches; return what came out under the names of the recording."""
    network, tokenizer = load(str(folder / inputs["model"]), "float64")
    layers = inputs["hyper_parameters"]["layers"]
    model, register = LanguageModel(network, tokenizer, layers), Register()
    stage_one, stage_two = make_stage_one(inputs), make_stage_two(inputs, folder)
    stage_two.prepare(model)
    contexts, found = ["{}", *inputs["context_templates"]], {}
    for j, batch in enumerate(inputs["batches"]):
        requests = [EditRequest(id=f"{j}.{i}", **fields) for i, fields in enumerate(batch)]
        before = {layer: model.weight(layer).delta.clone() for layer in layers}
        targets = stage_one.optimize(model, requests, contexts)
        systems = stage_two.write(model, EditStep(tuple(requests), targets, contexts), register)
        found[f"batch{j}.targets"] = targets.vectors
        for layer in layers:
            found[f"batch{j}.layer{layer}.keys"] = systems[layer].keys
            found[f"batch{j}.layer{layer}.delta"] = model.weight(layer).delta - before[layer]
    return found


def relative_error(name, found, expected):
    """Of an update as a whole, in the Frobenius norm; of targets and keys, that of the worst request."""
    start = 0 if name.endswith("delta") else 1
    distance, size = (part.flatten(start).norm(dim=-1) for part in (found - expected, expected))
    return (distance / size).max().item()


def test_agrees_with_the_published_code(inputs, folder):
    recorded = load_file(folder / "expected.safetensors")
    found, beyond, largest = run(inputs, folder), {}, {}
    for name, expected in recorded.items():
        batch, kind = name.split(".")[0], name.split(".")[-1]
        error = relative_error(name, found[name], expected.double())
        if not error < TOLERANCES[kind][batch != "batch0"]:
            beyond[name] = error
        largest[kind] = max(largest.get(kind, 0), error)
    print(f"\n{folder.name}: {len(recorded)} tensors,", ", ".join(f"{k} {e:.1e}" for k, e in sorted(largest.items())))
    assert recorded
    assert not beyond
