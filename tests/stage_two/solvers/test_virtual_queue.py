"""LyapLock's solver against the published form, in float64: outputs V0 K0', V K' and a queue Z."""

import pytest
import torch

from lke_lightning.edits import EditError
from lke_lightning.stage_two.preservation import BaseStatistics, NormPenalty
from lke_lightning.stage_two.solvers import EditSystem, LeastSquares, VirtualQueue
from tests.stage_two.solvers.problems import D_KEY, D_OUT, close, moment, randn, system

LAMBDA, START = 3.0, randn(D_OUT, D_KEY, seed=7)


def batches(count):
    return [(randn(5, D_KEY, seed=b), randn(5, D_OUT, seed=100 + b)) for b in range(count)]


def edited(solver, memory, stream, change=None):
    """Feed residuals; yield the memory and the total change after each batch."""
    change = torch.zeros(D_OUT, D_KEY, dtype=torch.float64) if change is None else change
    for keys, residuals in stream:
        update, memory = solver.compute(memory, EditSystem(keys, keys, residuals, total=change))
        change = change + update
        yield memory, change


def published(c0, stream, alpha):
    """Yield the weight and the queue, in units of its floor, after each batch."""
    weight, base, step, queue = START.clone(), None, None, None
    past, realised, known = torch.zeros_like(c0), torch.zeros_like(START), START @ c0
    for keys, residuals in stream:
        gram, asked = keys.T @ keys, residuals.T @ keys
        if base is None:
            weight = weight + asked @ torch.linalg.inv(LAMBDA * c0 + gram)
        else:
            pull = step * queue * LAMBDA
            right = asked + pull * (known - weight @ c0) + realised - weight @ past
            weight = weight + right @ torch.linalg.inv(gram + pull * c0 + past)
        past, realised = past + gram, realised + (keys @ weight.T).T @ keys
        loss = (c0 @ weight.T @ weight).trace() - 2 * (known @ weight.T).trace() + (START @ c0 @ START.T).trace()
        if base is None:
            base = loss
            floor = queue = (alpha * base).sqrt()
            step = 1 / floor
        queue = torch.maximum(queue + step * (loss - alpha * base), floor)
        yield weight, (queue / floor).item()


@pytest.mark.parametrize("alpha", [1.2, 60.0])
def test_it_is_the_published_form(alpha):
    c0, stream, solver = moment(), batches(8), VirtualQueue([BaseStatistics(LAMBDA)], alpha)
    queues = []
    expected = published(c0, stream, alpha)
    for (memory, change), (weight, queue) in zip(edited(solver, solver.init(c0), stream), expected, strict=True):
        close(START + change, weight, 1e-9)
        assert memory["multiplier"].item() == pytest.approx(queue, abs=1e-9)
        queues.append(queue)
    assert queues[0] == pytest.approx(1)
    assert queues[-1] > 1.3  # above its floor, from the second batch on or from the sixth


def test_the_first_batch_is_memits():
    asked, solver, memit = system(5, 1), VirtualQueue([BaseStatistics(LAMBDA)]), LeastSquares([BaseStatistics(LAMBDA)])
    expected, _ = memit.compute(memit.init(moment()), asked)
    close(solver.compute(solver.init(moment()), asked)[0], expected)


def test_the_multiplier_rises_exactly_when_the_loss_exceeds_its_budget():
    """First edits that harm text more and more, then such as take all changes back; it falls to 1 and stays."""
    c0, budget = moment(), 1.5
    solver, before, allowed, directions = VirtualQueue([BaseStatistics(LAMBDA)], budget), 1.0, None, []
    everything = 100 * torch.eye(D_KEY, dtype=torch.float64)
    memory, change = solver.init(c0), torch.zeros(D_OUT, D_KEY, dtype=torch.float64)
    for keys, residuals in [*batches(4), *[(everything, None)] * 20]:
        asked = -(keys @ change.T) if residuals is None else residuals
        *_, (memory, change) = edited(solver, memory, [(keys, asked)], change)
        loss = (change @ c0 @ change.T).trace().item()
        allowed = allowed or budget * loss
        now = memory["multiplier"].item()
        assert now >= 1
        assert (now > before) == (loss > allowed)
        assert now == pytest.approx(max(before + loss / allowed - 1, 1))
        directions.append((now > before) - (now < before))
        close(memory["inverse"], torch.linalg.inv(now * memory["gram"] + memory["past"]))
        before = now
    assert set(directions) == {1, 0, -1}
    assert (before, directions[-1]) == (1, 0)


def test_it_can_be_wanted_by_fulfilment():
    keys, solver = randn(9, D_KEY, seed=50), VirtualQueue([BaseStatistics(fulfilment=0.8)])
    memory = solver.init(moment(), keys)
    shares = solver.fulfilment(memory, EditSystem(keys, keys, randn(9, D_OUT, seed=3)))
    assert shares.median().item() == pytest.approx(0.8)
    alone = EditSystem(keys[:1], keys[:1], randn(1, D_OUT, seed=3))
    close(keys[:1] @ solver.compute(memory, alone)[0].T, shares[0] * alone.residuals)


def test_edits_weigh_as_told():
    asked, c0 = system(4, 21), moment()
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    weighted = EditSystem(asked.keys, asked.keys, asked.residuals, importance=weights)
    found, expected = (
        solver.compute(solver.init(c0), weighted)[0]
        for solver in (VirtualQueue([BaseStatistics(LAMBDA)]), LeastSquares([BaseStatistics(LAMBDA)]))
    )
    close(found, expected)


def test_what_is_saved_goes_on_to_the_bit_and_what_is_marked_returns():
    solver = VirtualQueue([BaseStatistics(LAMBDA), NormPenalty(proportion=0.05)], 1.1)
    *_, (memory, change) = edited(solver, solver.init(moment()), batches(4))
    assert memory["multiplier"] > 1
    mark = solver.mark(memory)
    saved = solver.completed({name: part.clone() for name, part in solver.saved(memory).items()}, moment())
    assert "gram" not in solver.saved(memory)
    *_, (went_on, after) = edited(solver, memory, batches(7)[4:], change)
    *_, (continued, again) = edited(solver, saved, batches(7)[4:], change)
    assert torch.equal(after, again)
    assert went_on.keys() == continued.keys()
    *_, (_, again) = edited(solver, solver.rolled_back(went_on, mark), batches(7)[4:], change)
    assert torch.equal(after, again)
    fresh, cleared = solver.init(moment()), solver.cleared(went_on)
    assert cleared.keys() == fresh.keys()
    assert all(torch.equal(cleared[part], fresh[part]) for part in fresh)


def test_a_batch_that_changes_nothing_sets_no_budget():
    solver, (keys, residuals) = VirtualQueue([BaseStatistics(LAMBDA)], 2.0), batches(1)[0]
    *_, (memory, _) = edited(solver, solver.init(moment()), [(keys, 0 * residuals)])
    assert (memory["multiplier"], memory["allowed"]) == (1, 0)
    *_, (memory, change) = edited(solver, memory, [(keys, residuals)])
    assert memory["allowed"].item() == pytest.approx(2 * ((change @ memory["gram"]) * change).sum().item())


@pytest.mark.parametrize("value", [0.5, 0, float("nan"), float("inf")])
def test_budgets_that_cannot_be_are_refused(value):
    with pytest.raises(EditError, match=r"VirtualQueue.budget is .*at least 1"):
        VirtualQueue([BaseStatistics(1.0)], value)
