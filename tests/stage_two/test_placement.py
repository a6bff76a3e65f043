"""Where batches are written, against editing by hand and by brute force; what a dry run leaves behind: nothing."""

import pytest
import torch

from lke_lightning.edits import EditBatch, EditError
from lke_lightning.stage_one.contexts import ContextTemplates
from lke_lightning.stage_one.gradients import OutputGradients
from lke_lightning.stage_one.objectives import NegativeLogLikelihood
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_one.target_space import NoiseTrigger, NormBall, OrthogonalTo
from lke_lightning.stage_one.transforms import NormAnchor
from lke_lightning.stage_two.arrival import arrival
from lke_lightning.stage_two.keys import MixedKeys
from lke_lightning.stage_two.placement import AllLayers, BoundaryLayers, LayerPolicy, LeastChange, MiddleLayer
from lke_lightning.stage_two.preservation import BaseStatistics, NormPenalty, PastEdits
from lke_lightning.stage_two.register import Register
from lke_lightning.stage_two.solvers import EditSystem, EqualityConstrained, LeastSquares
from lke_lightning.stage_two.update import WeightUpdate
from lke_lightning.stages import Stages
from lke_lightning.step import EditStep
from tests.stage_two.test_undo import PRESERVATION, Graded, from_scratch, relative, request, targets
from tests.stage_two.test_update import make_model


class Alternate(LayerPolicy):
    """One request below, the next one above; a request that is alone above."""

    def choose(self, layers, requests, dry_run):
        return [[(layers[(i + 1) % 2 if requests > 1 else 1],) for i in range(requests)]]


class Twice(LayerPolicy):
    def choose(self, layers, requests, dry_run):
        return [[tuple(layers)] * requests, [tuple(layers[-1:])] * requests]


def make_stages(placement=None, solver=None, keys=None, site="block", max_steps=4, **options):
    contexts, space = ContextTemplates(templates=[]), NormBall(2.0)
    one = TargetOptimization([NegativeLogLikelihood()], [], space, contexts, 0.5, max_steps=max_steps, site=site)
    solver = solver or LeastSquares(PRESERVATION, PastEdits())
    two = WeightUpdate(solver, keys, Graded(), placement, norm_limit=options.pop("norm_limit", None), **options)
    return Stages(one, two)


def edited(stages, batches, layers=(0, 2), model=None):
    """Edit a tiny float64 model, batch by batch."""
    model, register = model or make_model(layers=layers), Register()
    stages.prepare(model, batches[0])
    steps = [stages.edit(model, EditBatch(batch), register) for batch in batches]
    return model, register, steps


def rome(placement=None):
    return make_stages(placement, EqualityConstrained([BaseStatistics(1.0)]), MixedKeys(), "matrix")


def test_which_of_the_configured_layers_are_edited():
    configured = [4, 5, 6, 7, 8]
    for policy, used in ((AllLayers(), configured), (LeastChange(), configured), (MiddleLayer(), [6]),
                         (BoundaryLayers(), [4, 8])):  # fmt: skip
        assert policy.among(configured) == used
        assert policy.among(used) == used
    assert [MiddleLayer().among(layers) for layers in ([3], [0, 1], [0, 1, 2, 3])] == [[3], [1], [2]]
    assert BoundaryLayers().among([3]) == [3]


def test_boundary_layers_are_two_edits_of_one_layer_each():
    """By hand: one layer alone, in full, then the other one, with targets found on what the first edit left."""
    batch = [request(0), request(1)]
    model, register, [step] = edited(make_stages(BoundaryLayers()), [batch], layers=(0, 1, 2))
    assert register.ids == ["0", "1"]
    assert step.targets.layers == [(2,), (2,)]
    assert not model.weight(1).delta.any()
    by_hand = make_model(layers=(0,))
    edited(make_stages(), [batch], model=by_hand)
    assert torch.equal(model.weight(0).delta, by_hand.weight(0).delta)
    above = type(by_hand)(by_hand.network, by_hand.text.tokenizer, [2])
    _, _, [last] = edited(make_stages(), [batch], model=above)
    assert torch.equal(model.weight(2).delta, above.weight(2).delta)
    assert arrival(model, step) == arrival(above, last)


def test_a_request_goes_where_it_changes_the_weight_least():
    """By brute force: each request really edited in each layer of a fresh model."""
    batch, found = [request(0), request(2, "Bob Smith")], {}
    for layer in (0, 1, 2):
        for one in batch:
            model, _, _ = edited(rome(), [[one]], layers=(layer,))
            weight = model.weight(layer)
            found[one.id, layer] = (weight.delta.norm() / weight.base.norm()).item()
    best = [min((0, 1, 2), key=lambda layer, one=one: found[one.id, layer]) for one in batch]
    assert len(set(best)) > 1, "the layers are not told apart"
    model, _, [step] = edited(rome(LeastChange()), [batch], layers=(0, 1, 2))
    where = dict(zip([one.id for one in step.requests], step.targets.layers, strict=True))
    assert [where[one.id] for one in batch] == [(layer,) for layer in best]
    alone, _, _ = edited(rome(LeastChange()), [batch[:1]], layers=(0, 1, 2))
    weights = {layer: alone.weight(layer) for layer in (0, 1, 2)}
    changed = {layer: (weight.delta.norm() / weight.base.norm()).item() for layer, weight in weights.items()}
    assert changed == pytest.approx({layer: found["0", layer] if layer == best[0] else 0.0 for layer in (0, 1, 2)})


@pytest.mark.parametrize("solver", [LeastSquares(PRESERVATION, PastEdits()), EqualityConstrained(PRESERVATION)])
def test_a_dry_run_leaves_no_trace(solver):
    stages = make_stages(LeastChange(), solver)
    model, register, _ = edited(stages, [[request(0), request(1)]])

    def everything():
        memory = {f"{i}.{name}": part for i, parts in stages.two.memory.items() for name, part in parts.items()}
        weights = {name: part for name, part in model.state_dict().items()}
        return {**memory, **weights, **stages.one.memory, "random": torch.get_rng_state()}, register.state_dict()

    tensors, edits = everything()
    before = {name: part.clone() for name, part in tensors.items()}
    stages._passes(model, [request(2), request(3)])
    after, edits_after = everything()
    assert edits_after == edits
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], part) for name, part in before.items())


def test_edits_in_different_layers_are_undone_exactly():
    """A memory has a row for each edit in every layer; in a layer that is left out it asks nothing."""
    stages = make_stages(Alternate())
    model, register, steps = edited(stages, [[request(i) for i in range(3)], [request(3)], [request(4), request(5)]])
    assert [layers for step in steps for layers in step.targets.layers] == [(2,), (0,), (2,), (2,), (2,), (0,)]
    assert register.ids == ["0", "1", "2", "3", "4", "5"]
    rows = {layer: stages.two.memory[layer]["keys"].any(1).tolist() for layer in (0, 2)}
    assert rows == {0: [False, True, False, False, False, True], 2: [True, False, True, True, True, False]}
    assert [sorted(step.shares) for step in steps] == [[0, 2], [2], [0, 2]]
    for gone, kept in ((["1", "2"], {"0", "3", "4", "5"}), (["4", "3"], {"0", "5"})):
        stages.two.undo(model, register, gone)
        for layer in (0, 2):
            expected = from_scratch(stages.two, register, layer, model, kept)
            assert relative(model.weight(layer).delta + 1, expected + 1) < 1e-8
    stages.two.undo(model, register, ["0", "5"])
    assert not any(model.weight(layer).delta.any() for layer in (0, 2))


def test_a_row_that_asks_nothing_is_as_if_it_were_not_there():
    draw = torch.Generator().manual_seed(0)
    keys, anchors, residuals = (torch.randn(3, size, generator=draw, dtype=torch.float64) for size in (8, 8, 5))
    system = EditSystem(keys, anchors, residuals, residuals, torch.ones(3, dtype=torch.float64))
    solver = LeastSquares(PRESERVATION, PastEdits())
    systems = (system, system.among([4, 0, 2], 6))
    (alone, one), (whole, other) = (solver.compute(solver.init(torch.eye(8)), part) for part in systems)
    torch.testing.assert_close(whole, alone, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(other["inverse"], one["inverse"], rtol=1e-12, atol=1e-14)
    assert torch.equal(other["keys"][[4, 0, 2]], keys)
    assert not other["keys"][[1, 3, 5]].any()


def test_a_batch_whose_second_pass_is_refused_is_taken_back_whole():
    model = make_model(layers=(0, 2))
    weight = model.weight(2)
    weight.base.mul_(1e-4)
    weight.refresh()
    stages, register = make_stages(BoundaryLayers(), norm_limit=3.0), Register()
    stages.prepare(model, [request(0)])
    memory = stages.two.memory[0]["inverse"].clone()
    step = stages.edit(model, EditBatch([request(0)]), register)
    assert "layer 2" in step.taken_back
    assert (len(step), len(register)) == (0, 0)
    assert not any(model.weight(layer).delta.any() for layer in (0, 2))
    torch.testing.assert_close(stages.two.memory[0]["inverse"], memory, rtol=1e-9, atol=1e-12)


def test_a_policy_that_writes_a_layer_twice_is_refused():
    with pytest.raises(EditError, match="Twice writes a layer twice"):
        edited(make_stages(Twice()), [[request(0)]])


def test_spread_direct_asks_each_layer_for_all_that_is_missing():
    """With a penalty that lets almost nothing through, all layers are asked for nearly the same."""
    model = make_model(layers=(0, 2))
    stage = make_stages(spread="direct", solver=LeastSquares([NormPenalty(1e12)])).two
    stage.prepare(model)
    systems = stage.write(model, EditStep((request(0),), targets(1, 0), ["{}"]), Register())
    torch.testing.assert_close(systems[0].residuals, systems[2].residuals, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "one",
    [
        TargetOptimization(transform=NormAnchor()),
        TargetOptimization(space=OrthogonalTo(trigger=NoiseTrigger())),
        OutputGradients(),
    ],
    ids=["an anchor", "a trigger", "gradients"],
)
def test_what_is_known_of_the_last_layer_alone_cannot_be_asked_of_others(one):
    with pytest.raises(EditError, match=r"stage_two.placement needs targets at any layer"):
        Stages(one, WeightUpdate(placement=BoundaryLayers()))
