"""Edits taken back and written again, against solutions computed from scratch; rolling back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lke_lightning.edits import EditError, EditRequest
from lke_lightning.model.targets import Targets
from lke_lightning.stage_two.preservation import BaseStatistics, EditWeights, NormPenalty, NullSpace, PastEdits
from lke_lightning.stage_two.register import Register
from lke_lightning.stage_two.solvers import EqualityConstrained, LeastSquares
from lke_lightning.stage_two.transforms import TopRelativeChange
from lke_lightning.stage_two.update import WeightUpdate
from tests.stage_two.test_update import Unit, make_model

PRESERVATION = [BaseStatistics(0.5), NormPenalty(0.2)]
SOLVERS = {
    "least squares": lambda: LeastSquares(PRESERVATION, PastEdits()),
    "weighted": lambda: LeastSquares(PRESERVATION, PastEdits(), edit_weights=EditWeights(3.0)),
    "null space": lambda: LeastSquares([NormPenalty(0.3)], PastEdits(), NullSpace(1.0)),
}


class Graded(Unit):
    """Second moments with eigenvalues from 0.02 to 2, so that a threshold of 1 splits them."""

    def second_moments(self, model):
        sizes = [model.weight(layer).delta.shape[1] for layer in model.layers]
        return {layer: torch.linspace(0.02, 2, size).diag() for layer, size in zip(model.layers, sizes, strict=True)}


def request(i, subject=None, weight=1.0):
    return EditRequest(id=str(i), prompt="{} plays the", subject=subject or f"Ana {i}", target="piano", weight=weight)


def targets(count, seed):
    vectors = torch.randn(count, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Targets(vectors, [1] * count, [0.0] * count, [0.0] * count, [""] * count, "block")


def run(solver, batches, **options):
    """Edit a tiny float64 model, batch by batch."""
    model, stage = make_model(layers=(0, 2)), WeightUpdate(solver, statistics=Graded(), **options)
    stage.prepare(model)
    for number, batch in enumerate(batches):
        stage.apply(model, batch, ["{}"], targets(len(batch), number))
    return model, stage


def from_scratch(stage, model, layer, standing):
    """Solve for the total change by the normal equations, from the keys and values of some edits alone."""
    memory = stage.memory[layer]
    rows = [number for number, name in enumerate(stage.register.ids) if name in standing]
    keys, changes = memory["keys"][rows], memory["changes"][rows]
    weights = stage.solver.edit_weights.weight * torch.ones(len(rows), dtype=torch.float64)
    basis = memory.get("basis", torch.eye(keys.shape[1], dtype=torch.float64))
    keys = keys @ basis
    moment = basis.T @ Graded().second_moments(model)[layer].double() @ basis
    system = sum(term.gram(moment) for term in stage.solver.preservation) + keys.T @ (weights[:, None] * keys)
    return torch.linalg.solve(system, keys.T @ (weights[:, None] * changes)).T @ basis.T


def relative(one, other):
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("name", SOLVERS)
def test_undone_edits_leave_the_solution_that_never_saw_them(name):
    batches = [[request(5 * b + i) for i in range(5)] for b in range(6)]
    model, stage = run(SOLVERS[name](), batches)
    before = {layer: model.weight(layer).delta.clone() for layer in model.layers}
    gone = ["3", "7", "8", "29"]
    assert stage.undo(model, gone) == dict.fromkeys(gone)
    kept = {str(i) for i in range(30)} - set(gone)
    for layer in model.layers:
        expected = from_scratch(stage, model, layer, kept)
        assert relative(model.weight(layer).delta, expected) < 1e-8
        assert relative(before[layer], expected) > 1e-3
    stage.redo(model, gone)
    for layer in model.layers:
        assert relative(model.weight(layer).delta, before[layer]) < 1e-8


def test_a_run_goes_on_after_an_undo_as_if_the_edit_had_never_been_made():
    """One layer and fixed keys, so that later keys do not depend on what was undone."""
    first, second, third = [request(0), request(1)], [request(2)], [request(3)]

    def edited(batches, undone):
        model, stage = make_model(layers=(0,)), WeightUpdate(SOLVERS["least squares"](), statistics=Graded())
        stage.prepare(model)
        for batch, seed in batches:
            stage.apply(model, batch, ["{}"], targets(1, seed))
            if undone in stage.register.ids and stage.register.stands[stage.register.ids.index(undone)]:
                stage.undo(model, [undone])
        return model.weight(0).delta

    with_it = edited([(first[:1], 0), (second, 1), (third, 2)], "2")
    without = edited([(first[:1], 0), (third, 2)], "none")
    # the targets are the outputs wished for, so that both runs ask for the same values
    assert relative(with_it, without) < 1e-8


def test_a_replaced_edit_holds_again_when_its_successor_is_undone():
    batches = [[request("old", "Bob")], [request("other")], [request("new", "Bob")]]
    model, stage = run(SOLVERS["least squares"](), batches)
    with pytest.raises(EditError, match="edit old is not in the weights: edit new states the same fact"):
        stage.undo(model, ["old"])
    assert stage.undo(model, ["new"]) == {"new": "old"}
    for layer in model.layers:
        assert relative(model.weight(layer).delta, from_scratch(stage, model, layer, {"old", "other"})) < 1e-8
    with pytest.raises(EditError, match="in the weights already"):
        stage.redo(model, ["old"])
    assert stage.redo(model, ["new"]) == {"new": "old"}
    for layer in model.layers:
        assert relative(model.weight(layer).delta, from_scratch(stage, model, layer, {"new", "other"})) < 1e-8


def test_what_cannot_be_undone_is_said():
    model, stage = run(SOLVERS["least squares"](), [[request(0)]])
    with pytest.raises(EditError, match="no edit with the id 'x'"):
        stage.undo(model, ["x"])
    stage.undo(model, ["0"])
    with pytest.raises(EditError, match="undone before"):
        stage.undo(model, ["0"])
    for solver, options, reason in (
        (LeastSquares(PRESERVATION), {}, "no memory"),
        (EqualityConstrained(PRESERVATION), {}, "no memory"),
        (LeastSquares(PRESERVATION, PastEdits(0.5)), {}, "count differently"),
        (LeastSquares(PRESERVATION, PastEdits()), {"transform": TopRelativeChange(0.4)}, "TopRelativeChange"),
    ):
        model, stage = run(solver, [[request(0)]], **options)
        weights = [model.weight(layer).delta.clone() for layer in model.layers]
        with pytest.raises(EditError, match=reason):
            stage.undo(model, ["0"])
        assert all(torch.equal(model.weight(layer).delta, w) for layer, w in zip(model.layers, weights, strict=True))


@pytest.mark.parametrize("solver", [SOLVERS["least squares"](), SOLVERS["null space"](), LeastSquares(PRESERVATION)])
def test_rolling_back_leaves_no_trace(solver):
    """Weights bit for bit, memory to rounding; an edit that was replaced meanwhile holds again."""
    model, stage = run(solver, [[request("old", "Bob"), request(1)]])
    deltas = {layer: model.weight(layer).delta.clone() for layer in model.layers}
    inverse = {layer: memory["inverse"].clone() for layer, memory in stage.memory.items()}
    register = {name: list(part) for name, part in stage.register.state_dict().items()}
    stage.apply(model, [request("new", "Bob"), request(3)], ["{}"], targets(2, 7))
    assert not torch.equal(model.weight(0).delta, deltas[0])
    stage.roll_back(model, deltas, len(register["ids"]))
    assert stage.register.state_dict() == register
    for layer in model.layers:
        assert torch.equal(model.weight(layer).delta, deltas[layer])
        torch.testing.assert_close(stage.memory[layer]["inverse"], inverse[layer], rtol=1e-9, atol=1e-12)
        assert len(stage.memory[layer].get("keys", [])) == len(register["ids"])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["edit", "undo", "redo"])), max_size=30))
@settings(deadline=None)
def test_the_register_knows_who_states_a_fact(moves):
    """Against a plain model: per fact, a stack of the edits made, of which at most one stands."""
    register, made = Register(), 0
    for subject, move in moves:
        fact = request(0, subject).fact
        of_fact = [n for n, known in enumerate(register.facts) if known == fact]
        standing = [n for n in of_fact if register.stands[n]]
        assert len(standing) <= 1
        assert register.standing(fact) == (standing[0] if standing else None)
        if move == "edit":
            register.enter([request(made, subject)])
            assert register.replaces[-1] == (standing[0] if standing else None)
            assert register.standing(fact) == made
            made += 1
        elif move == "undo" and standing:
            [number] = register.to_undo([register.ids[standing[0]]])
            register.lay_down([number])
            assert register.standing(fact) is None
        elif move == "redo" and of_fact and not standing:
            register.raise_up(register.to_redo([register.ids[of_fact[0]]]))
            assert register.standing(fact) == of_fact[0]
    again = Register()
    again.load_state_dict(register.state_dict())
    assert again.state_dict() == register.state_dict()
    assert [again.standing(fact) for fact in register.facts] == [register.standing(fact) for fact in register.facts]
