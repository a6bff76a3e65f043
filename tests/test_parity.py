"""Both stages against tensors that the published code computed, in float64.

Every folder below `../shared/parity`, or below the folder named by LKE_PARITY, is a test; its README gives the format.

A folder says which model it was made with, and can be checked for it without any code of ours: the update of the first
layer is residual x gain, and both its keys and its statistics are stored, so the residual and with it the activation
that the published code saw on the unedited model can be solved for. Where the named model does not produce that
activation at the subject's last token, its weights are not those of the recording: then the stages cannot be compared
on it (skipped, saying so), and the solvers still are, from the recorded keys.
"""

import functools
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lke_lightning.edits import EditRequest
from lke_lightning.model.language_model import LanguageModel, load
from lke_lightning.stage_one.objectives import EssenceKL, NegativeLogLikelihood, TargetNorm
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_one.stopping import LossBelow, MostProbable
from lke_lightning.stage_one.target_space import NormBall
from lke_lightning.stage_two.keys import ConsistentKeys, ContextMean, MixedKeys
from lke_lightning.stage_two.preservation import BaseStatistics, NormPenalty, NullSpace, PastEdits
from lke_lightning.stage_two.solvers import EditSystem, EqualityConstrained, LeastSquares
from lke_lightning.stage_two.statistics import StoredStatistics
from lke_lightning.stage_two.update import WeightUpdate

ROOT = Path(os.environ.get("LKE_PARITY", Path(__file__).parents[2] / "shared" / "parity"))
FOLDERS = sorted(path.parent for path in ROOT.glob("*/inputs.json"))

pytestmark = pytest.mark.skipif(not FOLDERS, reason=f"no parity folders in {ROOT}")


class Folder:
    def __init__(self, path):
        self.path = path
        self.inputs = json.loads((path / "inputs.json").read_text())
        self.expected = {name: value.double() for name, value in load_file(path / "expected.safetensors").items()}
        self.model_path = (path / self.inputs["model"]).resolve()
        self.statistics_path = (path / self.inputs["statistics"]).resolve()
        self.settings = self.inputs["hyper_parameters"]
        self.layers = self.settings["layers"]
        self.contexts = ["{}", *self.inputs["context_templates"]]
        self.is_rome = "preservation" not in self.settings and "nullspace_threshold" not in self.settings

    def requests(self, batch):
        return [EditRequest(id=str(i), **fields) for i, fields in enumerate(self.inputs["batches"][batch])]

    def statistics(self):
        return StoredStatistics(str(self.statistics_path))

    def network(self):
        return load(str(self.model_path), "float64")

    def stage_one(self):
        settings = self.settings
        stopping = [LossBelow(settings["loss_threshold"])]
        if settings.get("extra_steps") is not None:
            stopping.insert(0, MostProbable(settings["extra_steps"]))
        objectives = [
            NegativeLogLikelihood(),
            EssenceKL(settings["kl_weight"]),
            TargetNorm(settings["target_norm_weight"]),
        ]
        return TargetOptimization(
            objectives,
            stopping,
            NormBall(settings["clamp"]),
            lr=settings["lr"],
            max_steps=settings["max_steps"],
            site="matrix" if self.is_rome else "block",
            reference_quirks=True,
        )

    def solver(self):
        settings = self.settings
        if self.is_rome:
            return EqualityConstrained([BaseStatistics(1.0)])
        past = PastEdits() if settings["past_edits"] else None
        if "nullspace_threshold" in settings:
            return LeastSquares([NormPenalty(settings["l2"])], past, NullSpace(settings["nullspace_threshold"]))
        return LeastSquares([BaseStatistics(settings["preservation"]), NormPenalty(settings["norm_penalty"])], past)

    def key_policy(self):
        if not self.is_rome:
            return ContextMean()
        return MixedKeys() if self.inputs["method"] == "ROME" else ConsistentKeys()

    def deltas(self, batch):
        return {
            layer: self.expected[name]
            for layer in self.layers
            if (name := f"batch{batch}.layer{layer}.delta") in self.expected
        }


@pytest.fixture(params=FOLDERS, ids=lambda path: path.name)
def folder(request):
    return Folder(request.param)


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def recorded_activation(folder, moment):
    """Solve the first layer's recorded update for the residual; the target less it is what the model produced."""
    layer = folder.layers[0]
    keys, delta = folder.expected[f"batch0.layer{layer}.keys"], folder.expected[f"batch0.layer{layer}.delta"]
    gram = sum(term.gram(moment.double()) for term in folder.solver().preservation)
    gain = torch.linalg.solve(gram + keys.T @ keys, keys.T)
    residual = torch.linalg.lstsq(gain, delta.T).solution * len(folder.layers)
    return folder.expected["batch0.targets"] - residual


@functools.cache
def is_the_recorded_model(model_path, statistics_path):
    """Look for the recorded activations among all that plain transformers code produces at the subject's last token."""
    with_evidence = [
        folder
        for folder in map(Folder, FOLDERS)
        if (folder.model_path, folder.statistics_path) == (model_path, statistics_path)
        and "preservation" in folder.settings
    ]
    if not with_evidence:
        return True  # nothing to tell from
    folder = with_evidence[0]
    network, tokenizer = folder.network()
    moments = folder.statistics().second_moments(LanguageModel(network, tokenizer, folder.layers))
    recorded = recorded_activation(folder, moments[folder.layers[0]])
    nearest = []
    for request, activation in zip(folder.requests(0), recorded, strict=True):
        last = len(tokenizer(request.prompt.split("{}")[0] + request.subject)["input_ids"]) - 1
        with torch.no_grad():
            states = network(**tokenizer(request.text, return_tensors="pt"), output_hidden_states=True).hidden_states
        nearest.append(min(relative(state[0, last], activation) for state in states))
    return max(nearest) < 1e-3


def check_update(found, expected, batch):
    assert relative(found, expected) < (1e-5 if batch == 0 else 1e-4)


def test_solver_matches_from_recorded_keys(folder):
    """An update is R x gain; unit residuals make a solver return its gain: the recorded update must be in its span."""
    network, tokenizer = folder.network()
    moments = folder.statistics().second_moments(LanguageModel(network, tokenizer, folder.layers))
    if f"batch0.layer{folder.layers[0]}.keys" not in folder.expected:
        pytest.skip("this folder records no keys")
    solver, checked = folder.solver(), 0
    for layer in folder.layers:
        memory = solver.init(moments[layer])
        for batch in range(len(folder.inputs["batches"])):
            keys = folder.expected[f"batch{batch}.layer{layer}.keys"]
            delta = folder.deltas(batch).get(layer)
            gain, memory = solver.compute(memory, EditSystem(keys, keys, torch.eye(len(keys), dtype=torch.float64)))
            if delta is not None:
                residuals = torch.linalg.lstsq(gain.T, delta.T).solution
                assert relative(residuals.T @ gain, delta) < 1e-6
                checked += 1
    assert checked


def test_stages_match(folder):
    network, tokenizer = folder.network()
    model = LanguageModel(network, tokenizer, folder.layers)
    stage_one = folder.stage_one()
    stage_two = WeightUpdate(folder.solver(), folder.key_policy(), folder.statistics(), reference_quirks=True)
    stage_two.prepare(model)
    if not is_the_recorded_model(folder.model_path, folder.statistics_path):
        pytest.skip(f"{folder.inputs['model']} is not the model that {folder.path.name} was recorded with")
    for batch in range(len(folder.inputs["batches"])):
        targets = stage_one.optimize(model, folder.requests(batch), folder.contexts)
        tolerance = 1e-6 if batch == 0 else 1e-5
        if (expected := folder.expected.get(f"batch{batch}.targets")) is not None:
            errors = [relative(found, wanted) for found, wanted in zip(targets.vectors, expected, strict=True)]
            beyond = [i for i, error in enumerate(errors) if error >= tolerance]
            print(f"batch {batch}: requests beyond {tolerance}: {beyond}")
            assert len(beyond) <= 1
            assert max(errors) < 100 * tolerance
        before = {layer: model.weight(layer).delta.clone() for layer in folder.layers}
        systems = stage_two.apply(model, folder.requests(batch), folder.contexts, targets)
        for layer in folder.layers:
            if (expected := folder.expected.get(f"batch{batch}.layer{layer}.keys")) is not None:
                assert relative(systems[layer].keys, expected) < tolerance
        for layer, expected in folder.deltas(batch).items():
            check_update(model.weight(layer).delta - before[layer], expected, batch)
