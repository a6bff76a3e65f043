"""The published definitions, computed by hand."""

import math

import pytest
import torch

from lke_lightning.metrics import MEASURES, harmonic_mean, preferences


def prefer(wanted, other, correct):
    [row] = preferences(torch.tensor([wanted]), torch.tensor([other]), torch.tensor([correct])).tolist()
    return dict(zip(MEASURES, row, strict=True))


def test_every_prompt_has_its_own_row():
    wanted, other = [1.0, 3.0, 0.5], [2.0, 2.0, 4.0]
    found = preferences(torch.tensor(wanted), torch.tensor(other), torch.tensor([True, False, True]))
    assert found[:, 0].tolist() == [1, 0, 1]
    assert found[:, 1].tolist() == pytest.approx(
        [math.exp(-a) - math.exp(-b) for a, b in zip(wanted, other, strict=True)]
    )
    assert found[:, 2].tolist() == [1, 0, 1]


def test_a_tie_is_a_failure():
    assert prefer(1.0, 1.0, False)["success"] == 0


def test_without_a_rival_only_accuracy_is_defined():
    found = prefer(1.0, math.nan, True)
    assert math.isnan(found["success"])
    assert math.isnan(found["magnitude"])
    assert found["accuracy"] == 1


@pytest.mark.parametrize(  # published rows: efficacy, paraphrase, neighbourhood, S
    ("row", "expected"),
    [((94.04, 79.91, 57.90), 74.22), ((93.21, 78.04, 59.95), 74.58), ((88.77, 78.19, 60.07), 73.707)],
)
def test_score_is_the_published_harmonic_mean(row, expected):
    assert harmonic_mean(list(row)) == pytest.approx(expected, abs=0.01)


def test_score_of_nothing_and_of_zero():
    assert harmonic_mean([0.5, None, 0.5]) is None
    assert harmonic_mean([0.5, 0.0, 0.5]) == 0
