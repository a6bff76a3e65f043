"""The published definitions, computed by hand."""

import math

import pytest
import torch

from lke_lightning.metrics import Preference, harmonic_mean


def test_means_are_taken_in_a_record_first():
    metric = Preference()
    metric.update(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]), torch.tensor([True, False]))
    metric.update(torch.tensor([0.5]), torch.tensor([4.0]), torch.tensor([True]))
    found = metric.compute()
    assert found["success"] == pytest.approx((0.5 + 1) / 2)
    assert found["accuracy"] == pytest.approx((0.5 + 1) / 2)
    first = (math.exp(-1) - math.exp(-2) + math.exp(-3) - math.exp(-2)) / 2
    assert found["magnitude"] == pytest.approx((first + math.exp(-0.5) - math.exp(-4)) / 2)


def test_a_tie_is_a_failure():
    metric = Preference()
    metric.update(torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([False]))
    assert metric.compute()["success"] == 0


def test_without_a_rival_only_accuracy_is_defined():
    metric = Preference()
    metric.update(torch.tensor([1.0]), torch.tensor([math.nan]), torch.tensor([True]))
    found = metric.compute()
    assert found["success"].isnan()
    assert found["magnitude"].isnan()
    assert found["accuracy"] == 1


def test_a_record_without_prompts_counts_for_nothing():
    metric = Preference()
    metric.update(torch.tensor([0.1]), torch.tensor([2.0]), torch.tensor([True]))
    metric.update(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    assert metric.compute()["success"] == 1


@pytest.mark.parametrize(  # published rows: efficacy, paraphrase, neighbourhood, S
    ("row", "expected"),
    [((94.04, 79.91, 57.90), 74.22), ((93.21, 78.04, 59.95), 74.58), ((88.77, 78.19, 60.07), 73.707)],
)
def test_score_is_the_published_harmonic_mean(row, expected):
    assert harmonic_mean(list(row)) == pytest.approx(expected, abs=0.01)


def test_score_of_nothing_and_of_zero():
    assert harmonic_mean([0.5, None, 0.5]) is None
    assert harmonic_mean([0.5, 0.0, 0.5]) == 0
