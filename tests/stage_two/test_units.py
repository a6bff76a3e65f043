"""Requests of several units in the weights: the solve beside the rest of their texts, and undo of all rows of one."""

import pytest
import torch

from lke_lightning.edits import EditBatch, EditError, EditRequest
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.stage_one.contexts import ContextTemplates
from lke_lightning.stage_one.expansion import Chunks
from lke_lightning.stage_one.objectives import NegativeLogLikelihood
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_one.target_space import NormBall
from lke_lightning.stage_two.arrival import arrival
from lke_lightning.stage_two.preservation import NormPenalty, PastEdits
from lke_lightning.stage_two.register import Register
from lke_lightning.stage_two.solvers import EditSystem, EqualityConstrained, LeastSquares, VirtualQueue
from lke_lightning.stage_two.update import WeightUpdate
from lke_lightning.stages import Stages
from lke_lightning.testing import tiny_network, tiny_tokenizer
from tests.stage_two.test_update import Unit

FACTS = [
    EditRequest(id="a", prompt="What is the capital", target="the city of the river is in", weight=2.0),
    EditRequest(id="b", prompt="the mother", target="speaks"),
    EditRequest(id="c", prompt="{} plays the sport", subject="Ana", target="guitar in the city"),
]
WIDTH = 3
CHUNKS = Chunks(WIDTH)


def edited(batches, layers=(1,), past=None, expansion=CHUNKS, **options):
    """Edit a tiny float64 model; return it, the stages, the register and the last batch's step."""
    model, register = LanguageModel(tiny_network("llama"), tiny_tokenizer(), list(layers)), Register()
    one = TargetOptimization(
        [NegativeLogLikelihood()], [], NormBall(2.0), ContextTemplates(seeds=[]), max_steps=3, expansion=expansion
    )
    two = WeightUpdate(LeastSquares([NormPenalty(0.3)], past), statistics=Unit(), norm_limit=None, **options)
    stages = Stages(one, two)
    stages.prepare(model, [request for batch in batches for request in batch])
    for batch in batches:
        step = stages.edit(model, EditBatch(batch), register)
    return model, stages, register, step


def plain(model, layer):
    """Keys and outputs at every token of each text, by one ordinary forward each: [(slots, keys, outputs)]."""
    found = []
    for request in FACTS:
        [(prompt, answer)] = model.text.continuations([(request.text, request.target)])
        ids = torch.tensor([prompt + answer])
        batch = model.text.pad(model.text.rows([(request.text, request.text)]))
        batch = type(batch)(ids, torch.ones_like(ids), torch.zeros(1, dtype=torch.long))
        [(keys, _), (_, outputs)] = model.observe(
            batch, [model.architecture.matrix(layer), model.architecture.blocks[layer]], stop=layer + 1
        )
        slots = list(range(len(prompt) - 1, len(prompt) + len(answer) - 1, WIDTH))
        found.append((slots, keys[0], outputs[0]))
    return found


def relative(one, other):
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("weight", [None, 1.0, 4.0])
def test_a_batch_is_solved_beside_the_rest_of_its_texts(weight):
    model, _, register, step = edited([FACTS], rest_weight=weight)
    with model.unedited():
        texts = plain(model, 1)
    keys = torch.cat([keys[slots] for slots, keys, _ in texts])
    missing = step.targets.vectors - torch.cat([outputs[slots] for slots, _, outputs in texts])
    rest = torch.cat([keys[[i for i in range(len(keys)) if i not in slots]] for slots, keys, _ in texts])
    assert register.units == [len(slots) for slots, _, _ in texts]
    assert register.units[0] > 1
    counts = torch.tensor([r.weight for r, n in zip(FACTS, register.units, strict=True) for _ in range(n)]).double()
    system = 0.3 * torch.eye(keys.shape[1]).double() + keys.T @ (counts[:, None] * keys) + (weight or 0) * rest.T @ rest
    expected = torch.linalg.solve(system, keys.T @ (counts[:, None] * missing)).T
    assert relative(model.weight(1).delta, expected) < 1e-9
    assert [len(share) for share in step.fulfilment.values()] == [3]
    found = arrival(model, step)
    after = plain(model, 1)
    for i, ((slots, _, outputs), (_, _, now)) in enumerate(zip(texts, after, strict=True)):
        wanted = step.targets.of_requests(step.targets.vectors)[i]
        left = (wanted - now[slots]).norm() / (wanted - outputs[slots]).norm()
        assert found.written[i] == pytest.approx(1 - left.item(), abs=1e-9)


def test_one_window_is_written_as_a_whole_edit_at_the_prompts_last_token():
    model, _, _, _ = edited([FACTS], layers=(0, 1), expansion=Chunks(1000))
    at_the_end = [EditRequest(id=f.id, prompt=f.text, target=f.target, weight=f.weight) for f in FACTS]
    whole, _, _, _ = edited([at_the_end], layers=(0, 1), expansion=None)
    for layer in model.layers:
        assert model.weight(layer).delta.norm() > 0.1
        assert torch.equal(model.weight(layer).delta, whole.weight(layer).delta)


@pytest.mark.parametrize("count", [5, 40])
def test_every_solver_knows_of_the_rest(count):
    """Equality beside the rest is ROME's closed form with A + K_u' K_u in the place of A; also of many keys."""
    generator = torch.Generator().manual_seed(0)
    keys, residuals, rest = (torch.randn(n, d, generator=generator).double() for n, d in ((3, 8), (3, 4), (count, 8)))
    solver = EqualityConstrained([NormPenalty(0.5)])
    system = EditSystem(keys, keys, residuals, rest=rest)
    update, _ = solver.compute(solver.init(torch.eye(8)), system)
    directions = torch.linalg.solve(0.5 * torch.eye(8).double() + rest.T @ rest, keys.T)
    expected = residuals.T @ torch.linalg.solve(directions.T @ keys.T, directions.T)
    torch.testing.assert_close(update, expected, rtol=1e-8, atol=1e-10)


def test_a_solver_that_does_not_know_of_the_rest_is_refused():
    with pytest.raises(EditError, match="VirtualQueue does not solve beside the rest"):
        WeightUpdate(VirtualQueue([NormPenalty(0.5)]), rest_weight=1.0)


def test_undoing_a_request_moves_all_of_its_rows():
    """Against the least-squares solution from the rows of the others alone; and back again."""
    model, stages, register, _ = edited([FACTS[:2], FACTS[2:]], layers=(0, 1), past=PastEdits())
    before = {layer: model.weight(layer).delta.clone() for layer in model.layers}
    two, rows = stages.two, register.rows([1, 2])
    assert register.rows([0, 1, 2]) == list(range(sum(register.units)))
    two.undo(model, register, ["a"])
    for layer in model.layers:
        memory = two.memory[layer]
        keys, changes = memory["keys"][rows], memory["changes"][rows]
        expected = torch.linalg.solve(0.3 * torch.eye(keys.shape[1]).double() + keys.T @ keys, keys.T @ changes).T
        assert relative(model.weight(layer).delta, expected) < 1e-8
        assert relative(before[layer], expected) > 1e-3
        assert memory["counts"].tolist() == [row in rows for row in range(sum(register.units))]
    two.redo(model, register, ["a"])
    for layer in model.layers:
        assert relative(model.weight(layer).delta, before[layer]) < 1e-8
    two.undo(model, register, ["c", "a", "b"])
    assert all(torch.equal(model.weight(i).matrix.weight, model.weight(i).base) for i in model.layers)


def test_what_was_solved_beside_the_rest_cannot_be_undone_exactly():
    model, stages, register, _ = edited([FACTS], past=PastEdits(), rest_weight=1.0)
    with pytest.raises(EditError, match="beside other tokens of their own texts, which it forgets"):
        stages.two.undo(model, register, ["a"])


def test_a_register_tells_its_rows_apart_and_reads_older_ones():
    register = Register()
    register.enter(FACTS, [0, 1, 2], [3, 1, 2])
    state = register.state_dict()
    again = Register()
    again.load_state_dict(state)
    assert again.rows([2, 0]) == [4, 5, 0, 1, 2]
    again.shorten(1)
    assert (again.ids, again.units) == (["a"], [3])
    older = Register()
    older.load_state_dict({name: part for name, part in state.items() if name != "units"})
    assert older.rows([2, 0]) == [2, 0]
    with pytest.raises(EditError, match="contradicts itself"):
        older.load_state_dict({**state, "units": [3, 0, 2]})
