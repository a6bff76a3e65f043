"""EvoEdit's solver against naive float64 formulas, and what its null space promises."""

import logging

import pytest
import torch

from lke_lightning.edits import EditError
from lke_lightning.stage_two.preservation import BaseStatistics, NormPenalty, NullSpace
from lke_lightning.stage_two.solvers import EditSystem, ShrinkingNullSpace
from tests.stage_two.solvers.problems import D_KEY, D_OUT, close, moment, randn, system

PENALTY, THRESHOLD = 0.7, 0.1


@pytest.fixture
def solver():
    return ShrinkingNullSpace([NormPenalty(PENALTY)], NullSpace(THRESHOLD))


def rank(memory):
    return round(memory["projector"].trace().item())


def test_it_is_the_published_form_of_either_size(solver):
    """n x n as it is solved, and d x d as in AlphaEdit's code, with P from a fresh decomposition of all past keys."""
    memory, past = solver.init(moment()), torch.zeros(0, D_KEY, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(moment())
    unused = vectors[:, values < THRESHOLD] @ vectors[:, values < THRESHOLD].T
    for seed in range(3):
        used, _ = torch.linalg.qr(unused @ past.T)
        projector = unused - used @ used.T
        asked = system(3, seed)
        update, memory = solver.compute(memory, asked)
        small = asked.keys @ projector @ asked.keys.T + PENALTY * torch.eye(3, dtype=torch.float64)
        close(update, asked.residuals.T @ torch.linalg.solve(small, asked.keys @ projector))
        large = projector @ asked.keys.T @ asked.keys + PENALTY * torch.eye(D_KEY, dtype=torch.float64)
        close(update, torch.linalg.solve(large, projector @ asked.keys.T @ asked.residuals).T)
        past = torch.cat([past, asked.keys])


def test_an_update_leaves_the_outputs_at_earlier_keys_and_in_used_directions(solver):
    memory, past = solver.init(moment()), torch.zeros(0, D_KEY, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(moment())
    start = rank(memory)
    for seed in range(4):
        asked = system(3, seed)
        update, memory = solver.compute(memory, asked)
        assert (update @ past.T).norm() < 1e-12 * update.norm()
        assert (update @ vectors[:, values >= THRESHOLD]).norm() < 1e-12 * update.norm()
        assert (update @ asked.keys.T).norm() > 0.1 * update.norm()
        past = torch.cat([past, asked.keys])
        assert rank(memory) == start - len(past)
    projector = memory["projector"]
    close(projector @ projector, projector, 1e-12)


def test_keys_whose_directions_are_used_up_are_counted_and_not_written(solver, caplog):
    first, other = system(3, 1), system(1, 2)
    _, memory = solver.compute(solver.init(moment()), first)
    left = rank(memory)
    again = torch.cat([2 * first.keys[:2], other.keys])
    asked = EditSystem(again, again, randn(3, D_OUT, seed=9))
    shares = solver.fulfilment(memory, asked)
    assert shares[:2].max() < 1e-9 < shares[2]
    with caplog.at_level(logging.WARNING, "lke_lightning"):
        update, memory = solver.compute(memory, asked)
    assert (update @ again[:2].T).norm() < 1e-9 * update.norm()
    assert "2 of 3 edits are not written, 2 since the start" in caplog.text
    assert f"{left - 1} of {memory['basis'].shape[1]} directions are left" in caplog.text
    assert rank(memory) == left - 1
    with caplog.at_level(logging.WARNING, "lke_lightning"):
        _, memory = solver.compute(memory, EditSystem(again[:1], again[:1], randn(1, D_OUT, seed=9)))
    assert "1 of 1 edits are not written, 3 since the start" in caplog.text


def test_edits_beyond_the_room_write_nothing(solver):
    _, memory = solver.compute(solver.init(moment()), system(D_KEY, 1))
    assert rank(memory) == 0
    update, _ = solver.compute(memory, system(3, 2))
    assert update.norm() < 1e-9


@pytest.mark.parametrize("wanted", [0.3, 0.9])
def test_the_median_of_what_single_edits_write_is_the_wanted_fulfilment(wanted):
    solver, keys = ShrinkingNullSpace([NormPenalty(fulfilment=wanted)], NullSpace(share=0.1)), randn(9, D_KEY, seed=50)
    memory, residual, shares = solver.init(moment(), keys), randn(1, D_OUT, seed=3), []
    for key in keys.unsqueeze(1):
        given = key @ solver.compute(memory, EditSystem(key, key, residual))[0].T
        shares.append((given / residual).mean())
    assert torch.stack(shares).median().item() == pytest.approx(wanted)
    close(solver.fulfilment(memory, EditSystem(keys, keys, randn(9, D_OUT, seed=3))), torch.stack(shares))


def test_an_edit_that_weighs_twice_is_two_edits(solver):
    asked, c0 = system(1, 4), moment()
    twice = EditSystem(*(part.repeat(2, 1) for part in (asked.keys, asked.keys, asked.residuals)))
    heavy = EditSystem(asked.keys, asked.keys, asked.residuals, importance=torch.tensor([2.0]))
    close(solver.compute(solver.init(c0), heavy)[0], solver.compute(solver.init(c0), twice)[0])


def test_what_is_saved_goes_on_to_the_bit_and_what_is_marked_returns(solver):
    _, memory = solver.compute(solver.init(moment()), system(3, 1))
    mark = solver.mark(memory)
    saved = solver.completed({name: part.clone() for name, part in solver.saved(memory).items()}, moment())
    expected, after = solver.compute(memory, system(3, 2))
    assert torch.equal(solver.compute(saved, system(3, 2))[0], expected)
    assert torch.equal(solver.compute(solver.rolled_back(after, mark), system(3, 2))[0], expected)
    fresh, cleared = solver.init(moment()), solver.cleared(after)
    assert cleared.keys() == fresh.keys()
    assert all(torch.equal(cleared[part], fresh[part]) for part in fresh)


def test_terms_that_mean_nothing_in_a_null_space_are_refused():
    with pytest.raises(EditError, match="NormPenalty alone: take the other preservation terms out"):
        ShrinkingNullSpace([NormPenalty(1.0), BaseStatistics(1.0)], NullSpace(THRESHOLD))
