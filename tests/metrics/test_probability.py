"""Probabilities of answers and their distribution, by hand."""

import math

import pytest
import torch

from lke_lightning.metrics import distribution, histogram, probabilities


def test_per_token_is_the_geometric_mean_and_joint_the_product():
    tokens = [[0.5], [0.9, 0.4], [0.1, 0.2, 0.3]]
    nll = torch.tensor([-sum(map(math.log, answer)) / len(answer) for answer in tokens])
    found = probabilities(nll, torch.tensor([1, 2, 3]))
    assert found[:, 1].tolist() == pytest.approx([0.5, 0.36, 0.006], rel=1e-5)
    assert found[:, 0].tolist() == pytest.approx([0.5, 0.6, 0.006 ** (1 / 3)], rel=1e-5)


def test_every_value_is_in_its_bin():
    values = torch.tensor([0.0, 0.049, 0.05, 0.5, 0.949, 0.95, 1.0], dtype=torch.float64)
    counts = histogram(values)
    assert counts.sum() == 7
    assert [counts[i].item() for i in (0, 1, 10, 18, 19)] == [2, 1, 1, 1, 2]


def test_the_distribution_of_answers():
    nll = torch.tensor([0.0, math.log(2), math.log(4)])
    found = distribution(nll, torch.tensor([3, 2, 1]))
    assert found["facts"] == 3
    assert found["per_token"]["mean"] == pytest.approx((1 + 1 / 2 + 1 / 4) / 3)
    assert found["joint"]["mean"] == pytest.approx((1 + 1 / 4 + 1 / 4) / 3)
    assert sum(found["joint"]["histogram"]) == 3


def test_no_facts_have_no_mean():
    found = distribution(torch.zeros(0), torch.zeros(0))
    assert math.isnan(found["joint"]["mean"])
    assert found["facts"] == sum(found["joint"]["histogram"]) == 0
