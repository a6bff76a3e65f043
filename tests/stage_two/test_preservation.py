"""What preservation terms add up to, and what they refuse."""

import pytest
import torch

from lke_lightning.edits import EditError
from lke_lightning.stage_two.preservation import (
    BaseStatistics,
    EditWeights,
    NormPenalty,
    NullSpace,
    PastEdits,
    check_preservation,
    total_gram,
    wanted_fulfilment,
)
from lke_lightning.stage_two.solvers import EqualityConstrained, LeastSquares
from tests.stage_two.solvers.problems import D_KEY, close, moment, randn


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
@pytest.mark.parametrize(("terms", "says"), [
    ([], "is empty"),
    ([NormPenalty(0), BaseStatistics(0)], "weight 0"),
    ([NormPenalty(proportion=0.1)], "in proportion"),
    ([BaseStatistics(0), NormPenalty(proportion=0.1)], "in proportion"),
])  # fmt: skip
def test_preservation_that_asks_for_nothing_is_refused(make, terms, says):
    with pytest.raises(EditError, match=f"preservation .*{says}.*weight above 0"):
        make(terms)


def test_a_weight_counts_before_a_fulfilment_and_both_before_a_proportion():
    assert vars(BaseStatistics(3.0, fulfilment=0.5)) == {"weight": 3.0, "fulfilment": None}
    assert vars(NormPenalty(3.0, 0.5, 0.1)) == {"weight": 3.0, "fulfilment": None, "proportion": None}
    assert vars(NormPenalty(None, 0.5, 0.1)) == {"weight": None, "fulfilment": 0.5, "proportion": None}
    assert vars(NormPenalty(proportion=0.1)) == {"weight": None, "fulfilment": None, "proportion": 0.1}
    assert vars(NullSpace(3.0, share=0.5)) == {"threshold": 3.0, "share": None}


def test_terms_are_in_proportion_to_the_weight_of_the_statistics_or_leave_the_factor_open():
    c0 = moment()
    unit = torch.eye(D_KEY, dtype=torch.float64) * c0.diagonal().median()
    close(total_gram([BaseStatistics(5.0), NormPenalty(2.0)], c0), 5 * c0 + 2 * torch.eye(D_KEY))
    close(total_gram([BaseStatistics(5.0), NormPenalty(proportion=0.1)], c0), 5 * (c0 + 0.1 * unit))
    open_terms = [BaseStatistics(fulfilment=0.8), NormPenalty(proportion=0.1)]
    close(total_gram(open_terms, c0), c0 + 0.1 * unit)
    close(total_gram([NormPenalty(fulfilment=0.8)], c0), torch.eye(D_KEY, dtype=torch.float64))
    assert wanted_fulfilment(open_terms) == 0.8
    assert wanted_fulfilment([BaseStatistics(5.0), NormPenalty(proportion=0.1)]) is None


@pytest.mark.parametrize("part", [BaseStatistics, NormPenalty])
@pytest.mark.parametrize("value", [0, 1, 1.5, -0.1, float("nan"), float("inf")])
def test_fulfilments_that_cannot_be_are_refused(part, value):
    with pytest.raises(EditError, match=rf"{part.__name__}.fulfilment is .*above 0 and below 1"):
        part(fulfilment=value)


@pytest.mark.parametrize("value", [0, 1, float("nan")])
def test_shares_and_proportions_that_cannot_be_are_refused(value):
    with pytest.raises(EditError, match=r"NullSpace.share is .*above 0 and below 1"):
        NullSpace(share=value)
    with pytest.raises(EditError, match=r"NormPenalty.proportion is .*at least 0"):
        NormPenalty(proportion=-1 if value == value else value)


@pytest.mark.parametrize(("part", "says"), [(BaseStatistics, "weight nor a fulfilment"), (NullSpace, "nor a share")])
def test_a_part_without_a_strength_is_refused(part, says):
    with pytest.raises(EditError, match=f"{part.__name__} has neither .*{says}: give it one of them"):
        part()


@pytest.mark.parametrize(
    "others", [[NormPenalty(2.0)], [NormPenalty(0.0)], [BaseStatistics(2.0)], [NormPenalty(fulfilment=0.5)]]
)
def test_a_fulfilment_stands_alone(others):
    found = rf"BaseStatistics .* weights of all, and {type(others[0]).__name__} has a strength of its own"
    with pytest.raises(EditError, match=found):
        check_preservation([BaseStatistics(fulfilment=0.8), *others])


@pytest.mark.parametrize("share", [0.001, 0.1, 0.6])
def test_the_directions_of_a_null_space_hold_at_most_their_share(share):
    c0 = moment(decades=5)
    basis = NullSpace(share=share).basis(*torch.linalg.eigh(c0))
    rank = basis.shape[1]
    close(basis.T @ basis, torch.eye(rank, dtype=torch.float64))
    held = (basis.T @ c0 @ basis).trace() / c0.trace()
    assert held < share
    values = torch.linalg.eigvalsh(c0)
    assert values[: rank + 1].sum() >= share * values.sum()  # one direction more would be too many
    scaled = NullSpace(share=share).basis(*torch.linalg.eigh(1e6 * c0))
    key = randn(D_KEY, seed=3)
    close(scaled @ (scaled.T @ key), basis @ (basis.T @ key), 1e-6)


def test_a_share_that_no_direction_keeps_to_is_refused():
    with pytest.raises(EditError, match="with share 1e-09 ordinary text uses every direction"):
        NullSpace(share=1e-9).basis(*torch.linalg.eigh(moment()))
