"""Keys, residuals and the layer loop against plain forwards."""

from dataclasses import replace

import pytest
import torch

from lke_lightning.edits import EditRequest
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.reading import SlotReader
from lke_lightning.model.targets import Targets
from lke_lightning.stage_two.keys import ConsistentKeys, ContextMean, MixedKeys
from lke_lightning.stage_two.preservation import BaseStatistics, NormPenalty, PastEdits
from lke_lightning.stage_two.register import Register
from lke_lightning.stage_two.solvers import LeastSquares
from lke_lightning.stage_two.statistics import Statistics
from lke_lightning.stage_two.transforms import TopRelativeChange
from lke_lightning.stage_two.update import WeightUpdate
from lke_lightning.step import EditStep
from lke_lightning.testing import tiny_network, tiny_tokenizer

CONTEXTS = ["{}", "The river is. {}", "Because it was. {}"]
REQUESTS = [
    EditRequest(id="0", prompt="The mother tongue of {} is", subject="Bob Smith", target="guitar"),
    EditRequest(id="1", prompt="{} plays", subject="Ana", target="piano"),
]

EXACT, SINGLE = {"rtol": 1e-6, "atol": 1e-8}, {"rtol": 1e-5, "atol": 1e-6}
TOLERANCE = {"gpt2": EXACT, "llama": EXACT, "gptj": SINGLE}
"""GPT-J attends in float32 whatever its dtype."""


class Unit(Statistics):
    def second_moments(self, model):
        return {layer: torch.eye(model.weight(layer).delta.shape[1]) for layer in model.layers}


def make_model(family="gpt2", layers=(0, 1, 2)):
    return LanguageModel(tiny_network(family), tiny_tokenizer(), list(layers))


def plain_states(model, request, template):
    """Matrix inputs by layer and block outputs by layer at the slot, from one ordinary forward."""
    [row] = model.text.rows([request.in_context(template)])
    batch = model.text.pad([row])
    blocks = model.architecture.blocks
    matrices = [model.architecture.matrix(i) for i in range(len(blocks))]
    seen = model.observe(batch, [*matrices, *blocks], stop=len(blocks))
    at_slot = [(given[0, row.slot], got[0, row.slot]) for given, got in seen]
    return [given for given, _ in at_slot[: len(blocks)]], [got for _, got in at_slot[len(blocks) :]]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj"])
@pytest.mark.parametrize("policy", [ContextMean(), MixedKeys(), ConsistentKeys()])
def test_reader_agrees_with_plain_forwards_also_after_a_write(family, policy):
    model = make_model(family)
    reader = SlotReader(model, REQUESTS, CONTEXTS)
    weights = policy.key_weights(3, reference_quirks=True)
    for layer in model.layers:
        [keys] = reader.keys(layer, [weights])
        outputs = reader.outputs("block", policy.anchor_weights(3))
        for i, request in enumerate(REQUESTS):
            states = [plain_states(model, request, template) for template in CONTEXTS]
            expected = sum(w * keys_[layer] for w, (keys_, _) in zip(weights, states, strict=True))
            torch.testing.assert_close(keys[i], expected, **TOLERANCE[family])
            now = sum(w * blocks[2] for w, (_, blocks) in zip(policy.anchor_weights(3), states, strict=True))
            torch.testing.assert_close(outputs[i], now, **TOLERANCE[family])
        model.weight(layer).add(torch.full_like(model.weight(layer).delta, 0.01))


def test_quirks_weigh_the_bare_prompt_one_half():
    assert ContextMean().key_weights(6, True).tolist() == pytest.approx([0.5] + [0.1] * 5)
    assert ContextMean().key_weights(6, False).tolist() == pytest.approx([1 / 6] * 6)
    assert ContextMean().key_weights(1, True).tolist() == [1.0]


def test_all_that_is_missing_is_written_when_one_layer_may():
    """One layer, one context, no penalty worth the name: afterwards the model produces the targets."""
    model = make_model(layers=(1,))
    stage = WeightUpdate(LeastSquares([NormPenalty(1e-9)], PastEdits()), statistics=Unit())
    stage.prepare(model)
    reader = SlotReader(model, REQUESTS, ["{}"])
    reader.keys(1, [torch.ones(1)])
    wanted = reader.outputs("block", torch.ones(1)) + torch.randn(2, 32, dtype=torch.float64)
    write(stage, model, replace(some_targets(0), vectors=wanted), contexts=["{}"])
    after = SlotReader(model, REQUESTS, ["{}"])
    after.keys(1, [torch.ones(1)])
    torch.testing.assert_close(after.outputs("block", torch.ones(1)), wanted, rtol=1e-6, atol=1e-6)


def test_residuals_are_spread_evenly_over_what_is_left():
    model = make_model()
    stage = WeightUpdate(LeastSquares([NormPenalty(1e12)]), statistics=Unit())  # nothing is written
    stage.prepare(model)
    targets = some_targets(0)
    systems = write(stage, model, targets, contexts=CONTEXTS)
    first, second, third = (systems[layer].residuals for layer in model.layers)
    torch.testing.assert_close(first * 3, third, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(second * 2, third, rtol=1e-6, atol=1e-8)


def test_a_root_spread_asks_more_of_early_layers():
    model = make_model()
    stage = WeightUpdate(LeastSquares([NormPenalty(1e12)]), statistics=Unit(), spread="root")
    stage.prepare(model)
    targets = some_targets(0)
    systems = write(stage, model, targets, contexts=CONTEXTS)
    first, _, third = (systems[layer].residuals for layer in model.layers)
    torch.testing.assert_close(first * 3**0.5, third, rtol=1e-6, atol=1e-8)


def write(stage, model, targets, contexts=CONTEXTS, register=None):
    step = EditStep(tuple(REQUESTS), targets, contexts)
    return stage.write(model, step, Register() if register is None else register)


def some_targets(seed):
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Targets(vectors, [1, 1], [0.0, 0.0], [0.0, 0.0], ["", ""], "block", [0, 1], [1.0, 1.0], [True, True])


@pytest.mark.parametrize("on_host", [False, True])
def test_a_later_edit_of_a_fact_replaces_the_older_one(on_host):
    """One layer and fixed keys: the weights are those of a run that only ever saw the later edit."""

    def stage():
        return WeightUpdate(LeastSquares([NormPenalty(0.1)], PastEdits()), statistics=Unit(), keep_on_host=on_host)

    model, twice = make_model(layers=(0,)), stage()
    twice.prepare(model)
    register = Register()
    write(twice, model, some_targets(1), ["{}"], register)
    write(twice, model, some_targets(2), ["{}"], register)
    assert [count.item() for count in twice.memory[0]["counts"]] == [0, 0, 1, 1]
    other, once = make_model(layers=(0,)), stage()
    once.prepare(other)
    write(once, other, some_targets(2), contexts=["{}"])
    torch.testing.assert_close(model.weight(0).delta, other.weight(0).delta, rtol=1e-7, atol=1e-10)


def test_keys_read_again_after_the_batch_are_those_that_were_used():
    model = make_model()
    stage = WeightUpdate(LeastSquares([NormPenalty(1e-3)], PastEdits()), statistics=Unit())
    stage.prepare(model)
    used = write(stage, model, some_targets(1), contexts=CONTEXTS)
    reader = SlotReader(model, REQUESTS, CONTEXTS)
    for layer in model.layers:
        assert model.weight(layer).delta.norm() > 1e-3
        [keys] = reader.keys(layer, [ContextMean().key_weights(3, False)])
        torch.testing.assert_close(keys, used[layer].keys, rtol=1e-9, atol=1e-12)


def test_a_transform_acts_before_writing_and_a_readout_only_while_reading():
    model = make_model(layers=(0,))
    stage = WeightUpdate(LeastSquares([NormPenalty(0.1)]), statistics=Unit(), transform=TopRelativeChange(0.25))
    stage.prepare(model)
    write(stage, model, some_targets(1), contexts=["{}"])
    delta = model.weight(0).delta
    assert (delta != 0).sum() == delta.numel() // 4
    live, kept = model.weight(0).matrix.weight.clone(), delta.clone()
    with model.weight(0).read_as(lambda base, change: change / 2):
        torch.testing.assert_close(model.weight(0).matrix.weight, (model.weight(0).base + kept.T / 2))
    assert torch.equal(model.weight(0).matrix.weight, live)
    assert torch.equal(model.weight(0).delta, kept)


def prepared(solver, layers=(1,), requests=REQUESTS, **options):
    model, stage = make_model(layers=layers), WeightUpdate(solver, statistics=Unit(), **options)
    stage.prepare(model, requests, CONTEXTS)
    return model, stage


def test_a_step_knows_the_fulfilment_of_its_edits_before_it_is_written():
    model, stage = prepared(LeastSquares([BaseStatistics(fulfilment=0.75)], PastEdits()), layers=(0, 1))
    steps = [EditStep(tuple(REQUESTS), some_targets(seed), CONTEXTS) for seed in (1, 2)]
    systems = [stage.write(model, step, Register()) for step in steps]  # two registers: nothing is replaced
    for layer in model.layers:
        first, second = (step.fulfilment[layer] for step in steps)
        gains = systems[0][layer].keys.square().sum(1).double() / stage.strengths[layer]["factor"]
        torch.testing.assert_close(first, gains / (1 + gains), rtol=1e-5, atol=0)
        assert (second < first).all()  # their room is taken
    assert steps[0].fulfilment[0].median().item() == pytest.approx(0.75, rel=1e-5)


def test_what_is_left_out_of_a_step_has_no_fulfilment():
    model, stage = prepared(LeastSquares([BaseStatistics(fulfilment=0.75)], PastEdits()), layers=(0, 1))
    step, gone = (EditStep(tuple(REQUESTS), some_targets(1), CONTEXTS) for _ in range(2))
    stage.write(model, step, Register())
    last = step.fulfilment[0][1].item()
    step.leave_out([0], "for a test")
    assert step.fulfilment[0].tolist() == [last]
    stage.norm_limit = 1 + 1e-9
    assert stage.write(model, gone, Register()) == {}
    assert gone.taken_back
    assert gone.fulfilment == {}
    assert EditStep.joined([step, gone], step, []).fulfilment[1].shape == (1,)
