"""WISE's side matrices and MEMOIR's masked one, against versions that take one token after the other."""

import pytest
import torch

from lke_lightning.edits import EditBatch, EditError, EditRequest
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_one.texts_alone import TextsAlone
from lke_lightning.stage_two.memories import Memoir, Wise
from lke_lightning.stage_two.memories.wise import ties
from lke_lightning.stage_two.register import Register
from lke_lightning.stages import Stages
from lke_lightning.testing import tiny_network, tiny_tokenizer

FACTS = [
    EditRequest(id="a", prompt="What is the capital", target="the city"),
    EditRequest(id="b", prompt="{} plays the", subject="Ana", target="guitar"),
    EditRequest(id="c", prompt="the mother of {} is", subject="Bob", target="city"),
]
TEXTS = ["Ana plays the guitar in the city", "What is the capital the city", "the mother of Bob is", "the river speaks"]


def edited(two, tmp_path, family="llama", batches=(FACTS[:2], FACTS[2:]), one=None):
    """Edit a tiny float64 model; return model, stages and register."""
    (tmp_path / "text.txt").write_text(
        "\n".join(["the river is in the city", "speaks guitar and the", "mother of Ana"])
    )
    two.corpus = str(tmp_path / "text.txt")
    model, register = LanguageModel(tiny_network(family), tiny_tokenizer(TEXTS), [1]), Register()
    stages = Stages(one or TextsAlone(), two)
    stages.prepare(model, FACTS)
    for batch in batches:
        stages.edit(model, EditBatch(batch), register)
    return model, stages, register


@torch.no_grad()
def compare(model, change):
    """Assert that texts run as `change` says, of keys and outputs (length, size) up to a token and for it."""
    changed = 0
    for text in TEXTS:
        ids = torch.tensor(model.text.encode([text]))

        def hook(_, args, output):
            keys, outputs = args[0].flatten(0, -2), output.flatten(0, -2)
            return torch.stack([change(keys[: t + 1], outputs[: t + 1]) for t in range(len(keys))]).view(output.shape)

        found = model.network(ids, use_cache=False).logits
        with model.unedited():
            base = model.network(ids, use_cache=False).logits
            handle = model.architecture.matrix(1).register_forward_hook(hook)
            expected = model.network(ids, use_cache=False).logits
            handle.remove()
        torch.testing.assert_close(found, expected)
        assert torch.equal(found, base) == torch.equal(expected, base)
        changed += not torch.equal(found, base)
    return changed


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_wise_routes_by_the_mean_distance_so_far_to_the_matrix_that_moves_most(family, tmp_path):
    model, *_ = edited(Wise(relative_lr=0.5, max_steps=6, shard=2, merge=9, ratio=0.97), tmp_path, family)
    memory = model.beside["memory"]
    act = {"llama": torch.nn.functional.silu, "opt": torch.relu}[family]
    assert len(memory.sides) == 2

    def change(keys, outputs):
        best, most = outputs[-1], -1.0
        for side, floor in zip(memory.sides, memory.floors, strict=True):
            distance = (act(outputs + keys @ side.T) - act(outputs)).norm(dim=1).mean()
            if distance > max(most, 0.97 * floor):
                best, most = outputs[-1] + side @ keys[-1], distance
        return best

    assert compare(model, change) >= 2


def test_wise_learns_by_the_loss_of_answers_and_three_margins_only_where_its_mask_allows(tmp_path):
    settings = {"max_steps": 3, "part": 0.3, "enough": 0.0, "limit": 0.005}
    two = Wise(lr=0.01, absolute_margins=[0.01, 3.0, 1.0], **settings)
    model, *_ = edited(two, tmp_path, batches=[FACTS[:1]])
    [side], mask = model.beside["memory"].sides, two.mask(0, torch.zeros(32, 64))
    assert 0.2 < mask.double().mean() < 0.4
    assert torch.equal(side != 0, mask)
    [(prompt, answer)] = model.text.continuations([(FACTS[0].text, FACTS[0].target)])
    other = two.memory[1]["ordinary"].split(two.memory[1]["lengths"].tolist())[0]
    expected = torch.zeros(32, 64, dtype=torch.float64)
    for _ in range(2):  # the same steps, with plain means over rows
        parameter, distances, losses = expected.requires_grad_(), [], []

        def hook(_, args, output, parameter=parameter, distances=distances):
            change = args[0] @ parameter.T
            moved = torch.nn.functional.silu(output + change) - torch.nn.functional.silu(output)
            distances.append(moved.norm(dim=-1).mean())
            return output + change

        with model.unedited():
            handle = model.architecture.matrix(1).register_forward_hook(hook)
            for ids in (prompt + answer[:-1], other.tolist()):
                logits = model.network(torch.tensor([ids]), use_cache=False).logits[0]
                losses.append(torch.nn.functional.cross_entropy(logits[-len(answer) :], torch.tensor(answer)))
            handle.remove()
        inside, outside = distances
        loss = losses[0] + (outside - 0.01).relu() + (3 - inside).relu() + (1 + outside - inside).relu()
        [gradient] = torch.autograd.grad(loss, parameter)
        expected = (expected.detach() - 0.01 * gradient * mask).clamp(-0.005, 0.005)
    torch.testing.assert_close(side, expected)
    assert side.abs().max() == 0.005


def test_ties_of_one_shard_at_density_1_is_that_shard_and_signs_are_elected():
    shard = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ties(shard.unsqueeze(0), 1.0), shard)
    two = torch.tensor([[3.0, -1.0, 0.5, 2.0, 0.1], [1.0, 2.0, 0.1, -2.5, 0.2]])
    assert ties(two, 0.6).tolist() == [2.0, 2.0, 0.0, -2.5, 0.0]


def test_shards_become_memories_and_floors_the_least_of_theirs(tmp_path):
    two = Wise(relative_lr=0.5, max_steps=3, shard=1, merge=2, density=1.0)
    model, stages, _ = edited(two, tmp_path, batches=[FACTS[:1]])
    first, floor = model.beside["memory"].sides[0].clone(), model.beside["memory"].floors[0].clone()
    stages.edit(model, EditBatch(FACTS[1:2]), Register())
    memory = model.beside["memory"]
    assert (len(memory.sides), two.memory[1]["counts"].tolist()) == (1, [0, 2, 0])
    masks = [two.mask(number, first) for number in (0, 1)]
    assert torch.equal(memory.sides[0][masks[0] & ~masks[1]], first[masks[0] & ~masks[1]])
    assert not memory.sides[0][~masks[0] & ~masks[1]].any()
    assert memory.floors[0] <= floor
    stages.edit(model, EditBatch(FACTS[2:]), Register())
    assert len(memory.sides) == 2


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_memoir_reads_the_nearest_stored_mask_where_enough_of_it_is_shared(family, tmp_path):
    model, *_ = edited(Memoir(relative_lr=0.5, max_steps=4, tau=0.7), tmp_path, family)
    memory, top_k = model.beside["memory"], round(0.285 * 64)
    gates = []

    def mask(keys):
        size = (keys.mean(0) - memory.background).abs()
        marked = torch.zeros(64, dtype=torch.bool)
        marked[memory.permutation[size.argsort(descending=True)[:top_k]]] = True
        return marked

    def change(keys, outputs):
        shared = [(mask(keys) & stored).sum().item() / top_k for stored in memory.masks]
        best = max(range(3), key=shared.__getitem__)
        gates.append(shared[best] >= 0.7)
        return outputs[-1] + memory.matrix @ (keys[-1] * memory.masks[best]) if gates[-1] else outputs[-1]

    for i, request in enumerate(FACTS):
        [row] = model.text.encode([request.text])
        batch = model.text.pad(model.text.rows([(request.text, request.text)]))
        [(keys, _)] = model.observe(batch, [model.architecture.matrix(1)], stop=2)
        assert torch.equal(mask(keys[0, : len(row)]), memory.masks[i])
    assert compare(model, change) >= 3
    assert 0 < sum(gates) < len(gates)
    assert not memory.matrix[:, ~memory.masks.any(0)].any()


def test_memoir_is_the_identity_before_any_edit_and_below_its_threshold(tmp_path):
    two = Memoir(max_steps=3)
    model, *_ = edited(two, tmp_path, batches=[])
    assert compare(model, lambda keys, outputs: outputs[-1]) == 0
    model.beside["memory"].matrix += 1.0
    model.beside["memory"].masks = torch.zeros(1, 64, dtype=torch.bool)
    model.beside["memory"].live = torch.ones(1, dtype=torch.bool)
    assert compare(model, lambda keys, outputs: outputs[-1]) == 0


def test_memoir_undoes_edits_whose_masks_share_nothing_and_refuses_others(tmp_path):
    two = Memoir(relative_lr=0.5, max_steps=3, top_k=2)
    model, _, register = edited(two, tmp_path, batches=[FACTS[:1], FACTS[1:2]])
    memory = model.beside["memory"]
    assert two.why_not_exact() is None
    matrix, ids = memory.matrix.clone(), torch.tensor(model.text.encode([FACTS[0].text]))
    with torch.no_grad():
        edited_logits = model.network(ids, use_cache=False).logits
        two.undo(model, register, ["a"])
        assert torch.equal(memory.matrix != 0, (matrix != 0) & memory.masks[1])
        with model.unedited():
            base = model.network(ids, use_cache=False).logits
        two.undo(model, register, ["b"])
        assert not memory.matrix.any()
        assert torch.equal(model.network(ids, use_cache=False).logits, base)
        two.redo(model, register, ["b", "a"])
        assert torch.equal(model.network(ids, use_cache=False).logits, edited_logits)
    assert torch.equal(memory.matrix, matrix)
    two.revert(model, register)
    assert not memory.matrix.any()
    two.redo(model, register, ["a", "b"])
    assert torch.equal(memory.matrix, matrix)
    overlapping = Memoir(max_steps=2)
    model, _, register = edited(overlapping, tmp_path)
    with pytest.raises(EditError, match="cannot be undone exactly: masks of its edits overlap"):
        overlapping.undo(model, register, ["a"])


def test_memoir_brings_back_what_a_later_wording_of_the_fact_had_replaced(tmp_path):
    later = [
        EditRequest("old", "{} plays the", "guitar", "Ana", relation="plays"),
        EditRequest("new", "the mother of Bob is {}", "city", "Ana", relation="plays"),
    ]
    two = Memoir(relative_lr=0.5, max_steps=3, top_k=2)
    model, stages, register = edited(two, tmp_path, batches=[later[:1]])
    matrix = model.beside["memory"].matrix
    stages.edit(model, EditBatch(later[1:]), register)
    assert two.why_not_exact() is None
    assert two.undo(model, register, ["new"]) == {"new": "old"}
    assert torch.equal(model.beside["memory"].matrix, matrix)
    assert model.beside["memory"].live.tolist() == [True, False]


def test_they_learn_from_texts(tmp_path):
    with pytest.raises(EditError, match=r"Memoir learns from the texts .* set stage_one to TextsAlone"):
        edited(Memoir(), tmp_path, one=TargetOptimization())


@pytest.mark.parametrize(
    ("two", "settings", "message"),
    [
        (Wise, {"limit": -0.1}, r"stage_two\.limit is -0\.1"),
        (Wise, {"enough": float("nan")}, r"stage_two\.enough is nan"),
        (Wise, {"margins": [1.0, 2.0]}, r"stage_two\.margins are three numbers"),
        (Wise, {"absolute_margins": [1.0, float("nan"), 0.0]}, r"stage_two\.absolute_margins is nan"),
        (Memoir, {"enough": -1.0}, r"stage_two\.enough is -1"),
    ],
)
def test_numbers_out_of_range_are_refused(two, settings, message):
    with pytest.raises(EditError, match=message):
        two(**settings)
