"""Equality-constrained updates against naive float64 formulas."""

import pytest
import torch

from lke_lightning.edits import EditError
from lke_lightning.stage_two.preservation import BaseStatistics, EditWeights, NormPenalty
from lke_lightning.stage_two.solvers import EditSystem, EqualityConstrained, LeastSquares
from tests.stage_two.solvers.problems import D_KEY, D_OUT, close, moment, randn, system


def test_r_rome_maps_its_key_exactly():
    solver, asked = EqualityConstrained([BaseStatistics(1.0)]), system(1, 6)
    update, _ = solver.compute(solver.init(moment()), asked)
    close(asked.keys @ update.T, asked.residuals)


def test_rome_maps_the_bare_prompts_key_along_the_mean_keys_direction():
    c0, mean, bare = moment(), randn(1, D_KEY, seed=8), randn(1, D_KEY, seed=9)
    residual = randn(1, D_OUT, seed=10)
    solver = EqualityConstrained([BaseStatistics(1.0)])
    update, _ = solver.compute(solver.init(c0), EditSystem(mean, bare, residual))
    u = torch.linalg.solve(c0, mean[0])
    close(update, torch.outer(residual[0], u) / (u @ bare[0]))


def test_emmet_with_slack_is_memit_with_scaled_weight():
    c0, asked = moment(), system(5, 11)
    emmet = EqualityConstrained([BaseStatistics(7.0)], slack=0.1)
    memit = LeastSquares([BaseStatistics(0.7)])
    close(emmet.compute(emmet.init(c0), asked)[0], memit.compute(memit.init(c0), asked)[0])


def test_two_equal_keys_cannot_both_hold_exactly():
    keys = randn(1, D_KEY, seed=1).repeat(2, 1)
    solver = EqualityConstrained([NormPenalty(1.0)])
    with pytest.raises(EditError, match="same key"):
        solver.compute(solver.init(moment()), EditSystem(keys, keys, randn(2, D_OUT, seed=2)))


def test_equalities_do_not_weigh():
    keys, weights = randn(2, D_KEY, seed=1), torch.tensor([1.0, 2.0])
    solver = EqualityConstrained([NormPenalty(1.0)])
    with pytest.raises(EditError, match="need LeastSquares"):
        solver.compute(solver.init(moment()), EditSystem(keys, keys, randn(2, D_OUT, seed=2), importance=weights))


def test_emmets_slack_is_an_edit_weight():
    c0, asked = moment(), system(5, 11)
    emmet = EqualityConstrained([BaseStatistics(7.0)], slack=0.1)
    memit = LeastSquares([BaseStatistics(7.0)], edit_weights=EditWeights(10.0))
    close(emmet.compute(emmet.init(c0), asked)[0], memit.compute(memit.init(c0), asked)[0])
