"""Stop rules and objectives on hand-made steps."""

import math

import pytest
import torch

from lke_lightning.edits import EditError
from lke_lightning.stage_one.contexts import ContextTemplates
from lke_lightning.stage_one.objectives import EssenceKL, NegativeLogLikelihood, StepView, TargetNorm
from lke_lightning.stage_one.stopping import EssenceKept, LossBelow, MostProbable, ProbabilityAbove
from lke_lightning.stage_one.target_space import NormBall

YES, BARE_ONLY, PREFIXED_ONLY, NO = [True, True], [True, False], [False, True], [False, False]


def step(history, quirks=False, nll=None, **fields):
    values = {
        "nll": torch.tensor([[1.0, 1.0]]) if nll is None else torch.tensor(nll),
        "most_probable": torch.tensor(history).unsqueeze(1),
        "change": torch.tensor([[3.0, 4.0]]),
        "initial_norm": torch.tensor([10.0]),
        "essence": torch.tensor([[0.25, 0.75]]).log(),
        "essence_before": torch.tensor([[0.5, 0.5]]).log(),
        "reference_quirks": quirks,
    }
    return StepView(**(values | fields))


@pytest.mark.parametrize(
    ("history", "extra_steps", "quirks", "stops"),
    [
        ([YES], 0, False, True),
        ([NO], 0, False, False),
        ([NO, YES], 1, False, False),
        ([YES, YES], 1, False, True),
        ([YES, NO, YES], 1, False, True),  # counted, not consecutive
        ([PREFIXED_ONLY], 0, False, False),
        ([PREFIXED_ONLY], 0, True, True),  # the published code does not look at the bare prompt
        ([BARE_ONLY], 0, True, False),
    ],
)
def test_most_probable(history, extra_steps, quirks, stops):
    assert MostProbable(extra_steps)(step(history, quirks), torch.zeros(1)).tolist() == [stops]


def test_with_the_bare_prompt_alone_quirks_change_nothing():
    history = torch.tensor([[[True]]])
    alone = step([YES], quirks=True, most_probable=history)
    assert MostProbable()(alone, torch.zeros(1)).tolist() == [True]


def test_loss_and_probability_rules():
    assert LossBelow(0.5)(step([NO]), torch.tensor([0.4])).tolist() == [True]
    assert LossBelow(0.5)(step([NO]), torch.tensor([0.5])).tolist() == [False]
    nll = [[-math.log(0.2), -math.log(0.6)]]  # mean probability 0.4
    assert ProbabilityAbove(0.39)(step([NO], nll=nll), torch.zeros(1)).tolist() == [True]
    assert ProbabilityAbove(0.41)(step([NO], nll=nll), torch.zeros(1)).tolist() == [False]


def test_the_target_said_and_the_essence_kept():
    divergence = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)  # of the step below
    for history, bound, stops in (([YES], 1.01, True), ([YES], 0.99, False), ([YES, BARE_ONLY], 1.01, False)):
        assert EssenceKept(bound * divergence)(step(history), torch.zeros(1)).tolist() == [stops]


def test_the_likelihood_counts_for_less_in_a_step_after_the_target_was_said():
    for history, factor in (([YES], 1), ([YES, NO], 0.1), ([NO, YES], 1), ([YES, BARE_ONLY, NO], 1)):
        found = NegativeLogLikelihood(2.0, after_success=0.1)(step(history, nll=[[1.0, 3.0]]))
        assert found.item() == pytest.approx(4.0 * factor)


def test_a_change_of_the_attention_has_a_penalty_of_its_own():
    view = step([NO], attention_change=torch.tensor([[0.0, 2.0]]), attention_norm=torch.tensor([4.0]))
    assert TargetNorm(0.5)(view).item() == pytest.approx(0.5 * (5 / 100 + 2 / 16))


def test_objectives_by_hand():
    view = step([NO], nll=[[1.0, 3.0]])
    assert NegativeLogLikelihood()(view).item() == pytest.approx(2.0)
    assert TargetNorm(0.5)(view).item() == pytest.approx(0.5 * 5 / 100)
    divergence = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert EssenceKL(0.0625)(view).item() == pytest.approx(0.0625 * divergence)


def test_target_norm_has_no_gradient_at_zero():
    change = torch.zeros(1, 2, requires_grad=True)
    TargetNorm(0.5)(step([NO], change=change)).sum().backward()
    assert change.grad.tolist() == [[0.0, 0.0]]


def test_norm_ball_scales_back_what_is_too_long_only():
    change = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    found = NormBall(0.25).project(change, torch.tensor([10.0, 10.0, 10.0]))
    torch.testing.assert_close(found, torch.tensor([[1.5, 2.0], [0.3, 0.4], [0.0, 0.0]]))


NAN = float("nan")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: NegativeLogLikelihood(0), "NegativeLogLikelihood.weight is 0.*above 0"),
        (lambda: EssenceKL(NAN), "EssenceKL.weight is nan.*at least 0"),
        (lambda: TargetNorm(-0.5), "TargetNorm.weight is -0.5.*at least 0"),
        (lambda: MostProbable(-3), "MostProbable.extra_steps is -3.*at least 0"),
        (lambda: NegativeLogLikelihood(1, -0.1), "NegativeLogLikelihood.after_success is -0.1.*at least 0"),
        (lambda: EssenceKept(NAN), "EssenceKept.divergence is nan.*at least 0"),
        (lambda: LossBelow(NAN), "LossBelow.threshold is nan.*at least 0"),
        (lambda: ProbabilityAbove(1.0), "ProbabilityAbove.threshold is 1.0.*above 0 and below 1"),
        (lambda: NormBall(-1.0), "NormBall.factor is -1.0.*above 0"),
        (lambda: NormBall(math.inf), "NormBall.factor is inf.*finite"),
        (lambda: ContextTemplates(length=0), "ContextTemplates.length is 0.*at least 1"),
        (lambda: ContextTemplates(top_k=0), "ContextTemplates.top_k is 0.*at least 1"),
        (lambda: ContextTemplates(seed=-1), "ContextTemplates.seed is -1.*at least 0"),
        (lambda: ContextTemplates(seeds=["I", " "]), "ContextTemplates.seeds .*blank"),
        (lambda: ContextTemplates(templates=["no slot"]), "'no slot' needs exactly one '{}'"),
        (lambda: ContextTemplates(templates=[""]), "'' needs exactly one '{}'"),
    ],
)
def test_hyperparameters_that_cannot_be_are_refused(make, says):
    with pytest.raises(EditError, match=says):
        make()
