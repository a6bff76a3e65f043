"""A batch that is edited again: against editing it twice, and against a solution from scratch."""

import math

import pytest
import torch

from lke_lightning.edits import EditBatch
from lke_lightning.stage_two.preservation import PastEdits
from lke_lightning.stage_two.register import Register
from lke_lightning.stage_two.repeat import Repeat
from lke_lightning.stage_two.solvers import LeastSquares
from tests.stage_two.test_placement import Alternate, edited, make_stages
from tests.stage_two.test_undo import PRESERVATION, from_scratch, relative, request

BATCH = [request(0), request(1)]


def memit(**options):
    return make_stages(solver=LeastSquares(PRESERVATION), **options)


def test_one_round_is_the_method_itself():
    plain, _, _ = edited(memit(), [BATCH])
    for repeat in (Repeat(rounds=1), Repeat(rounds=5, tolerance=1e9)):
        model, register, [step] = edited(memit(repeat=repeat), [BATCH])
        assert (step.rounds, register.ids) == (1, ["0", "1"])
        assert all(torch.equal(model.weight(i).delta, plain.weight(i).delta) for i in model.layers)


def test_rounds_are_the_whole_method_again_on_the_edited_model():
    """As if the batch were edited several times; but it is entered once."""
    model, register, [step] = edited(memit(repeat=Repeat(3, tolerance=0)), [BATCH])
    again, _, steps = edited(memit(), [BATCH] * 3)
    assert (step.rounds, register.ids) == (3, ["0", "1"])
    assert all(torch.equal(model.weight(i).delta, again.weight(i).delta) for i in model.layers)
    assert torch.equal(step.targets.vectors, steps[-1].targets.vectors)
    assert step.targets.nlls == steps[-1].targets.nlls


def test_the_rule_compares_mean_perplexities():
    rule = Repeat(tolerance=1.0)
    assert rule.is_settled([0.0, math.log(3)], [math.log(2), math.log(3)])
    assert not rule.is_settled([0.0, math.log(3)], [math.log(4), math.log(3)])
    assert not rule.is_settled([0.0], [1e4])  # beyond what a float holds
    assert not rule.is_settled([0.0], [math.nan])


def test_what_the_rule_is_told_is_the_perplexity_before_and_after():
    stages = memit()
    model, _, [step] = edited(stages, [BATCH])
    told = zip(BATCH, step.targets.nlls, stages.one.present_nlls(model, step), strict=True)
    for one, (first, last), present in told:
        assert present == pytest.approx(plain_nll(model, one), rel=1e-9)
        with model.unedited():
            assert first == pytest.approx(plain_nll(model, one), rel=1e-9)
        assert last < first


def test_a_batch_is_edited_until_the_rule_is_met_and_no_further():
    """By hand: how far the mean perplexity stays from what was reached, after one round and after two."""
    gaps = []
    for rounds in (1, 2):
        model, _, steps = edited(memit(), [BATCH] * rounds)
        reached = [math.exp(last) for _, last in steps[-1].targets.nlls]
        present = [math.exp(plain_nll(model, one)) for one in BATCH]
        gaps.append(abs(sum(reached) - sum(present)) / len(BATCH))
    assert gaps[0] > 1.01 * gaps[1]
    for tolerance, rounds in ((gaps[0] * 1.001, 1), (gaps[0] * 0.999, 2), (gaps[1] * 1.001, 2), (gaps[1] * 0.999, 3)):
        _, _, [step] = edited(memit(repeat=Repeat(3, tolerance)), [BATCH])
        assert step.rounds == rounds


def plain_nll(model, one):
    """Of an edit's target, by one forward."""
    [(prompt, target)] = model.text.continuations([(one.text, one.target)])
    read = model.network(torch.tensor([prompt + target]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return -read.log_softmax(1)[range(len(target)), list(target)].mean().item()


@pytest.mark.parametrize("layers", [(1,), (0, 2)])
def test_where_edits_can_be_undone_a_round_takes_the_place_of_the_one_before(layers):
    """One solution for all that was asked, so that undo stays exact; with one layer, the sum of the updates."""
    solver = LeastSquares(PRESERVATION, PastEdits())
    stages = make_stages(solver=solver, repeat=Repeat(3, tolerance=0))
    model, register, steps = edited(stages, [[request(2)], BATCH], layers=layers)
    assert [step.rounds for step in steps] == [3, 3]
    for layer in layers:
        assert len(stages.two.memory[layer]["keys"]) == 3
        expected = from_scratch(stages.two, register, layer, model, {"0", "1", "2"})
        assert relative(model.weight(layer).delta, expected) < 1e-8
    if len(layers) == 1:
        sum_of_updates, _, _ = edited(memit(repeat=Repeat(3, tolerance=0)), [[request(2)]], layers=layers)
        only, _, _ = edited(stages_again(), [[request(2)]], layers=layers)
        assert relative(only.weight(1).delta, sum_of_updates.weight(1).delta) < 1e-8
    stages.two.undo(model, register, ["1"])
    for layer in layers:
        expected = from_scratch(stages.two, register, layer, model, {"0", "2"})
        assert relative(model.weight(layer).delta, expected) < 1e-8
    stages.two.undo(model, register, ["0", "2"])
    assert not any(model.weight(layer).delta.any() for layer in layers)


def stages_again():
    return make_stages(solver=LeastSquares(PRESERVATION, PastEdits()), repeat=Repeat(3, tolerance=0))


class Restless(Alternate):
    """Chooses the other layers each time that it is asked."""

    asked = 0

    def choose(self, layers, requests, dry_run):
        self.asked += 1
        return super().choose(layers[:: 1 if self.asked % 2 else -1], requests, dry_run)


def test_later_rounds_write_where_the_first_did():
    """Elsewhere they would take the place of what other edits of the batch have asked of a layer."""
    policy = Restless()
    stages = make_stages(policy, LeastSquares(PRESERVATION, PastEdits()), repeat=Repeat(2, tolerance=0))
    model, register, [step] = edited(stages, [BATCH])
    assert (policy.asked, step.rounds, step.targets.layers) == (1, 2, [(2,), (0,)])
    for layer, holds in ((0, "1"), (2, "0")):
        assert stages.two.memory[layer]["keys"].any(1).tolist() == [name == holds for name in register.ids]
        expected = from_scratch(stages.two, register, layer, model, {"0", "1"})
        assert relative(model.weight(layer).delta, expected) < 1e-8


def test_a_later_round_that_is_refused_takes_the_whole_batch_back():
    stages, rounds = stages_again(), []
    model, register, _ = edited(stages, [[request(2)]])
    before = {layer: model.weight(layer).delta.clone() for layer in model.layers}
    memory = {layer: stages.two.memory[layer]["inverse"].clone() for layer in model.layers}
    stages.two.norm_limit = 10.0

    def far(model, step):
        rounds.append(len(rounds))
        step.targets.vectors.mul_(1e6)
        return True

    step = stages.aim(model, EditBatch([request(0), request(3, "Ana 2")]))
    assert stages.two.write(model, step, register, far) == {}
    assert rounds == [0]
    assert (len(step), register.ids, register.states) == (0, ["2"], ["in the weights"])
    for layer in model.layers:
        assert torch.equal(model.weight(layer).delta, before[layer])
        torch.testing.assert_close(stages.two.memory[layer]["inverse"], memory[layer], rtol=1e-9, atol=1e-12)


def test_the_register_is_written_once_for_all_passes():
    seen = []

    class Watched(Register):
        def enter(self, requests, groups, units):
            seen.append([one.id for one in requests])
            super().enter(requests, groups, units)

    stages = memit(repeat=Repeat(2, tolerance=0))
    model, _, _ = edited(stages, [BATCH])
    stages.edit(model, EditBatch([request(4)]), Watched())
    assert seen == [["4"]]
