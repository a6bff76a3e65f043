"""What preservation terms refuse."""

import pytest
import torch

from lke_lightning.edits import EditError
from lke_lightning.stage_two.preservation import BaseStatistics, EditWeights, NormPenalty, NullSpace, PastEdits
from lke_lightning.stage_two.solvers import EqualityConstrained, LeastSquares
from tests.stage_two.solvers.problems import moment


@pytest.mark.parametrize("threshold", [1e-9, 10.0])
def test_a_null_space_of_nothing_or_everything_is_refused(threshold):
    with pytest.raises(EditError, match="choose one in between"):
        NullSpace(threshold).basis(*torch.linalg.eigh(moment()))


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("part", [BaseStatistics, NormPenalty, PastEdits, EditWeights])
def test_weights_that_cannot_be_are_refused(part, value):
    with pytest.raises(EditError, match=rf"{part.__name__}.weight is .*finite number .*at most 1e\+15"):
        part(value)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_thresholds_and_slack_that_cannot_be_are_refused(value):
    with pytest.raises(EditError, match=r"NullSpace.threshold is .*finite number above 0"):
        NullSpace(value)
    with pytest.raises(EditError, match=r"EqualityConstrained.slack is .*finite number at least 0"):
        EqualityConstrained([BaseStatistics(1.0)], slack=value)


@pytest.mark.parametrize("make", [LeastSquares, EqualityConstrained])
@pytest.mark.parametrize(("terms", "says"), [([], "is empty"), ([NormPenalty(0), BaseStatistics(0)], "weight 0")])
def test_preservation_that_asks_for_nothing_is_refused(make, terms, says):
    with pytest.raises(EditError, match=f"preservation .*{says}.*weight above 0"):
        make(terms)
