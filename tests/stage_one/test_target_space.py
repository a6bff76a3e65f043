"""Target spaces that follow the descent, and the terms that read them, against plain formulas in float64."""

import math

import pytest
import torch

from lke_lightning.edits import EditBatch, EditError, EditRequest
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.stage_one.contexts import ContextTemplates
from lke_lightning.stage_one.history import UpdateHistory
from lke_lightning.stage_one.objectives import EssenceKL, NegativeLogLikelihood, Overlap, ScoredL1, StepView, TargetNorm
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_one.rows import build_rows
from lke_lightning.stage_one.stopping import LossBelow, MostProbable
from lke_lightning.stage_one.target_space import NoiseTrigger, NormBall, OrthogonalTo, ScoredCoordinates
from lke_lightning.stage_two.preservation import NormPenalty
from lke_lightning.stage_two.register import Register
from lke_lightning.stage_two.solvers import LeastSquares
from lke_lightning.stage_two.statistics import Statistics
from lke_lightning.stage_two.update import WeightUpdate
from lke_lightning.stages import Stages
from lke_lightning.testing import tiny_network, tiny_tokenizer
from tests.reference.stage_one import descend

CONTEXTS = ["{}", "The river is in the city. {}"]
REQUESTS = [
    EditRequest(id="0", prompt="{} was born in", target="the city", subject="Anna of the river"),
    EditRequest(id="1", prompt="The mother tongue of {} is", target="guitar", subject="Bob Smith"),
    EditRequest(id="2", prompt="a native of the capital works for", target="piano"),
]
ROWS = len(REQUESTS)
BALL = NormBall(3.0)
PLAIN = {"lr": 0.3, "clamp": 3.0, "kl": 0.0625, "decay": 0.5, "loss_threshold": 4.0, "extra_steps": None}
"""The settings of `make_stage` in the oracle's words; one of the requests gets below the threshold early."""


class Unit(Statistics):
    def second_moments(self, model):
        return {layer: torch.eye(model.weight(layer).delta.shape[1]) for layer in model.layers}


@pytest.fixture(scope="module")
def network():
    return tiny_network("llama")


@pytest.fixture
def model(network):
    model = LanguageModel(network, tiny_tokenizer(), [0, 1])
    yield model
    for layer in model.layers:
        model.weight(layer).revert()


def make_stage(space=BALL, *terms, max_steps=12, stopping=None):
    objectives = [NegativeLogLikelihood(), EssenceKL(0.0625), TargetNorm(0.5), *terms]
    stopping = [LossBelow(4.0)] if stopping is None else stopping
    templates = ContextTemplates(templates=CONTEXTS[1:])
    return TargetOptimization(objectives, stopping, space, templates, lr=0.3, max_steps=max_steps, site="block")


def starts(model):
    """The unchanged activations."""
    return make_stage(max_steps=1).optimize(model, REQUESTS, CONTEXTS).vectors


def edit_before(model, rank=3, size=0.01, layer=1):
    """Put earlier edits into a matrix: a change of low rank with unlike singular values."""
    random = torch.Generator().manual_seed(1)
    delta = model.weight(layer).delta
    left, right = (torch.randn(n, rank, generator=random, dtype=delta.dtype) for n in delta.shape)
    model.weight(layer).add(size * (left * torch.tensor([3.0, 1.0, 0.2])[:rank]) @ right.T)


def in_two_passes(model, built, share, dense_steps, max_steps, weight):
    """EAC as it is written: two descents, the second on few coordinates; returns delta and its coordinates."""
    gradients = []
    dense, steps, _ = descend(model, built, max_steps=dense_steps + 1, gradients=gradients, **PLAIN)
    start = descend(model, built, max_steps=1, **PLAIN)[0]
    score = (sum(gradients) / max(1, len(gradients)) * (dense - start)).abs()
    support = torch.zeros_like(score).index_fill(0, score.argsort(descending=True)[: int(share * len(score))], 1)

    def penalty(delta):
        return weight * (support * delta.abs() / (score + 1e-6)).sum()

    found, later, losses = descend(
        model, built, max_steps=max_steps - dense_steps, hold=lambda delta: delta * support, penalty=penalty, **PLAIN
    )
    return found - start, support.bool(), dense_steps + later, losses[-1], steps <= dense_steps


@pytest.mark.parametrize("weight", [0.0, 1e-3])
def test_scored_coordinates_are_two_descents_the_second_on_few_coordinates(model, weight):
    """Against the oracle; one request meets the stop rule in the first pass already, and waits for the second."""
    stage = make_stage(ScoredCoordinates(0.4, 6, within=BALL), ScoredL1(weight), max_steps=18)
    found, before = stage.optimize(model, REQUESTS, CONTEXTS), starts(model)
    waited = []
    for i, built in enumerate(build_rows(REQUESTS, CONTEXTS, model.text)):
        delta, support, steps, loss, early = in_two_passes(model, built, 0.4, 6, 18, weight)
        assert torch.equal(found.vectors[i][~support], before[i][~support])  # exactly 0
        assert support.sum() == int(0.4 * len(support))
        assert (found.vectors[i] - before[i] - delta).norm() < 1e-6 * delta.norm()
        assert (found.steps[i], found.losses[i]) == (steps, pytest.approx(loss, rel=1e-6))
        waited.append(early)
    assert any(waited)
    assert len(set(found.steps)) > 1


def test_with_all_coordinates_and_no_penalty_the_second_pass_is_the_method_that_it_restricts(model):
    """Stop rules that count successes count those of the second pass only."""
    rules = [MostProbable(2), LossBelow(2.0)]
    plain = make_stage(max_steps=10, stopping=rules).optimize(model, REQUESTS, CONTEXTS)
    space = ScoredCoordinates(1.0, 5, within=BALL)
    found = make_stage(space, ScoredL1(0.0), max_steps=15, stopping=rules).optimize(model, REQUESTS, CONTEXTS)
    assert torch.equal(found.vectors, plain.vectors)
    assert found.steps == [5 + steps for steps in plain.steps]
    assert found.reasons == plain.reasons


def test_the_second_pass_may_begin_where_the_first_has_come_to(model):
    """One update from there is not one from nothing; what is not chosen is 0 from the first step on."""
    within, before = NormBall(0.5), starts(model)
    spaces = [ScoredCoordinates(0.4, 6, from_dense, within) for from_dense in (True, False)]
    later, new = (make_stage(space, max_steps=8).optimize(model, REQUESTS, CONTEXTS).vectors for space in spaces)
    assert torch.equal(later == before, new == before)
    assert ((later - before).norm(dim=1) > 1.5 * (new - before).norm(dim=1)).all()
    assert ((later - before).norm(dim=1) <= 0.5 * before.norm(dim=1) * (1 + 1e-9)).all()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: make_stage(ScoredCoordinates(), max_steps=11), "max_steps is 11: ScoredCoordinates .* give it 12"),
        (lambda: make_stage(BALL, ScoredL1()), "ScoredL1 reads what NormBall does not keep"),
        (lambda: ScoredCoordinates(0.0), "ScoredCoordinates.share is 0.0.*above 0 and at most 1"),
        (lambda: ScoredCoordinates(dense_steps=0), "ScoredCoordinates.dense_steps is 0.*at least 1"),
        (lambda: ScoredL1(-1.0), "ScoredL1.weight is -1.0.*at least 0"),
        (lambda: Overlap(-1.0), "Overlap.weight is -1.0.*at least 0"),
        (lambda: Overlap(rank=0), "Overlap.rank is 0.*at least 1"),
        (lambda: OrthogonalTo(1.0), "OrthogonalTo.at_most is 1.0.*above 0 and below 1"),
        (lambda: OrthogonalTo(relative_threshold=1.0), "OrthogonalTo.relative_threshold is 1.0.*below 1"),
        (lambda: OrthogonalTo(threshold=-1.0), "OrthogonalTo.threshold is -1.0.*at least 0"),
        (lambda: NoiseTrigger(-1.0), "NoiseTrigger.deviation is -1.0.*at least 0"),
        (lambda: NoiseTrigger(after=-1), "NoiseTrigger.after is -1.*at least 0"),
        (lambda: NoiseTrigger(momentum=1.0), "NoiseTrigger.momentum is 1.0.*below 1"),
    ],
)
def test_what_cannot_be_is_refused(make, says):
    with pytest.raises(EditError, match=says):
        make()


def test_a_trigger_averages_what_is_usual():
    """By hand: nothing before the 21st edit, nor without variance; what triggers does not enter the mean."""
    noises = [2.0 + 0.5 * math.sin(3 * i) for i in range(20)] + [9.0, 2.1, 9.0]
    mean, variance = noises[0], 0.0
    for noise in [*noises[1:20], noises[21]]:
        mean = 0.9 * mean + 0.1 * noise
        variance = 0.9 * variance + 0.1 * (noise - mean) ** 2
    unusual, past = NoiseTrigger(1.5)([0.0, *noises], [0.0, 0.0, 0.0])  # the first edit has no noise
    assert [i for i, fires in enumerate(unusual) if fires] == [21, 23]
    assert past == pytest.approx([24, mean, variance])
    parts = NoiseTrigger(1.5)(noises[:7], [1.0, 0.0, 0.0])[1]
    assert NoiseTrigger(1.5)(noises[7:], parts)[1] == pytest.approx(past)  # however edits fall into batches
    assert not any(NoiseTrigger(1.5, after=0)([3.0] * 5, [0.0, 0.0, 0.0])[0])
    assert NoiseTrigger(1.5)([math.nan], [30.0, 2.0, 1.0]) == ([False], [31.0, 2.0, 1.0])


def test_the_first_edit_that_can_be_loud_is_the_twenty_first():
    usual = [2.0 + 0.5 * math.sin(3 * i) for i in range(24)]
    for place in range(24):
        unusual, _ = NoiseTrigger()([*usual[:place], 90.0, *usual[place + 1 :]], [0.0, 0.0, 0.0])
        assert unusual[place] == (place + 1 >= 21)
        assert not any(unusual[:20])


def test_the_directions_of_a_change_are_its_left_singular_vectors(model):
    edit_before(model)
    change = model.weight(1).delta
    left, values, _ = torch.linalg.svd(change, full_matrices=False)
    history, loud = UpdateHistory(change), torch.randn(len(change), dtype=change.dtype)

    def same_span(found, expected):
        assert found.shape == expected.shape
        torch.testing.assert_close(found @ found.T, expected @ expected.T, rtol=0, atol=1e-9)

    same_span(history.directions(8), left[:, :3])
    same_span(history.directions(2), left[:, :2])
    share = ((values[1] / values[0]) ** 2).item()
    same_span(history.directions(8, share * 0.99), left[:, :2])
    same_span(history.directions(8, share * 1.01), left[:, :1])
    same_span(history.directions(8, 0.0, threshold=values[1].item() ** 2 * 1.01), left[:, :1])
    beside = torch.linalg.qr(torch.cat([loud.unsqueeze(1), left[:, :3]], 1)).Q
    same_span(history.directions(8, beside=loud), beside)
    found = history.directions(2, beside=loud)
    assert found.shape[1] == 2
    assert (found[:, 0] @ loud).abs().item() == pytest.approx(loud.norm().item())
    assert UpdateHistory(torch.zeros_like(change)).directions(8).shape == (len(change), 0)


def test_a_target_is_orthogonal_to_earlier_edits_and_so_is_what_one_layer_writes_for_it(network):
    """O-Edit+ on one layer: whatever the solve makes of the residuals, its columns are theirs."""
    model = LanguageModel(network, tiny_tokenizer(), [1])
    edit_before(model)
    earlier = model.weight(1).delta.clone()
    before, basis = starts(model), torch.linalg.svd(earlier).U[:, :3]
    one = make_stage(OrthogonalTo(0.5, 1e-10, within=BALL))
    stages = Stages(one, WeightUpdate(LeastSquares([NormPenalty(0.1)]), statistics=Unit(), norm_limit=None))
    stages.prepare(model, REQUESTS)
    step = stages.edit(model, EditBatch.of(REQUESTS), Register())
    asked, written = step.targets.vectors - before, model.weight(1).delta - earlier
    model.weight(1).revert()
    assert asked.norm(dim=1).min() > 0.1
    assert ((asked @ basis).norm(dim=1) < 1e-6 * asked.norm(dim=1)).all()
    assert (basis.T @ written).norm() < 1e-6 * written.norm()


def test_an_orthogonal_descent_is_the_plain_one_with_a_projection_after_every_update(model):
    edit_before(model)
    basis = torch.linalg.svd(model.weight(1).delta).U[:, :3]
    found = make_stage(OrthogonalTo(0.5, 1e-10, within=BALL)).optimize(model, REQUESTS, CONTEXTS)
    for i, built in enumerate(build_rows(REQUESTS, CONTEXTS, model.text)):
        expected, steps, _ = descend(
            model, built, max_steps=12, hold=lambda delta: delta - basis @ (basis.T @ delta), **PLAIN
        )
        assert found.steps[i] == steps
        assert (found.vectors[i] - expected).norm() < 1e-6 * expected.norm()


def seen(model, *loud):
    """What `look` returns where some edits are loud: the noise of these, 0 of the others."""
    rows = model.text.rows([request.in_context("{}") for request in REQUESTS])
    matrix = model.architecture.matrix(1)
    keys = [model.observe(model.text.pad([row]), [matrix], stop=2)[0][0][0, row.slot] for row in rows]
    noise = torch.stack(keys) @ model.weight(1).delta.T
    return noise, {"noise": noise * torch.tensor([i in loud for i in range(ROWS)]).unsqueeze(1)}


def test_only_loud_edits_are_kept_off_earlier_ones_and_exactly_off_their_own_noise(model):
    """DeltaEdit; the others are found as without it, bit for bit, and the batch makes no difference."""
    edit_before(model)
    stage, plain = make_stage(OrthogonalTo(0.25, 0.01, trigger=NoiseTrigger(), within=BALL)), make_stage()
    before, expected = starts(model), plain.optimize(model, REQUESTS, CONTEXTS)
    noise, known = seen(model, 1, 2)
    found = stage.optimize(model, REQUESTS, CONTEXTS, seen=known)
    delta, free = found.vectors - before, expected.vectors - before
    assert torch.equal(found.vectors[0], expected.vectors[0])
    assert torch.equal(stage.optimize(model, REQUESTS, CONTEXTS).vectors, expected.vectors)
    for i in (1, 2):
        assert (delta[i] @ noise[i]).abs() < 1e-9 * delta[i].norm() * noise[i].norm()
        assert (free[i] @ noise[i]).abs() > 1e-3 * free[i].norm() * noise[i].norm()
    state = stage.space.start(before, known, UpdateHistory(model.weight(1).delta))
    assert 1 < state["removed"].shape[2] <= before.shape[1] // 4
    alone = stage.optimize(model, REQUESTS[1:2], CONTEXTS, seen={"noise": known["noise"][1:2]})
    torch.testing.assert_close(alone.vectors[0], found.vectors[1], rtol=1e-9, atol=1e-12)
    assert found.steps[2] < found.steps[1]  # so its rows had been dropped


def test_a_loud_edit_gives_up_a_quarter_of_all_directions_at_most(model):
    """Where earlier edits fill the space: its own noise, and the strongest of what they write beside it."""
    change = model.weight(1).delta
    random = torch.Generator().manual_seed(3)
    model.weight(1).add(0.01 * torch.randn(change.shape, generator=random, dtype=change.dtype))
    noise, known = seen(model, 1)
    own, quarter = (noise[1] / noise[1].norm()).unsqueeze(1), len(change) // 4
    beside = torch.linalg.svd(change - own @ (own.T @ change)).U
    basis = torch.cat([own, beside[:, : quarter - 1]], 1)
    stage = make_stage(OrthogonalTo(0.25, 0.01, trigger=NoiseTrigger(), within=BALL))
    removed = stage.space.start(starts(model), known, UpdateHistory(change))["removed"]
    assert removed.shape == (ROWS, len(change), quarter)
    assert not removed[[0, 2]].any()
    found = stage.optimize(model, REQUESTS, CONTEXTS, seen=known)
    built = build_rows(REQUESTS, CONTEXTS, model.text)[1]
    expected, steps, _ = descend(
        model, built, max_steps=12, hold=lambda delta: delta - basis @ (basis.T @ delta), **PLAIN
    )
    assert found.steps[1] == steps
    assert (found.vectors[1] - expected).norm() < 1e-6 * expected.norm()


def test_noise_is_judged_edit_by_edit_and_remembered_with_the_batch(model):
    """Of the keys of bare prompts; a batch that is taken back was never heard, and a mark returns to its moment."""
    stage = make_stage(OrthogonalTo(trigger=NoiseTrigger(0.0, after=2), within=BALL), max_steps=2)
    stage.prepare(model, REQUESTS)
    first = stage.aim(model, EditBatch.of(REQUESTS[:1]))
    assert first.memory["noise"].tolist() == [1, 0, 0]  # no earlier edit, no noise
    stage.settle(first)
    edit_before(model)
    norms = seen(model)[0].norm(dim=1).tolist()
    step = stage.aim(model, EditBatch.of(REQUESTS))
    mean = 0.9 * norms[0] + 0.1 * norms[1]  # what comes then is loud, whatever it is
    assert step.memory["noise"].tolist() == pytest.approx([4, mean, 0.1 * (norms[1] - mean) ** 2])
    step.take_back("a test")
    stage.settle(step)
    assert stage.memory["noise"].tolist() == [1, 0, 0]
    saved = stage.state_dict()
    stage.settle(stage.aim(model, EditBatch.of(REQUESTS)))
    assert stage.memory["noise"][0] == 4
    stage.load_state_dict(saved)
    assert stage.memory["noise"].tolist() == [1, 0, 0]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_noise_that_is_not_finite_is_that_of_an_edit_to_leave_out(broken):
    history, space = UpdateHistory(torch.eye(3, 4)), OrthogonalTo(trigger=NoiseTrigger(after=0))
    keys = torch.tensor([[1.0, 0.0, 0.0, 0.0], [broken] * 4, [0.0, 9.0, 0.0, 0.0]])
    found, memory = space.look(history, lambda: keys, {"noise": torch.tensor([3.0, 1.0, 0.5])})
    assert found["noise"].tolist() == [[0.0] * 3, [0.0] * 3, [0.0, 9.0, 0.0]]
    assert memory["noise"].isfinite().all()
    assert space.start(torch.ones(3, 3), found, history)["removed"].isfinite().all()


@pytest.mark.parametrize("weight", [1.0, 50.0, 1e6])
def test_overlap_begins_with_no_gradient_whatever_its_weight(weight):
    change = torch.zeros(2, 3, requires_grad=True)
    norms, nothing = torch.ones(2), torch.zeros(2, 1)
    view = StepView(nothing, nothing, change, norms, nothing, nothing, history=UpdateHistory(torch.eye(3, 4)))
    Overlap(weight)(view).sum().backward()
    assert torch.equal(change.grad, torch.zeros(2, 3))


def test_overlap_is_the_mean_cosine_with_what_earlier_edits_write(model):
    """Against the oracle; before the first edit there is nothing to overlap with."""
    plain = make_stage().optimize(model, REQUESTS, CONTEXTS)
    assert torch.equal(make_stage(BALL, Overlap(5.0)).optimize(model, REQUESTS, CONTEXTS).vectors, plain.vectors)
    edit_before(model)
    left = torch.linalg.svd(model.weight(1).delta).U
    for rank, weight in ((2, 0.5), (100, 0.5)):
        basis = left[:, : min(rank, 3)]

        def penalty(delta, basis=basis, weight=weight):
            length = delta.norm() if delta.any() else 1.0
            return weight * (delta @ basis).abs().mean() / length

        found = make_stage(BALL, Overlap(weight, rank)).optimize(model, REQUESTS[:2], CONTEXTS)
        for i, built in enumerate(build_rows(REQUESTS[:2], CONTEXTS, model.text)):
            expected, steps, losses = descend(model, built, max_steps=12, penalty=penalty, **PLAIN)
            assert (found.steps[i], found.losses[i]) == (steps, pytest.approx(losses[-1], rel=1e-5))
            assert (found.vectors[i] - expected).norm() < 1e-5 * expected.norm()
