"""Least-squares updates against naive float64 formulas, and the identities that must hold."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lke_lightning.stage_two.preservation import BaseStatistics, EditWeights, NormPenalty, NullSpace, PastEdits
from lke_lightning.stage_two.solvers import EditSystem, LeastSquares, least_squares
from tests.stage_two.solvers.problems import D_KEY, D_OUT, close, moment, randn, system


@given(n=st.integers(1, 40), seed=st.integers(0, 99), decades=st.integers(0, 6), repeat=st.booleans())
@settings(deadline=None, max_examples=25, derandomize=True)
def test_least_squares_is_the_papers_formula(n, seed, decades, repeat):
    c0, asked = moment(seed, decades=decades), system(n, seed)
    if repeat:
        asked = EditSystem(asked.keys[:1].repeat(n, 1), asked.keys[:1].repeat(n, 1), asked.residuals)
    solver = LeastSquares([BaseStatistics(3.0), NormPenalty(0.5)])
    update, _ = solver.compute(solver.init(c0), asked)
    gram = 3.0 * c0 + 0.5 * torch.eye(D_KEY) + asked.keys.T @ asked.keys
    close(update, asked.residuals.T @ asked.keys @ torch.linalg.inv(gram), 1e-8)


def test_a_sequence_equals_solving_once():
    """Recursive least squares: W_T = W_0 + (V - W_0 K) K' (A + K K')^-1, and the penalty is on the total drift."""
    solver = LeastSquares([BaseStatistics(2.0), NormPenalty(0.3)], PastEdits())
    c0, start = moment(), randn(D_OUT, D_KEY, seed=7)
    memory, weight, all_keys, all_values = solver.init(c0), start.clone(), [], []
    for batch in range(50):
        keys, values = randn(5, D_KEY, seed=batch), randn(5, D_OUT, seed=500 + batch)
        update, memory = solver.compute(memory, EditSystem(keys, keys, values - keys @ weight.T))
        weight = weight + update
        all_keys.append(keys)
        all_values.append(values)
    keys, values = torch.cat(all_keys), torch.cat(all_values)
    gram = 2.0 * c0 + 0.3 * torch.eye(D_KEY) + keys.T @ keys
    close(weight, start + (values - keys @ start.T).T @ keys @ torch.linalg.inv(gram), 1e-8)


def test_it_is_the_published_recursion():
    """RLSEdit: Q = (lambda^2 I + mu^2 C0)^-1; F = Q K, Q <- Q - F (I + K' F)^-1 F', W <- W + (V - W K) (Q K)'."""
    solver, c0 = LeastSquares([BaseStatistics(2.0), NormPenalty(0.3)], PastEdits()), moment()
    memory, weight = solver.init(c0), randn(D_OUT, D_KEY, seed=7)
    one, published = torch.eye(D_KEY, dtype=torch.float64), weight.clone()
    q = torch.linalg.inv(0.3 * one + 2.0 * c0)
    for batch in range(12):
        keys, values = randn(5, D_KEY, seed=batch), randn(5, D_OUT, seed=500 + batch)
        f = q @ keys.T
        q = q - f @ torch.linalg.inv(one[:5, :5] + keys @ f) @ f.T
        published = published + (values - keys @ published.T).T @ (q @ keys.T).T
        update, memory = solver.compute(memory, EditSystem(keys, keys, values - keys @ weight.T))
        weight = weight + update
        close(weight, published)


def test_past_edits_weigh_as_told():
    solver = LeastSquares([NormPenalty(1.0)], PastEdits(weight=4.0))
    first, second = system(3, 1), system(3, 2)
    _, memory = solver.compute(solver.init(moment()), first)
    update, _ = solver.compute(memory, second)
    gram = torch.eye(D_KEY) + 4 * first.keys.T @ first.keys + second.keys.T @ second.keys
    close(update, second.residuals.T @ second.keys @ torch.linalg.inv(gram))


def test_without_past_edits_nothing_is_remembered():
    solver = LeastSquares([BaseStatistics(1.0)])
    memory = solver.init(moment())
    _, after = solver.compute(memory, system(3, 1))
    assert torch.equal(after["inverse"], memory["inverse"])


def test_an_infinite_norm_penalty_leaves_the_weights_alone():
    solver = LeastSquares([BaseStatistics(1.0), NormPenalty(1e12)], PastEdits())
    update, _ = solver.compute(solver.init(moment()), system(4, 3))
    assert update.norm() < 1e-9


def test_alphaedit_in_the_null_space():
    c0 = moment(decades=4)
    basis = NullSpace(1e-2).basis(*torch.linalg.eigh(c0))
    assert 0 < basis.shape[1] < D_KEY
    projector = basis @ basis.T
    solver = LeastSquares([NormPenalty(10.0)], PastEdits(), NullSpace(1e-2))
    first, second = system(6, 4), system(6, 5)
    update, memory = solver.compute(solver.init(c0), first)
    gram = projector @ first.keys.T @ first.keys + 10.0 * torch.eye(D_KEY)
    close(update, torch.linalg.solve(gram, projector @ first.keys.T @ first.residuals).T)
    update, _ = solver.compute(memory, second)
    gram = projector @ (first.keys.T @ first.keys + second.keys.T @ second.keys) + 10.0 * torch.eye(D_KEY)
    close(update, torch.linalg.solve(gram, projector @ second.keys.T @ second.residuals).T)
    used = torch.eye(D_KEY) - projector
    assert (update @ used).norm() < 1e-12 * update.norm()


def test_edit_weights_count_an_edit_several_times():
    c0, asked = moment(), system(4, 21)
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    solver = LeastSquares([BaseStatistics(2.0)], edit_weights=EditWeights(5.0))
    weighted = EditSystem(asked.keys, asked.keys, asked.residuals, importance=weights)
    update, _ = solver.compute(solver.init(c0), weighted)
    gram = 2.0 * c0 + 5 * asked.keys.T @ torch.diag(weights) @ asked.keys
    close(update, 5 * asked.residuals.T @ torch.diag(weights) @ asked.keys @ torch.linalg.inv(gram))


def run_stream(solver, c0, batches, start=None):
    """Feed batches of (keys, values); return the memory and the total change."""
    memory, change = solver.init(c0), torch.zeros(D_OUT, D_KEY, dtype=torch.float64)
    start = torch.zeros_like(change) if start is None else start
    for keys, values in batches:
        changes = keys @ change.T
        asked = EditSystem(keys, keys, values - keys @ start.T - changes, changes)
        update, memory = solver.compute(memory, asked)
        change = change + update
    return memory, change


PARTS = {
    "encore": lambda: LeastSquares([BaseStatistics(2.0), NormPenalty(0.3)], PastEdits()),
    "weighted": lambda: LeastSquares([BaseStatistics(2.0)], PastEdits(), edit_weights=EditWeights(3.0)),
    "null space": lambda: LeastSquares([NormPenalty(1.0)], PastEdits(), NullSpace(1e-1)),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_retired_edit_was_never_there(name):
    c0, start = moment(), randn(D_OUT, D_KEY, seed=7)
    batches = [(randn(4, D_KEY, seed=b), randn(4, D_OUT, seed=100 + b)) for b in range(12)]
    memory, change = run_stream(PARTS[name](), c0, batches, start)
    gone = [5, 6, 17, 30]
    update, memory = PARTS[name]().retire(memory, gone, change)
    kept = [
        tuple(part[[i for i in range(4) if 4 * b + i not in gone]] for part in batch) for b, batch in enumerate(batches)
    ]
    expected_memory, expected = run_stream(PARTS[name](), c0, kept, start)
    close(change + update, expected, 1e-8)
    close(memory["inverse"], expected_memory["inverse"], 1e-8)


@pytest.mark.parametrize("name", PARTS)
def test_with_all_edits_retired_solver_and_weight_are_as_at_the_start(name):
    solver, c0 = PARTS[name](), moment()
    memory, change = run_stream(solver, c0, [(randn(4, D_KEY, seed=b), randn(4, D_OUT, seed=b)) for b in range(3)])
    assert solver.count(memory) == 12
    first, memory = solver.retire(memory, range(5), change)
    assert solver.count(memory) == 7
    second, memory = solver.retire(memory, range(5, 12), change + first)
    assert solver.count(memory) == 0
    assert not (change + first + second).any()
    fresh = solver.init(c0)
    assert solver.count(fresh) == 0
    assert all(torch.equal(memory[part], fresh[part]) for part in fresh)
    back, _ = solver.restore(memory, range(12), torch.zeros_like(change))
    close(back, change, 1e-8)


def test_retiring_what_little_holds_back_loses_digits_but_not_the_solution():
    solver = LeastSquares([NormPenalty(1e-3)], PastEdits())
    few = (randn(3, D_KEY, seed=3), randn(3, D_OUT, seed=4))
    huge = [(100 * randn(3, D_KEY, seed=1), randn(3, D_OUT, seed=2)), few]
    memory, change = run_stream(solver, moment(), huge)
    update, memory = solver.retire(memory, [0, 1, 2], change)
    _, expected = run_stream(solver, moment(), huge[1:])
    close(change + update, expected, 1e-5)
    assert solver.drift(memory) < 1e-6


def test_the_inverse_stays_true_over_ten_thousand_edits():
    solver = LeastSquares([BaseStatistics(100.0), NormPenalty(0.1)], PastEdits())
    c0 = moment(decades=5)
    memory = solver.init(c0)
    for batch in range(100):
        _, memory = solver.compute(memory, system(100, batch))
    assert solver.drift(memory) < 1e-9
    inverse = memory["inverse"]
    assert (inverse - inverse.T).norm() < 1e-12 * inverse.norm()
    assert torch.linalg.eigvalsh(inverse).min() > 0
    close(inverse, torch.linalg.inv(memory["gram"] + memory["keys"].T @ memory["keys"]), 1e-8)


def test_a_drifted_inverse_is_computed_anew(monkeypatch):
    monkeypatch.setattr(least_squares, "CHECK_EVERY", 10)
    solver = LeastSquares([BaseStatistics(1.0), NormPenalty(0.1)], PastEdits())
    _, memory = solver.compute(solver.init(moment()), system(9, 1))
    memory["inverse"] += 1e-3 * randn(D_KEY, D_KEY, seed=5)
    assert solver.drift(memory) > 1e-6
    _, memory = solver.compute(memory, system(9, 2))
    assert solver.drift(memory) < 1e-9


def test_the_memory_of_edits_grows_in_place_and_is_saved_without_its_room():
    solver = LeastSquares([BaseStatistics(1.0), NormPenalty(0.1)], PastEdits())
    memory, asked, moved = solver.init(moment()), [system(3, seed) for seed in range(100)], 0
    for one in asked:
        before = memory["keys"].data_ptr() if "keys" in memory else 0
        _, memory = solver.compute(memory, one)
        moved += memory["keys"].data_ptr() != before
    assert moved < 15  # not in each of 100 batches
    assert torch.equal(memory["keys"], torch.cat([one.keys for one in asked]))
    assert torch.equal(memory["changes"], torch.cat([one.residuals for one in asked]))
    for part in solver.saved(memory).values():
        assert part.untyped_storage().nbytes() == part.numel() * part.element_size()


def test_the_first_batch_is_not_written_into():
    solver = LeastSquares([BaseStatistics(1.0), NormPenalty(0.1)], PastEdits())
    keys, residuals = randn(9, D_KEY, seed=1), randn(9, D_OUT, seed=2)
    given = keys.clone()
    memory = solver.init(moment())
    for part in (slice(0, 4), slice(4, 6)):  # a view of a larger tensor has room behind it that is not the memory's
        mark = solver.mark(memory)
        _, memory = solver.compute(memory, EditSystem(keys[part], keys[part], residuals[part]))
    assert torch.equal(keys, given)
    memory = solver.rolled_back(memory, mark)
    _, memory = solver.compute(memory, EditSystem(keys[6:], keys[6:], residuals[6:]))
    assert torch.equal(memory["keys"], keys[[0, 1, 2, 3, 6, 7, 8]])


@pytest.mark.parametrize("null_space", [None, NullSpace(0.05)])
def test_the_drift_is_measured_against_all_edits_that_count(null_space, monkeypatch):
    monkeypatch.setattr(least_squares, "EDITS_AT_ONCE", 4)
    solver = LeastSquares([NormPenalty(0.5)], PastEdits(), null_space)
    memory, change = run_stream(solver, moment(), [(randn(5, D_KEY, seed=s), randn(5, D_OUT, seed=s)) for s in (1, 2)])
    _, memory = solver.retire(memory, [1, 7], change)
    keys = memory["keys"][memory["counts"]]
    keys = keys @ memory["basis"] if null_space else keys
    gram = memory["gram"] + keys.T @ keys
    x = torch.randn(len(gram), 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    close(memory["probe"], gram @ x)
    close(solver.completed(solver.saved(memory), moment())["probe"], gram @ x)
    close(solver._factored(memory)["inverse"], torch.linalg.inv(gram))


def test_float32_is_near_float64():
    exact = LeastSquares([BaseStatistics(10.0), NormPenalty(0.1)], PastEdits())
    single = LeastSquares([BaseStatistics(10.0), NormPenalty(0.1)], PastEdits(), dtype="float32")
    wide, narrow = exact.init(moment()), single.init(moment())
    for batch in range(20):
        expected, wide = exact.compute(wide, system(5, batch))
        found, narrow = single.compute(narrow, system(5, batch))
        assert found.dtype == torch.float32
        close(found.double(), expected, 1e-3)


def test_a_checkpoint_needs_no_second_matrix():
    solver = LeastSquares([BaseStatistics(10.0), NormPenalty(0.1)], PastEdits())
    _, memory = solver.compute(solver.init(moment()), system(5, 1))
    saved = solver.saved(memory)
    assert "gram" not in saved
    completed = solver.completed(saved, moment())
    assert all(torch.equal(completed[name], memory[name]) for name in memory)


def test_a_completed_memory_has_the_jitter_of_the_first_factorisation():
    basis, _ = torch.linalg.qr(randn(200, 200, seed=1))
    values = torch.ones(200, dtype=torch.float64)
    values[0] = 0
    solver, c0 = LeastSquares([BaseStatistics(1.0)], PastEdits()), basis @ torch.diag(values) @ basis.T
    with pytest.warns(UserWarning, match="1 of 200"):
        memory = solver.init(c0)
    assert torch.equal(solver.completed(solver.saved(memory), c0)["gram"], memory["gram"])
