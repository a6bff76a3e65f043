"""Means over records and the bootstrap, against loops and the textbook."""

import math
import random

import pytest
import torch

from lke_lightning.metrics import harmonic_mean, interval, record_means, resampled_means
from lke_lightning.metrics import records as module


def test_means_of_records_against_a_loop():
    values = torch.tensor([[1.0, 2.0], [3.0, math.nan], [5.0, 6.0]])
    found = record_means(values, torch.tensor([2, 0, 1]))
    assert found[0].tolist() == [2.0, pytest.approx(math.nan, nan_ok=True)]
    assert found[1].isnan().all()
    assert found[2].tolist() == [5.0, 6.0]


def test_draws_against_drawing_with_a_list(monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 21)  # three draws at a time
    values = torch.tensor(
        [[0.0, 1.0], [1.0, math.nan], [2.0, 4.0], [7.0, math.nan], [1.0, 2.0], [5.0, 5.0], [3.0, 9.0]]
    )
    found = resampled_means(values, resamples=10, seed=3)
    generator = torch.Generator().manual_seed(3)
    expected = []
    for draws in (3, 3, 3, 1):
        for drawn in torch.randint(7, (draws, 7), generator=generator).tolist():
            columns = []
            for column in range(2):
                met = [values[i, column].item() for i in drawn if not values[i, column].isnan()]
                columns.append(sum(met) / len(met))
            expected.append(columns)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_bounds_are_those_of_the_normal_distribution_where_it_applies():
    chance = random.Random(0)
    values = torch.tensor([[float(chance.random() < 0.3)] for _ in range(2000)], dtype=torch.float64)
    low, high = interval(resampled_means(values)[:, 0])
    mean = values.mean().item()
    half = 1.96 * (mean * (1 - mean) / 2000) ** 0.5
    assert (low, high) == (pytest.approx(mean - half, abs=0.15 * half), pytest.approx(mean + half, abs=0.15 * half))


def test_bounds_hold_the_truth_as_often_as_they_say():
    held = 0
    for trial in range(200):
        generator = torch.Generator().manual_seed(trial)
        values = (torch.rand(100, 1, generator=generator) < 0.5).double()
        low, high = interval(resampled_means(values, 300, seed=trial)[:, 0])
        held += low <= 0.5 <= high
    assert 180 <= held <= 199


def test_the_same_seed_gives_the_same_bounds_and_leaves_other_random_numbers_alone():
    values, state = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)), torch.get_rng_state()
    assert torch.equal(resampled_means(values), resampled_means(values))
    assert not torch.equal(resampled_means(values), resampled_means(values, seed=1))
    assert torch.equal(state, torch.get_rng_state())


def test_nothing_has_no_bounds():
    assert interval(resampled_means(torch.zeros(0, 2))[:, 0]) is None
    assert interval(resampled_means(torch.full((4, 1), math.nan))[:, 0]) is None
    assert harmonic_mean([0.5, math.nan]) is None
