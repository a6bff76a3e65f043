"""What arrived of a batch, against plain forwards, and what is said where little of it did."""

import warnings
from dataclasses import replace

import pytest
import torch

from lke_lightning.edits import EditBatch, EditError, EditRequest
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.targets import Targets
from lke_lightning.stage_one.contexts import ContextTemplates
from lke_lightning.stage_one.objectives import NegativeLogLikelihood
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_one.stopping import MostProbable
from lke_lightning.stage_one.target_space import NormBall
from lke_lightning.stage_two.arrival import Watch, arrival
from lke_lightning.stage_two.preservation import NormPenalty, PastEdits
from lke_lightning.stage_two.register import Register
from lke_lightning.stage_two.solvers import LeastSquares
from lke_lightning.stage_two.update import WeightUpdate
from lke_lightning.stages import Stages
from lke_lightning.step import EditStep
from lke_lightning.testing import tiny_tokenizer
from tests.families.families import FAMILIES
from tests.families.test_editing import ANSWERS, FIRST, LAST, WORDS, known, taught
from tests.stage_two.test_update import Unit

WEAK, STRONG = 1e-3, 1e6
"""Weights of a penalty that lets everything be written, and nothing."""


@pytest.fixture(scope="module")
def networks():
    """Tiny networks that were taught a few facts, by family, with their tokenizer."""
    tokenizer = tiny_tokenizer([" ".join(FIRST + LAST + WORDS)] * 20)
    return {name: taught(FAMILIES[name], tokenizer, "multi") for name in ("llama", "gemma3")}, tokenizer


@pytest.fixture
def model_of(networks):
    def make(family="llama", dtype=torch.float32):
        by_name, tokenizer = networks
        network = by_name[family].to(dtype)
        made.append(LanguageModel(network, tokenizer, [1, 2]))
        return made[-1]

    made = []
    yield make
    for model in made:
        for weight in model.edited.values():
            weight.revert()
        model.network.float()


def facts(count=4):
    answers = ANSWERS["multi"]["plays the"]
    return [
        EditRequest(id=str(i), prompt=prompt, target=next(a for a in answers if a != answer))
        for i, (prompt, _, answer) in enumerate(known("multi")[: 7 * count : 7])
    ]


def make_stages(penalty=WEAK, max_steps=100, site=None, norm_limit=None):
    one = TargetOptimization(
        [NegativeLogLikelihood()],
        [MostProbable(10)],
        NormBall(20.0),
        ContextTemplates(templates=[]),
        lr=0.5,
        max_steps=max_steps,
        site=site,
    )
    two = WeightUpdate(LeastSquares([NormPenalty(penalty)], PastEdits()), statistics=Unit(), norm_limit=norm_limit)
    return Stages(one, two)


def carried_out(model, stages, requests=None, register=None):
    """Edit a batch as a run does; return it and what was warned of."""
    register = Register() if register is None else register
    stages.prepare(model, requests or facts())
    step = stages.aim(model, EditBatch.of(requests or facts()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stages.two.carry_out(model, step, register)
    return step, [str(warning.message) for warning in caught]


def bare_outputs(model, module=None):
    """What a module, by default the target block, returns at each prompt's last token, from one forward each."""
    rows = model.text.rows([request.in_context("{}") for request in facts()])
    seen = [module or model.architecture.blocks[2]]
    return [model.observe(model.text.pad([row]), seen, stop=4)[0][1][0, row.slot] for row in rows]


@pytest.mark.parametrize("site", ["block", "matrix"])
def test_what_arrived_is_what_plain_forwards_find(model_of, site):
    model = model_of()
    stages = make_stages(penalty=3.0, site=site)
    stages.prepare(model, facts())
    step = stages.aim(model, EditBatch.of(facts()))
    module = model.architecture.blocks[2] if site == "block" else model.architecture.matrix(2)
    before = bare_outputs(model, module)
    stages.two.write(model, step, Register())
    found = arrival(model, step)
    for i, (then, now) in enumerate(zip(before, bare_outputs(model, module), strict=True)):
        whole, left = ((step.targets.vectors[i] - part).norm().item() for part in (then, now))
        assert step.targets.distances[i] == pytest.approx(whole, rel=1e-4)
        assert found.written[i] == pytest.approx(1 - left / whole, abs=1e-4)
    encoded = model.text.continuations([(request.text, request.target) for request in facts()])
    for (prompt, target), is_first in zip(encoded, found.first_choice, strict=True):
        best = model.network(torch.tensor([prompt + target]), use_cache=False).logits[0].argmax(1).tolist()
        assert (tuple(best[len(prompt) - 1 : -1]) == target) == is_first


def test_a_batch_that_arrives_is_not_spoken_of(model_of):
    step, said = carried_out(model_of(), make_stages())
    assert said == []
    assert all(step.targets.reached)
    assert all(step.arrival.first_choice)
    assert min(step.arrival.written) > 0.5


def test_what_leads_away_from_the_targets_was_too_much(model_of):
    model, stages, register = model_of(), make_stages(), Register()
    stages.prepare(model, facts())
    step = stages.aim(model, EditBatch.of(facts()))
    systems = stages.two.write(model, step, register)
    for layer in model.layers:
        model.weight(layer).add(30 * model.weight(layer).delta)
    with pytest.warns(UserWarning, match="leads away from the targets: it was too much; edit lower layers"):
        Watch().look(model, step, register, systems)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": 1}, "stage one reached 0 of them; raise stage_one.max_steps"),
        ({"penalty": STRONG}, "reached 4 of them, stage two did not write them; give BaseStatistics"),
    ],
    ids=["not reached", "not written"],
)
def test_it_says_which_stage_failed_once(model_of, settings, message):
    model, stages, register = model_of(), make_stages(**settings), Register()
    _, said = carried_out(model, stages, register=register)
    assert len(said) == 1
    assert message in said[0]
    assert "\n" not in said[0]
    _, said = carried_out(model, stages, register=register)
    assert said == []


def test_it_speaks_again_when_another_stage_fails(model_of):
    model, stages = model_of(), make_stages(max_steps=1)
    assert "stage one" in carried_out(model, stages)[1][0]
    stages.one.max_steps = 100
    stages.two.revert(model, Register())
    stages.two.memory, stages.two._is_ready = {}, False
    stages.two.solver = make_stages(penalty=STRONG).two.solver
    assert "stage two did not" in carried_out(model, stages)[1][0]


def test_a_change_that_is_too_small_for_the_dtype_is_said_to_be_lost_there(model_of):
    model, stages = model_of(dtype=torch.bfloat16), make_stages()
    stages.prepare(model, facts())
    step = stages.aim(model, EditBatch.of(facts()))
    whole = step.targets.distances[0]
    near = step.targets.vectors.clone()
    for i, (was, distance) in enumerate(zip(bare_outputs(model), step.targets.distances, strict=True)):
        near[i] = was + (near[i] - was) * 1e-4 * whole / distance
    step.targets = replace(step.targets, vectors=near, distances=[1e-4 * whole] * len(step))
    systems = stages.two.write(model, step, Register())
    with pytest.warns(UserWarning, match="bfloat16 loses .* set model.dtype to float32"):
        Watch().look(model, step, Register(), systems)
    assert max(step.arrival.written) < 0.5


def far(model, step):
    """Put the targets so far away that the upper of two layers would have to grow by more than half."""
    aside = torch.randn(len(step), 32, generator=torch.Generator().manual_seed(0))
    vectors = torch.stack(bare_outputs(model)) + 110 * torch.nn.functional.normalize(aside)
    step.targets = replace(step.targets, vectors=vectors)
    return step


@pytest.mark.parametrize("again", [False, True], ids=["first batch", "facts edited before"])
def test_a_write_that_blows_up_a_norm_is_taken_back(model_of, again):
    """The lower layer is written by then, and where the facts were edited before, these edits are out already."""
    model, register = model_of("gemma3"), Register()
    stages = make_stages(site="block", norm_limit=1.5)
    if again:
        carried_out(model, stages, register=register)
        assert len(register) == 4
    stages.prepare(model, facts())
    step = far(model, stages.aim(model, EditBatch.of(facts())))
    live = {layer: model.weight(layer).matrix.weight.clone() for layer in model.layers}
    deltas = {layer: model.weight(layer).delta.clone() for layer in model.layers}
    inverses = {layer: memory["inverse"].clone() for layer, memory in stages.two.memory.items()}
    assert stages.two.write(model, step, register) == {}
    assert step.requests == ()
    assert [request.id for request, _ in step.left_out] == ["0", "1", "2", "3"]
    for part in ("layer 2's matrix by 1.", "the limit is 1.5", "set stage_one.site to matrix", "norm_limit null"):
        assert part in step.taken_back
    assert step.left_out[0][1] == step.taken_back
    assert len(register) == len(register.holding) == 4 * again
    for layer in model.layers:
        assert torch.equal(model.weight(layer).matrix.weight, live[layer])
        assert torch.equal(model.weight(layer).delta, deltas[layer])
        assert (stages.two.memory[layer]["inverse"] - inverses[layer]).norm() < 1e-8 * inverses[layer].norm()
        assert stages.two.solver.count(stages.two.memory[layer]) == 4 * again


def test_without_a_limit_it_passes(model_of):
    model, stages = model_of("gemma3"), make_stages(site="block")
    stages.prepare(model, facts())
    before = model.weight(2).norms()[0]
    step = far(model, stages.aim(model, EditBatch.of(facts())))
    stages.two.write(model, step, Register())
    assert len(step) == 4
    assert model.weight(2).norms()[1] > 1.5 * before


def test_a_run_stops_where_nothing_can_be_written(model_of):
    """At once where the first batch is taken back, else after the third in a row; a written one in between counts."""
    model, register = model_of(), Register()
    nothing = Targets(torch.zeros(0, 32), [], [], [], [], "block", [], [], [])
    taken, written = EditStep((), nothing, ["{}"], taken_back="too much"), EditStep((), nothing, ["{}"])
    with pytest.raises(EditError, match="nothing was written: too much"):
        Watch().look(model, taken, register, {})
    register.enter(facts(), range(4))
    watch = Watch()
    for step in (taken, taken, written, taken, taken):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            watch.look(model, step, register, {})
        assert [str(said.message) for said in caught] == ["a batch is left out: too much"] * (step is taken)
    with pytest.raises(EditError, match="the last 3 batches were taken back: too much"):
        watch.look(model, taken, register, {})
