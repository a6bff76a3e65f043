"""zsRE's accuracies and locality, against loops over tokens."""

import random

import torch

from lke_lightning.metrics import agreement, token_accuracies


def test_published_and_corrected_accuracy_against_loops():
    chance = random.Random(0)
    answers = [[chance.random() < 0.7 for _ in range(chance.randint(1, 4))] for _ in range(40)]
    right, tokens = torch.tensor([sum(a) for a in answers]), torch.tensor([len(a) for a in answers])
    found = token_accuracies(right, tokens)
    assert found[:, 0].tolist() == [sum(a) / len(a) for a in answers]
    assert found[:, 1].tolist() == [float(all(a)) for a in answers]
    assert found[:, 0].mean() > found[:, 1].mean()


def test_locality_compares_with_what_the_model_said_not_with_what_is_true():
    before, after, tokens = torch.tensor([3, 4, 5, 6]), torch.tensor([3, 9, 5, 6]), torch.tensor([1, 1, 2])
    assert agreement(after, before, tokens).tolist() == [[1, 1], [0, 0], [1, 1]]
    assert agreement(torch.tensor([3, 4, 5, 7]), before, tokens).tolist() == [[1, 1], [1, 1], [0.5, 0]]
    assert agreement(before, before, tokens).min() == 1
