"""zsRE's accuracies and locality, against loops over tokens."""

import random

import pytest
import torch

from lke_lightning.metrics import Locality, TokenAccuracy, agreement


def test_published_and_corrected_accuracy_against_loops():
    chance = random.Random(0)
    metric, published, corrected = TokenAccuracy(), [], []
    for _ in range(20):
        answers = [[chance.random() < 0.7 for _ in range(chance.randint(1, 4))] for _ in range(chance.randint(1, 3))]
        metric.update(torch.tensor([sum(a) for a in answers]), torch.tensor([len(a) for a in answers]))
        published.append(sum(sum(a) / len(a) for a in answers) / len(answers))
        corrected.append(sum(all(a) for a in answers) / len(answers))
    found = metric.compute()
    assert found["token_accuracy"] == pytest.approx(sum(published) / 20)
    assert found["whole_answer"] == pytest.approx(sum(corrected) / 20)
    assert found["token_accuracy"] > found["whole_answer"]


def test_locality_compares_with_what_the_model_said_not_with_what_is_true():
    before, after, tokens = [3, 4, 5, 6], [3, 9, 5, 6], [1, 1, 2]
    metric = Locality()
    metric.update(torch.tensor(after), torch.tensor(before), torch.tensor(tokens))
    assert metric.compute()["token_accuracy"] == pytest.approx((1 + 0 + 1) / 3)
    assert agreement(torch.tensor(before), torch.tensor(before), torch.tensor(tokens)).min() == 1


def test_records_without_questions_count_for_nothing():
    metric = TokenAccuracy()
    metric.update(torch.zeros(0), torch.zeros(0))
    assert metric.compute()["token_accuracy"].isnan()
    metric.update(torch.tensor([1]), torch.tensor([1]))
    assert metric.compute()["whole_answer"] == 1
