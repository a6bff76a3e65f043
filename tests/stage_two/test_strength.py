"""Strengths that are found for the first edits, against keys of plain forwards, and what is said of them."""

import re
import warnings

import pytest
import torch

from lke_lightning.stage_two import strength
from lke_lightning.stage_two.preservation import BaseStatistics, NormPenalty, PastEdits
from lke_lightning.stage_two.solvers import EqualityConstrained, LeastSquares
from lke_lightning.stage_two.update import WeightUpdate
from tests.stage_two.test_update import CONTEXTS, REQUESTS, Unit, make_model, plain_states, prepared


def test_a_fulfilment_is_found_for_the_keys_of_the_unedited_model():
    """Against keys of plain forwards, with C0 = I: the gain of a key is its squared length."""
    model = make_model()
    states = [[plain_states(model, one, template)[0] for template in CONTEXTS] for one in REQUESTS]
    for layer in model.layers:  # keys of the edited model would differ
        model.weight(layer).add(torch.full_like(model.weight(layer).delta, 0.1))
    stage = WeightUpdate(LeastSquares([BaseStatistics(fulfilment=0.75)], PastEdits()), statistics=Unit())
    stage.prepare(model, REQUESTS, CONTEXTS)
    for layer in model.layers:
        keys = torch.stack([torch.stack([inputs[layer] for inputs in of_one]).mean(0) for of_one in states])
        gain = keys.square().sum(1).median().item()
        assert stage.strengths[layer] == pytest.approx({"factor": gain / 3, "fulfilment": 0.75}, rel=1e-5)


def weighing(share):
    """A solver whose absolute weight means a given fulfilment."""
    _, stage = prepared(LeastSquares([NormPenalty(fulfilment=share)]))
    return stage.strengths[1]["factor"]


@pytest.mark.parametrize(("share", "says"), [(0.29, "hardly show"), (0.01, "hardly show"), (0.992, "nothing is prot")])
def test_weights_of_another_model_are_warned_of_with_those_that_would_do(share, says):
    weight = weighing(share)
    with pytest.warns(UserWarning, match=f"{says}.*Give a fulfilment") as said:
        prepared(LeastSquares([NormPenalty(weight)]))
    times = float(re.search(r"weights ([\d.e+-]+) times", str(said[0].message)).group(1))
    _, stage = prepared(LeastSquares([NormPenalty(weight * times)]))
    assert stage.strengths[1]["fulfilment"] == pytest.approx(0.75, abs=2e-3)


def test_weights_that_nothing_is_left_of_are_warned_of():
    with pytest.warns(UserWarning, match=r"written to 100\.0%"):
        _, stage = prepared(LeastSquares([NormPenalty(1e-30)]))
    assert stage.strengths[1]["fulfilment"] == 1


@pytest.mark.parametrize("solver", [
    *(lambda share=share: LeastSquares([NormPenalty(weighing(share))]) for share in (0.31, 0.75, 0.989)),
    *(lambda share=share: LeastSquares([NormPenalty(fulfilment=share)]) for share in (0.1, 0.995)),  # asked for
    lambda: EqualityConstrained([BaseStatistics(1.0)]),
])  # fmt: skip
def test_no_other_strength_is_warned_of(solver):
    given = solver()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared(given)
        WeightUpdate(LeastSquares([NormPenalty(1e-9)]), statistics=Unit()).prepare(make_model())  # without edits


def test_so_many_edits_count(monkeypatch):
    monkeypatch.setattr(strength, "FIRST", 1)
    (_, first), (_, both), (_, alone) = (
        prepared(LeastSquares([BaseStatistics(fulfilment=0.75)]), requests=requests)
        for requests in (REQUESTS, REQUESTS[::-1], REQUESTS[:1])
    )
    assert first.strengths == alone.strengths != both.strengths
