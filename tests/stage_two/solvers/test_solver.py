"""A wanted fulfilment against what single edits really write, in float64, and what is remembered of it."""

import pytest
import torch

from lke_lightning.edits import EditError
from lke_lightning.stage_two.preservation import BaseStatistics, EditWeights, NormPenalty, NullSpace, PastEdits
from lke_lightning.stage_two.solvers import EditSystem, EqualityConstrained, LeastSquares
from lke_lightning.stage_two.solvers.solver import strength
from tests.stage_two.solvers.problems import D_KEY, D_OUT, close, moment, randn, system

KEYS = randn(9, D_KEY, seed=50)
METHODS = {
    "memit": lambda f: LeastSquares([BaseStatistics(fulfilment=f)]),
    "encore": lambda f: LeastSquares([BaseStatistics(fulfilment=f), NormPenalty(proportion=0.05)], PastEdits()),
    "edit weights": lambda f: LeastSquares([BaseStatistics(fulfilment=f)], PastEdits(), edit_weights=EditWeights(7.0)),
    "alphaedit": lambda f: LeastSquares([NormPenalty(fulfilment=f)], PastEdits(), NullSpace(share=0.1)),
    "emmet": lambda f: EqualityConstrained([BaseStatistics(fulfilment=f)], slack=0.1),
}


def cloned(memory):
    return {name: part.clone() for name, part in memory.items()}


def written(solver, memory, keys):
    """The shares that single edits write, each as if it were the next one."""
    shares = []
    for key in keys.unsqueeze(1):
        residual = randn(1, D_OUT, seed=3)
        update, _ = solver.compute(cloned(memory), EditSystem(key, key, residual))
        given = key @ update.T
        shares.append((given / residual).mean())
        close(given, shares[-1] * residual)
    return torch.stack(shares)


@pytest.mark.parametrize("wanted", [0.05, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("name", METHODS)
def test_the_median_of_what_single_edits_write_is_the_wanted_fulfilment(name, wanted):
    solver = METHODS[name](wanted)
    memory = solver.init(moment(), KEYS)
    shares = written(solver, memory, KEYS)
    assert shares.median().item() == pytest.approx(wanted, abs=1e-9)
    assert memory["strength"][1].item() == pytest.approx(wanted, abs=1e-9)
    assert shares.min() < wanted < shares.max()
    close(solver.fulfilment(memory, EditSystem(KEYS, KEYS, randn(9, D_OUT, seed=3))), shares)


@pytest.mark.parametrize("name", METHODS)
def test_it_means_the_same_in_activations_of_any_scale(name):
    solver, larger = METHODS[name](0.7), 1e3
    here, there = solver.init(moment(), KEYS), solver.init(moment() * larger**2, KEYS * larger)
    close(written(solver, there, KEYS * larger), written(solver, here, KEYS))
    asked = system(4, 60)
    update, _ = solver.compute(here, asked)
    scaled, _ = solver.compute(there, EditSystem(asked.keys * larger, asked.keys * larger, asked.residuals))
    close(scaled * larger, update, 1e-8)


def test_it_stands_for_weights_that_could_have_been_given():
    c0, wanted = moment(), LeastSquares([BaseStatistics(fulfilment=0.6), NormPenalty(proportion=0.05)], PastEdits())
    memory = wanted.init(c0, KEYS)
    factor = memory["strength"][0].item()
    weights = [BaseStatistics(factor), NormPenalty(0.05 * factor * c0.diagonal().median().item())]
    given = LeastSquares(weights, PastEdits())
    same = given.init(c0, KEYS)
    assert same["strength"][0] == 1
    assert same["strength"][1].item() == pytest.approx(0.6, abs=1e-9)
    for part in ("inverse", "gram", "probe"):
        close(memory[part], same[part])


def test_an_edits_own_weight_raises_its_fulfilment():
    solver, counts = METHODS["edit weights"](0.5), torch.tensor([1.0, 4.0], dtype=torch.float64)
    memory, keys = solver.init(moment(), KEYS), KEYS[:1].repeat(2, 1)
    once, more = solver.fulfilment(memory, EditSystem(keys, keys, randn(2, D_OUT, seed=1), importance=counts))
    assert (more / (1 - more)).item() == pytest.approx((4 * once / (1 - once)).item())


@pytest.mark.parametrize("name", ["encore", "edit weights", "alphaedit"])
def test_what_is_remembered_lowers_the_fulfilment_of_new_edits(name):
    solver = METHODS[name](0.8)
    memory, asked = solver.init(moment(), KEYS), EditSystem(KEYS, KEYS, randn(9, D_OUT, seed=3))
    found = [solver.fulfilment(memory, asked)]
    for seed in range(3):
        _, memory = solver.compute(memory, system(6, 70 + seed))
        found.append(solver.fulfilment(memory, asked))
        assert (found[-1] < found[-2]).all()
    close(found[-1], written(solver, memory, KEYS), 1e-8)
    assert memory["strength"][1].item() == pytest.approx(0.8)


@pytest.mark.parametrize("name", METHODS)
def test_a_saved_memory_goes_on_to_the_bit(name):
    solver = METHODS[name](0.8)
    _, memory = solver.compute(solver.init(moment(), KEYS), system(5, 1))
    saved = solver.completed(cloned(solver.saved(memory)), moment())
    assert set(saved) == set(memory)
    assert all(torch.equal(saved[part], memory[part]) for part in memory)
    for seed in (2, 3):
        went_on, memory = solver.compute(memory, system(5, seed))
        continued, saved = solver.compute(saved, system(5, seed))
        assert torch.equal(continued, went_on)
    assert torch.equal(saved["inverse"], memory["inverse"])


def test_a_completed_memory_has_the_jitter_in_proportion():
    basis, _ = torch.linalg.qr(randn(200, 200, seed=1))
    values = torch.ones(200, dtype=torch.float64)
    values[0] = 0
    solver, c0 = LeastSquares([BaseStatistics(fulfilment=0.7)], PastEdits()), basis @ torch.diag(values) @ basis.T
    with pytest.warns(UserWarning, match="1 of 200") as said:
        memory = solver.init(c0, randn(5, 200, seed=2))
    assert len(said) == 1
    assert torch.equal(solver.completed(solver.saved(memory), c0)["gram"], memory["gram"])


@pytest.mark.parametrize("name", ["encore", "alphaedit"])
def test_without_any_edit_the_memory_is_the_first_one_again(name):
    solver = METHODS[name](0.8)
    first = solver.init(moment(), KEYS)
    update, memory = solver.compute(cloned(first), system(5, 1))
    update, memory = solver.retire(memory, range(5), update)
    assert torch.equal(memory["inverse"], first["inverse"])


def test_a_memory_of_an_earlier_version_goes_on():
    """It knows nothing of a strength, and its terms have weights."""
    solver = LeastSquares([BaseStatistics(2.0), NormPenalty(0.3)], PastEdits())
    _, memory = solver.compute(solver.init(moment()), system(5, 1))
    older = cloned(solver.saved(memory))
    del older["strength"]
    older = solver.completed(older, moment())
    assert torch.equal(older["gram"], memory["gram"])
    assert torch.equal(solver.fulfilment(older, system(5, 2)), solver.fulfilment(memory, system(5, 2)))
    expected, memory = solver.compute(memory, system(5, 2))
    found, older = solver.compute(older, system(5, 2))
    assert torch.equal(found, expected)
    assert solver.drift(older) < 1e-9


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("null_space", [None, NullSpace(share=0.1)])
def test_it_is_found_in_any_dtype(dtype, null_space):
    solver = LeastSquares([NormPenalty(fulfilment=0.8)], PastEdits(), null_space, dtype=dtype)
    memory = solver.init(moment(), KEYS.float())
    found = solver.fulfilment(memory, EditSystem(KEYS.float(), KEYS.float(), randn(9, D_OUT, seed=3).float()))
    assert found.dtype == torch.float64
    assert found.median().item() == pytest.approx(0.8, abs=1e-5)


def test_keys_without_finite_numbers_do_not_count():
    gains = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    assert strength(0.5, gains).tolist() == [2.0, 0.5]
    assert strength(0.5, torch.cat([gains, gains.new_full((1,), torch.nan)])).tolist() == [2.0, 0.5]
    for nothing in (torch.zeros(3), torch.full((3,), torch.nan), torch.full((3,), torch.inf)):
        with pytest.raises(EditError, match="zero or not finite; give weights"):
            strength(0.5, nothing)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("keys", [None, KEYS[:0]])
def test_without_edits_a_fulfilment_cannot_be_found(name, keys):
    with pytest.raises(EditError, match="there are none: give weights"):
        METHODS[name](0.8).init(moment(), keys)


def test_equalities_are_written_exactly_whatever_the_weight():
    exact = EqualityConstrained([BaseStatistics(3.0)])
    memory = exact.init(moment(), KEYS)
    assert memory["strength"].tolist() == [1.0]
    assert (exact.fulfilment(memory, EditSystem(KEYS, KEYS, randn(9, D_OUT, seed=3))) == 1).all()
    with pytest.raises(EditError, match="give BaseStatistics a weight, or a slack"):
        EqualityConstrained([BaseStatistics(fulfilment=0.8)])
