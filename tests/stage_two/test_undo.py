"""Edits taken back and written again, against solutions computed from scratch; rolling back."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lke_lightning.edits import EditError, EditRequest
from lke_lightning.model.targets import Targets
from lke_lightning.stage_two.preservation import BaseStatistics, EditWeights, NormPenalty, NullSpace, PastEdits
from lke_lightning.stage_two.register import Register
from lke_lightning.stage_two.solvers import EqualityConstrained, LeastSquares, ShrinkingNullSpace, Solver, VirtualQueue
from lke_lightning.stage_two.transforms import TopRelativeChange
from lke_lightning.stage_two.update import WeightUpdate
from lke_lightning.step import EditStep
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
    zeros, ones = [0.0] * count, [1.0] * count
    return Targets(vectors, [1] * count, zeros, zeros, [""] * count, "block", list(range(count)), ones, [True] * count)


def run(solver, batches, **options):
    """Edit a tiny float64 model, batch by batch; return it with its stage and its register."""
    model, stage, register = make_model(layers=(0, 2)), WeightUpdate(solver, statistics=Graded(), **options), Register()
    stage.prepare(model)
    for number, batch in enumerate(batches):
        stage.write(model, EditStep(tuple(batch), targets(len(batch), number), ["{}"]), register)
    return model, stage, register


def from_scratch(stage, register, layer, model, holding):
    """Solve for the total change by the normal equations, from the keys and values of some edits alone."""
    memory = stage.memory[layer]
    rows = [number for number, name in enumerate(register.ids) if name in holding]
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
    model, stage, register = run(SOLVERS[name](), batches)
    before = {layer: model.weight(layer).delta.clone() for layer in model.layers}
    gone = ["3", "7", "8", "29"]
    assert stage.undo(model, register, gone) == dict.fromkeys(gone)
    kept = {str(i) for i in range(30)} - set(gone)
    for layer in model.layers:
        expected = from_scratch(stage, register, layer, model, kept)
        assert relative(model.weight(layer).delta, expected) < 1e-8
        assert relative(before[layer], expected) > 1e-3
    stage.redo(model, register, gone)
    for layer in model.layers:
        assert relative(model.weight(layer).delta, before[layer]) < 1e-8


def test_a_run_goes_on_after_an_undo_as_if_the_edit_had_never_been_made():
    """One layer and fixed keys, so that later keys do not depend on what was undone."""
    first, second, third = [request(0), request(1)], [request(2)], [request(3)]

    def edited(batches, undone):
        model, stage = make_model(layers=(0,)), WeightUpdate(SOLVERS["least squares"](), statistics=Graded())
        register = Register()
        stage.prepare(model)
        for batch, seed in batches:
            stage.write(model, EditStep(tuple(batch), targets(1, seed), ["{}"]), register)
            if undone in register.ids and register.states[register.ids.index(undone)] == "in the weights":
                stage.undo(model, register, [undone])
        return model.weight(0).delta

    with_it = edited([(first[:1], 0), (second, 1), (third, 2)], "2")
    without = edited([(first[:1], 0), (third, 2)], "none")
    # the targets are the outputs wished for, so that both runs ask for the same values
    assert relative(with_it, without) < 1e-8


def test_a_replaced_edit_holds_again_when_its_successor_is_undone():
    batches = [[request("old", "Bob")], [request("other")], [request("new", "Bob")]]
    model, stage, register = run(SOLVERS["least squares"](), batches)
    with pytest.raises(EditError, match="edit old is not in the weights: edit new states the same fact"):
        stage.undo(model, register, ["old"])
    assert stage.undo(model, register, ["new"]) == {"new": "old"}
    for layer in model.layers:
        assert relative(model.weight(layer).delta, from_scratch(stage, register, layer, model, {"old", "other"})) < 1e-8
    with pytest.raises(EditError, match="in the weights already"):
        stage.redo(model, register, ["old"])
    assert stage.redo(model, register, ["new"]) == {"new": "old"}
    for layer in model.layers:
        assert relative(model.weight(layer).delta, from_scratch(stage, register, layer, model, {"new", "other"})) < 1e-8


def test_what_was_undone_stays_so_when_a_later_edit_of_its_fact_is_undone_too():
    model, stage, register = run(SOLVERS["least squares"](), [[request("old", "Bob")], [request("new", "Bob")]])
    assert stage.redo(model, register, ["old"]) == {"old": "new"}
    assert stage.undo(model, register, ["old"]) == {"old": "new"}
    assert stage.undo(model, register, ["new"]) == {"new": None}
    assert register.holding == []
    assert all(torch.equal(model.weight(i).matrix.weight, model.weight(i).base) for i in model.layers)


def test_what_cannot_be_undone_is_said():
    model, stage, register = run(SOLVERS["least squares"](), [[request(0)]])
    with pytest.raises(EditError, match="no edit with the id 'x'"):
        stage.undo(model, register, ["x"])
    stage.undo(model, register, ["0"])
    with pytest.raises(EditError, match="undone before"):
        stage.undo(model, register, ["0"])
    for solver, options, reason in (
        (LeastSquares(PRESERVATION), {}, "no memory"),
        (EqualityConstrained(PRESERVATION), {}, "no memory"),
        (LeastSquares(PRESERVATION, PastEdits(0.5)), {}, "count differently"),
        (VirtualQueue(PRESERVATION), {}, "what all edits together have done to it"),
        (ShrinkingNullSpace([NormPenalty(0.3)], NullSpace(1.0)), {}, "not which edit took which"),
        (LeastSquares(PRESERVATION, PastEdits()), {"transform": TopRelativeChange(0.4)}, "TopRelativeChange"),
    ):
        model, stage, register = run(solver, [[request(0)]], **options)
        weights = [model.weight(layer).delta.clone() for layer in model.layers]
        with pytest.raises(EditError, match=reason):
            stage.undo(model, register, ["0"])
        assert all(torch.equal(model.weight(layer).delta, w) for layer, w in zip(model.layers, weights, strict=True))


@pytest.mark.parametrize("name", SOLVERS)
def test_undo_of_everything_gives_the_bits_of_the_base_back(name):
    model, stage, register = run(SOLVERS[name](), [[request(5 * b + i) for i in range(5)] for b in range(3)])
    fresh = {layer: stage.solver.init(moment) for layer, moment in Graded().second_moments(model).items()}
    order = [str(i) for i in (7, 3, 0, 1, 2, 4, 5, 6, 14, 8, 9, 10, 11, 12, 13)]
    stage.undo(model, register, order[:6])
    stage.undo(model, register, order[6:])
    for layer in model.layers:
        weight = model.weight(layer)
        assert torch.equal(weight.matrix.weight, weight.base)
        assert not weight.delta.any()
        assert torch.equal(stage.memory[layer]["inverse"], fresh[layer]["inverse"])
    assert register.holding == []


def test_a_revert_works_for_every_method_and_is_known_to_undo():
    """By a method without exact undo the weights return too, and an edit that is gone cannot be undone once more."""
    model, stage, register = run(
        LeastSquares(PRESERVATION, PastEdits()), [[request(0)], [request(1)]], transform=TopRelativeChange(0.4)
    )
    stage.revert(model, register)
    assert all(torch.equal(model.weight(i).matrix.weight, model.weight(i).base) for i in model.layers)
    assert register.states == ["undone", "undone"]
    assert [stage.solver.count(stage.memory[layer]) for layer in model.layers] == [0, 0]
    exact, stage, register = run(LeastSquares(PRESERVATION, PastEdits()), [[request(0)], [request(1)]])
    before = exact.weight(0).delta.clone()
    stage.revert(exact, register)
    with pytest.raises(EditError, match="undone before"):
        stage.undo(exact, register, ["1"])
    stage.redo(exact, register, ["0", "1"])
    assert relative(exact.weight(0).delta, before) < 1e-8


def test_edits_of_one_fact_stay_bounded_where_they_cannot_be_retired_exactly():
    """RECT with a memory: retiring by downdate what was never written whole would make the change explode."""
    batches = [[request(i, "Bob")] for i in range(8)]
    model, _, register = run(LeastSquares(PRESERVATION, PastEdits()), batches, transform=TopRelativeChange(0.4))
    once, _, _ = run(LeastSquares(PRESERVATION, PastEdits()), batches[:1], transform=TopRelativeChange(0.4))
    assert register.states == ["replaced"] * 7 + ["in the weights"]
    for layer in model.layers:
        assert model.weight(layer).delta.norm() < 10 * once.weight(layer).delta.norm()


def test_edits_that_share_a_target_are_undone_together():
    model, stage, register = run(SOLVERS["least squares"](), [[request(0)]])
    shared = [EditRequest(id=name, prompt=f"{{}} {name}s the", subject="Bob", target="piano") for name in "abc"]
    found = replace(targets(3, 1), groups=[0, 1, 0])
    stage.write(model, EditStep(tuple(shared), found, ["{}"]), register)
    assert register.groups == [0, 1, 2, 1]
    before = model.weight(0).delta.clone()
    for ids in (["a"], ["c", "0"]):
        with pytest.raises(EditError, match=r"shares its target with [ac] .*undo them together"):
            stage.undo(model, register, ids)
    assert torch.equal(model.weight(0).delta, before)
    stage.undo(model, register, ["a", "c"])
    with pytest.raises(EditError, match=r"shares its target with c .*redo them together"):
        stage.redo(model, register, ["a"])
    stage.redo(model, register, ["c", "a"])
    assert relative(model.weight(0).delta, before) < 1e-8


def test_a_solver_that_cannot_retire_is_not_asked_to():
    """Somebody's own that says nothing against it."""
    solver = VirtualQueue(PRESERVATION)
    solver.why_not_exact = lambda: None
    _, stage, register = run(solver, [[request("old", "Bob")], [request("new", "Bob")]])
    assert register.states == ["replaced", "in the weights"]
    assert stage.why_not_exact() == "its solver, VirtualQueue, is not Downdatable"


class Counting(LeastSquares):
    """A solver of somebody's own, with a memory of another kind."""

    def __init__(self):
        super().__init__(PRESERVATION)

    def compute(self, memory, system):
        update, memory = super().compute(memory, system)
        return update, {**memory, "seen": memory.get("seen", torch.zeros(())) + len(system.keys)}

    mark, rolled_back = Solver.mark, Solver.rolled_back


@pytest.mark.parametrize(
    "solver",
    [
        *(SOLVERS["least squares"](), SOLVERS["null space"](), LeastSquares(PRESERVATION), Counting()),
        *(VirtualQueue(PRESERVATION, 1.0), ShrinkingNullSpace([NormPenalty(0.3)], NullSpace(1.0))),
    ],
)
def test_rolling_back_leaves_no_trace(solver):
    """Weights bit for bit, memory to rounding; an edit that was replaced meanwhile holds again."""
    model, stage, register = run(solver, [[request("old", "Bob"), request(1)]])
    deltas = {layer: model.weight(layer).delta.clone() for layer in model.layers}
    memory = {layer: {name: part.clone() for name, part in parts.items()} for layer, parts in stage.memory.items()}
    edits = {name: list(part) for name, part in register.state_dict().items()}
    mark = stage.mark(model, register)
    new = EditStep((request("new", "Bob"), request(3)), targets(2, 7), ["{}"])
    stage.write(model, new, register)
    assert not torch.equal(model.weight(0).delta, deltas[0])
    stage.roll_back(model, register, mark)
    assert register.state_dict() == edits
    for layer in model.layers:
        assert torch.equal(model.weight(layer).delta, deltas[layer])
        assert stage.memory[layer].keys() == memory[layer].keys()
        for name, part in memory[layer].items():
            torch.testing.assert_close(stage.memory[layer][name], part, rtol=1e-9, atol=1e-12)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["edit", "undo", "redo"])), max_size=30))
@settings(deadline=None)
def test_the_register_knows_who_states_a_fact(moves):
    """Against a plain model: per fact, a stack of the edits made, of which at most one stands."""
    register, made = Register(), 0
    for subject, move in moves:
        fact = request(0, subject).fact
        of_fact = [n for n, known in enumerate(register.facts) if known == fact]
        standing = [n for n in of_fact if register.states[n] == "in the weights"]
        assert len(standing) <= 1
        assert register.number_of(fact) == (standing[0] if standing else None)
        if move == "edit":
            register.enter([request(made, subject)], [0])
            assert register.replaces[-1] == (standing[0] if standing else None)
            assert register.number_of(fact) == made
            made += 1
        elif move == "undo" and standing:
            [number] = register.to_undo([register.ids[standing[0]]])
            register.deactivate([number], "undone")
            assert register.number_of(fact) is None
        elif move == "redo" and of_fact and not standing:
            register.activate(register.to_redo([register.ids[of_fact[0]]]))
            assert register.number_of(fact) == of_fact[0]
    again = Register()
    again.load_state_dict(register.state_dict())
    assert again.state_dict() == register.state_dict()
    assert [again.number_of(fact) for fact in register.facts] == [register.number_of(fact) for fact in register.facts]
