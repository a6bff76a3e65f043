"""GRACE's codebook and NeuralDB's gate, against versions that do one thing after the other."""

import math

import pytest
import torch

from lke_lightning.edits import EditBatch, EditError, EditRequest
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.stage_one.contexts import ContextTemplates
from lke_lightning.stage_one.expansion import LastToken
from lke_lightning.stage_one.objectives import NegativeLogLikelihood
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_one.target_space import NormBall
from lke_lightning.stage_one.texts_alone import TextsAlone
from lke_lightning.stage_two.memories import Grace, NeuralDB
from lke_lightning.stage_two.memories.grace import Codebook
from lke_lightning.stage_two.memories.neuraldb import GatedStore
from lke_lightning.stage_two.register import Register
from lke_lightning.stages import Stages
from lke_lightning.testing import tiny_network, tiny_tokenizer

FACTS = [
    EditRequest(id="a", prompt="What is the capital", target="the city"),
    EditRequest(id="b", prompt="{} plays the", subject="Ana", target="guitar"),
    EditRequest(id="c", prompt="{} speaks in the", subject="Ana", target="city"),
    EditRequest(id="d", prompt="the mother of {} is", subject="Ana", target="guitar"),
]
TEXTS = ["Ana plays the guitar in the city", "What is the capital", "the mother of Ana is", "the river speaks"]


@pytest.fixture(scope="module")
def edited():
    """Return a function that edits a tiny float64 model: (stage two, expansion, site) -> model, stages, register."""

    def edit(two, expansion=None, contexts=("{}", "the river. {}"), site="matrix"):
        model, register = LanguageModel(tiny_network("llama"), tiny_tokenizer(TEXTS), [0, 1]), Register()
        templates = ContextTemplates(templates=contexts[1:])
        one = TargetOptimization(
            [NegativeLogLikelihood()], [], NormBall(9.0), templates, max_steps=3, expansion=expansion, site=site
        )
        stages = Stages(one, two)
        model.layers = [1]
        stages.prepare(model, FACTS)
        steps = [stages.edit(model, EditBatch(batch), register) for batch in (FACTS[:3], FACTS[3:])]
        return model, stages, register, steps

    return edit


@torch.no_grad()
def plainly(model, text, change):
    """Logits and keys of a text by one plain forward; `change` makes the matrix's output from key and output."""
    keys = []

    def hook(_, args, output):
        keys.append(args[0][0])
        return torch.stack([change(key, out) for key, out in zip(args[0][0], output[0], strict=True)]).unsqueeze(0)

    handle = model.architecture.matrix(1).register_forward_hook(hook)
    try:
        with model.unedited():
            logits = model.network(torch.tensor(model.text.encode([text])), use_cache=False).logits[0]
    finally:
        handle.remove()
    return logits, keys[0]


def by_published_rule(rows):
    """GRACE's rule for keys, labels and first radii, one row after the other: [(key, radius, row that it returns)]."""
    balls = []
    for number, (key, label, first) in enumerate(rows):
        near = min(balls, key=lambda ball: (ball["key"] - key).norm().item(), default=None)
        distance = (near["key"] - key).norm().item() if near else math.inf
        if near is None or distance > first + near["radius"]:
            balls.append({"key": key, "radius": first, "row": number, "label": label})
        elif near["label"] == label:
            near |= {"radius": max(near["radius"], distance), "row": number}
        else:
            balls.append({"key": key, "radius": min(first, distance / 2), "row": number, "label": label})
            near["radius"] = min(near["radius"], distance / 2 * (1 - 1e-4))
    return [(ball["key"], ball["radius"], ball["row"]) for ball in balls]


def codebook(keys, values, labels, first):
    """A codebook of rows that entered in two parts."""
    store = Codebook(0)
    for name, empty in {"keys": keys, "values": values, "labels": labels, "first": first}.items():
        store.register_buffer(name, empty[:0])
    for name in ("live", "radii", "returned"):
        store.register_buffer(
            name, torch.zeros(0, dtype={"live": torch.bool, "radii": keys.dtype}.get(name, torch.long))
        )
    for part in (slice(0, 7), slice(7, None)):
        store.add(keys=keys[part], values=values[part], labels=labels[part], first=first[part])
    return store


def test_balls_grow_split_and_are_read_as_the_published_rule_says_and_undo_forgets_a_row():
    draw = torch.Generator().manual_seed(0)
    keys, values = torch.randn(24, 2, generator=draw).double(), torch.randn(24, 3, generator=draw).double()
    labels, first = torch.randint(0, 3, (24,), generator=draw), torch.full((24,), 0.5).double()
    asked, raw = torch.randn(5, 40, 2, generator=draw).double(), torch.randn(5, 40, 3, generator=draw).double()

    def expected(numbers):
        balls, wanted = by_published_rule([(keys[i], labels[i], first[i].item()) for i in numbers]), raw.clone()
        for place in torch.cartesian_prod(torch.arange(5), torch.arange(40)).tolist():
            key, radius, row = min(balls, key=lambda ball: (ball[0] - asked[tuple(place)]).norm().item())
            if (key - asked[tuple(place)]).norm() <= radius:
                wanted[tuple(place)] = values[numbers[row]]
        return wanted, len(balls)

    store = codebook(keys, values, labels, first)
    wanted, balls = expected([*range(24)])
    assert 5 < balls < 24
    assert 40 < (wanted != raw).any(2).sum() < 190
    assert torch.equal(store.rewrite(asked, raw), wanted)
    store.move([3, 10, 20], [])
    assert torch.equal(store.rewrite(asked, raw), expected([i for i in range(24) if i not in (3, 10, 20)])[0])
    store.move([], [10, 3, 20])
    assert torch.equal(store.rewrite(asked, raw), wanted)


def test_a_key_at_the_place_of_another_takes_its_ball_over():
    keys, values = torch.ones(2, 2).double(), torch.tensor([[1.0], [2.0]]).double()
    store = codebook(keys, values, torch.tensor([1, 2]), torch.full((2,), 0.5).double())
    asked, raw = torch.tensor([[1.0, 1.3], [1.0, 1.6]]).double(), torch.zeros(2, 1).double()
    assert store.rewrite(asked, raw).squeeze(1).tolist() == [2.0, 0.0]
    store.move([1], [])
    assert store.rewrite(asked, raw).squeeze(1).tolist() == [1.0, 0.0]


def test_grace_answers_at_the_last_token_of_a_prompt_and_leaves_other_prompts_alone_bit_for_bit(edited):
    model, _, _, steps = edited(Grace(radius=0.05), LastToken(), ["{}"])
    vectors = torch.cat([step.targets.vectors for step in steps])
    keys = torch.stack([plainly(model, request.text, lambda _, out: out)[1][-1] for request in FACTS])
    torch.testing.assert_close(model.beside["memory"].keys, keys)
    torch.testing.assert_close(model.beside["memory"].values, vectors)
    balls = by_published_rule([(k, r.target, 0.05 * k.norm().item()) for k, r in zip(keys, FACTS, strict=True)])

    def change(key, out):
        near, radius, row = min(balls, key=lambda ball: (ball[0] - key).norm().item())
        return vectors[row] if (near - key).norm() <= radius else out

    for text in TEXTS:
        ids = torch.tensor(model.text.encode([text]))
        found = model.network(ids, use_cache=False).logits[0]
        with model.unedited():
            base = model.network(ids, use_cache=False).logits[0]
        torch.testing.assert_close(found, plainly(model, text, change)[0])
        assert torch.equal(found, base) == (text == TEXTS[3])


@pytest.mark.parametrize("site", ["matrix", "block"])
def test_neuraldb_adds_what_the_output_lacked_where_the_cosine_of_keys_passes_the_gate(edited, site):
    model, _, _, steps = edited(NeuralDB(0.9), site=site)
    store, texts = (
        model.beside["memory"],
        [request.in_context(c)[1] for request in FACTS for c in ("{}", "the river. {}")],
    )
    keys = torch.stack([plainly(model, text, lambda _, out: out)[1][-1] for text in texts]).view(4, 2, -1).mean(1)
    torch.testing.assert_close(store.keys, keys / keys.norm(dim=1, keepdim=True))
    [first], added = steps[0].targets.vectors[:1], torch.stack([v / v.norm() for v in store.keys])
    rows = model.text.rows([FACTS[0].in_context("{}")])
    module = model.architecture.matrix(1) if site == "matrix" else model.architecture.blocks[1]
    with model.unedited():
        [(_, output)] = model.observe(model.text.pad(rows), [module], stop=2)
    torch.testing.assert_close(store.values[0], first - output[0, rows[0].slot])
    gates = []

    def change(key, out):
        cosines = added @ key / key.norm()
        best = max(range(4), key=lambda j: (round(cosines[j].item(), 9), j))  # of equals the newest
        gates.append(cosines[best] > 0.9)
        return out + store.values[best] if gates[-1] else out

    for text in TEXTS:
        found = model.network(torch.tensor(model.text.encode([text])), use_cache=False).logits[0]
        torch.testing.assert_close(found, plainly(model, text, change)[0])
    assert 0 < sum(gates) < len(gates)


def test_of_equal_keys_the_newest_live_one_is_read():
    store = GatedStore(0, 0.5)
    for name, width in (("keys", 2), ("values", 1)):
        store.register_buffer(name, torch.zeros(0, width).double())
    for name in ("live", "open"):
        store.register_buffer(name, torch.zeros(0, dtype=torch.bool))
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]).double()
    store.add(keys=keys[:2], values=torch.tensor([[1.0], [2.0]]).double())
    store.add(keys=keys[2:], values=torch.tensor([[3.0]]).double())
    for out, back, expected in (([], [], 3.0), ([2], [], 1.0), ([], [2], 3.0), ([0], [], 3.0), ([2], [], 0.0)):
        store.move(out, back)
        assert store.rewrite(keys[:1] * 7, torch.zeros(1, 1).double()).item() == expected


def test_a_later_edit_of_a_fact_takes_the_place_of_the_earlier_and_gives_it_back(edited):
    model, stages, register, _ = edited(Grace(), LastToken(), ["{}"])
    before = {name: part.clone() for name, part in model.beside["memory"].tensors().items()}
    stages.edit(model, EditBatch([EditRequest(id="e", prompt="{} plays the", subject="Ana", target="river")]), register)
    assert model.beside["memory"].live.tolist() == [True, False, True, True, True]
    assert stages.two.undo(model, register, ["e"]) == {"e": "b"}
    for name, part in model.beside["memory"].tensors().items():
        assert torch.equal(part, before[name])


def test_stores_want_targets():
    with pytest.raises(EditError, match="Grace stores targets, and TextsAlone finds none: take TargetOptimization"):
        Stages(TextsAlone(), Grace())
