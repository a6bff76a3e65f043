"""The inverse of statistics that are whole, nearly singular, singular and empty."""

import pytest
import torch

from lke_lightning.edits import EditError
from lke_lightning.stage_two.preservation import BaseStatistics, NormPenalty
from lke_lightning.stage_two.solvers import LeastSquares
from lke_lightning.stage_two.solvers.inversion import invert
from tests.stage_two.solvers.problems import D_KEY, close, randn


def test_singular_statistics_are_refused_and_a_norm_penalty_mends_them():
    few = randn(D_KEY - 5, D_KEY, seed=3)
    singular = few.T @ few / len(few)
    with pytest.raises(EditError, match="singular"):
        LeastSquares([BaseStatistics(1.0)]).init(singular)
    assert LeastSquares([BaseStatistics(1.0), NormPenalty(1e-3)]).init(singular)["inverse"].isfinite().all()


def test_statistics_of_nothing_are_not_called_singular():
    with pytest.raises(EditError, match="add up to zero"):
        LeastSquares([BaseStatistics(1.0)]).init(torch.zeros(D_KEY, D_KEY))


def test_jitter_mends_a_few_empty_directions_only():
    basis, _ = torch.linalg.qr(randn(200, 200, seed=1))
    values = torch.ones(200, dtype=torch.float64)
    values[0] = 0
    with pytest.warns(UserWarning, match="1 of 200 directions"):
        inverse, jitter = invert(basis @ torch.diag(values) @ basis.T)
    assert jitter > 1e-8
    close(torch.linalg.inv(inverse), basis @ torch.diag(values + jitter) @ basis.T, 1e-6)
    values[:3] = 0
    with pytest.raises(EditError, match="3 of 200"):
        invert(basis @ torch.diag(values) @ basis.T)
