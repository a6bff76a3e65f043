"""The norm anchor against plain formulas, and that it is found once, on the unedited model."""

import pytest
import torch

from lke_lightning import edit, resume
from lke_lightning.edits import SLOT, EditBatch, EditError
from lke_lightning.ledger import Ledger
from lke_lightning.model.language_model import load
from lke_lightning.stage_one.contexts import ContextTemplates
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_one.stopping import MostProbable
from lke_lightning.stage_one.transforms import NormAnchor
from lke_lightning.stage_two.preservation import BaseStatistics, PastEdits
from lke_lightning.stage_two.solvers import LeastSquares
from lke_lightning.stage_two.statistics import KeyStatistics
from lke_lightning.stage_two.update import WeightUpdate
from lke_lightning.testing.conformance import plain, tapped
from tests.stage_one.test_optimization import CONTEXTS, REQUESTS, make_model

pytestmark = pytest.mark.filterwarnings("ignore:the norm anchor is a mean of", "ignore:edit .* is left out")
SITES = {"gpt2": "block", "gemma2": "matrix"}


def make_stage(transform, site=None):
    stage = TargetOptimization(stopping=[MostProbable(1)], lr=0.3, max_steps=4, site=site, transform=transform)
    stage.contexts = CONTEXTS
    return stage


def edited(model):
    """Change the weights of a model as edits do."""
    for layer in model.layers:
        delta = model.weight(layer).delta
        model.weight(layer).add(0.3 * torch.randn(delta.shape, dtype=delta.dtype, generator=torch.manual_seed(layer)))
    return model


def asked(model, site):
    """Return delta, h0 and v0 of each request, found alone, by a plain forward of the bare prompt."""
    stage, found = make_stage(None, site), []
    stage.share_targets = None
    for request in REQUESTS:
        [row] = model.text.rows([request.in_context(SLOT)])
        block, matrix = model.architecture.blocks[model.target_layer], model.architecture.matrix(model.target_layer)
        with tapped(block) as at_block, tapped(matrix) as at_matrix, torch.no_grad():
            plain(model, row.ids)
        output = at_matrix["output"][row.slot]
        initial = at_block["output"][row.slot] if site == "block" else output
        found.append((stage.optimize(model, [request], CONTEXTS).vectors[0] - initial, initial, output))
    return found


@pytest.mark.parametrize("family", SITES)
def test_what_is_asked_of_the_matrix_has_the_norm_of_the_anchor(family):
    """The anchor a: trimmed mean of |v0 + delta|, unedited. The target: h0 - v0 + (v0 + delta) a/|v0 + delta|, now."""
    model, site = make_model(family), SITES[family]
    assert model.site == site
    norms = sorted((output + change).norm().item() for change, _, output in asked(model, site))
    anchor = sum(norms[:-1]) / len(norms[:-1])
    here, kept = asked(edited(model), site), []
    norms = sorted((output + change).norm().item() for change, _, output in here)
    gate = max(1.0, (norms[2] + norms[3]) / 2 / anchor)  # lets three of five pass
    stage = make_stage(NormAnchor(drop=0.2, gate=gate))
    stage.prepare(model, REQUESTS)  # a model that has been edited by now
    assert stage.memory["anchor"].item() == pytest.approx(anchor, rel=1e-6)  # Gemma's norms are in float32
    step = stage.aim(model, EditBatch(tuple(REQUESTS)))
    for request, (change, initial, output) in zip(REQUESTS, here, strict=True):
        value = output + change
        if value.norm() <= gate * anchor:
            kept.append((request, initial - output + value * anchor / value.norm(), output))
    assert 0 < len(kept) < len(REQUESTS), "the gate lets all or nothing through"
    assert list(step.requests) == [request for request, _, _ in kept]
    for i, (_, target, output) in enumerate(kept):
        assert (step.targets.vectors[i] - target).norm() < 1e-6 * target.norm()
        initial = here[REQUESTS.index(kept[i][0])][1]
        assert (target - initial + output).norm().item() == pytest.approx(anchor, rel=1e-6)
        assert step.targets.distances[i] == pytest.approx((target - initial).norm().item(), rel=1e-5)
    assert [request for request, _ in step.left_out] == [r for r in REQUESTS if r not in step.requests]
    assert all("times the anchor" in reason for _, reason in step.left_out)


def test_an_anchor_that_is_given_or_remembered_is_not_found_again():
    model = make_model("llama")
    first, second = make_stage(NormAnchor(norm=3.0)), make_stage(NormAnchor(sample=2))
    first.optimize = None  # would fail
    first.prepare(model, REQUESTS)
    second.prepare(model, REQUESTS)
    anchor = second.memory["anchor"]
    assert first.memory["anchor"].item() == 3.0
    later = make_stage(NormAnchor(sample=5))
    later.load_state_dict(second.state_dict())
    later.optimize = None
    later.prepare(edited(model), REQUESTS[2:])
    assert torch.equal(later.memory["anchor"], anchor)


def test_an_anchor_behind_a_norm_and_one_of_few_edits():
    with pytest.raises(EditError, match=r"behind this model's stands a norm: set stage_one\.site to matrix"):
        make_stage(NormAnchor(), site="block").prepare(make_model("gemma2"), REQUESTS)
    with pytest.warns(UserWarning, match="a mean of 5 edits only"):
        make_stage(NormAnchor()).prepare(make_model("llama"), REQUESTS)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"norm": 0.0}, "norm is 0.0.*above 0"), ({"sample": 0}, "sample is 0.*at least 1"),
     ({"gate": 0.5}, "gate is 0.5.*at least 1"), ({"drop": 1.0}, "drop is 1.0.*below 1")],
)  # fmt: skip
def test_hyperparameters_that_cannot_be_are_refused(options, says):
    with pytest.raises(EditError, match=f"NormAnchor.{says}"):
        NormAnchor(**options)


def test_edits_keep_to_one_anchor_wherever_they_go_on_and_drops_are_in_the_ledger(small_world, tmp_path):
    facts = [
        {"id": name, "prompt": f"{name} was born in the", "subject": name, "target": "guitar"}
        for name in ("Ana", "Bob", "Cyd", "Dan", "Eve")
    ]
    statistics = KeyStatistics(str(small_world / "text.txt"), tokens=2000, cache_dir=str(small_world / "cache"))

    def stages():
        contexts = ContextTemplates(templates=[])
        solver = LeastSquares([BaseStatistics(0.1)], PastEdits())
        return (
            TargetOptimization(contexts=contexts, max_steps=4, transform=NormAnchor(sample=2, gate=1.02)),
            WeightUpdate(solver, statistics=statistics, norm_limit=None),
        )

    stayed = edit(*load(str(small_world / "model")), facts[:2], [0, 1], *stages())
    anchor = stayed.stages.one.memory["anchor"].clone()
    stayed.save(tmp_path / "run")
    stayed.edit(facts[2:])
    away = resume(tmp_path / "run", *stages()).edit(facts[2:])
    assert anchor == stayed.stages.one.memory["anchor"] == away.stages.one.memory["anchor"]
    one, other = (model.editor.language_model.weight(1).delta for model in (stayed, away))
    assert torch.equal(one, other)
    away.save(tmp_path / "run")
    events = list(Ledger(tmp_path / "run").read())
    dropped = [entry for entry in events if entry["event"] == "left_out"]
    assert dropped
    assert all("times the anchor" in entry["reason"] for entry in dropped)
    assert sum(entry["left_out"] for entry in events if entry["event"] == "batch") == len(dropped)
    assert sorted([*away.edited, *(entry["id"] for entry in dropped)]) == [fact["id"] for fact in facts]
