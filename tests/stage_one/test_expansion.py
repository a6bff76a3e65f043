"""Long answers in chunks, and neighbours, against plain oracles in full sequences."""

import pytest
import torch

from lke_lightning.edits import EditBatch, EditError, EditRequest, Probe
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.tokens import Row
from lke_lightning.model.units import Whole
from lke_lightning.stage_one.contexts import ContextTemplates
from lke_lightning.stage_one.expansion import Chunks, Neighbours, cut
from lke_lightning.stage_one.objectives import EssenceKL, NegativeLogLikelihood, TargetNorm
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_one.rows import build_rows
from lke_lightning.stage_one.stopping import LossBelow, MostProbable
from lke_lightning.stage_one.target_space import NormBall
from lke_lightning.stage_two.preservation import BaseStatistics
from lke_lightning.stage_two.register import Register
from lke_lightning.stage_two.solvers import LeastSquares
from lke_lightning.stage_two.update import WeightUpdate
from lke_lightning.stages import Stages
from lke_lightning.testing import tiny_network, tiny_tokenizer
from tests.reference.stage_one import descend
from tests.stage_two.test_update import Unit

SETTINGS = {"lr": 0.3, "max_steps": 5, "clamp": 3.0, "decay": 0.1, "loss_threshold": 0.01}
LONG = [
    EditRequest(id="0", prompt="What is the capital", target="the city of the river is in"),
    EditRequest(id="1", prompt="{} plays the sport", subject="Ana", target="f(a): {a: {}}"),
    EditRequest(id="2", prompt="the mother", target="speaks"),
]


def make_model(family="llama", layers=(0, 1)):
    return LanguageModel(tiny_network(family), tiny_tokenizer(), list(layers))


def make_stage(expansion, site="block", kl=None, stopping=None, **more):
    terms = [NegativeLogLikelihood(), TargetNorm(SETTINGS["decay"]), *([EssenceKL(kl)] if kl else [])]
    return TargetOptimization(
        terms, stopping or [LossBelow(SETTINGS["loss_threshold"])], NormBall(SETTINGS["clamp"]), lr=SETTINGS["lr"],
        max_steps=SETTINGS["max_steps"], site=site, expansion=expansion, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("width", "overlap", "answer", "spans"),
    [
        (40, 0, 80, [(0, 40), (40, 80)]),
        (40, 0, 81, [(0, 40), (40, 80), (80, 81)]),
        (4, 2, 9, [(0, 4), (2, 6), (4, 8), (6, 9)]),
        (4, 2, 6, [(0, 4), (2, 6)]),
        (4, 3, 2, [(0, 2)]),
        (4, 0, 1, [(0, 1)]),
    ],
)
def test_windows_hold_every_token_and_begin_behind_their_slots(width, overlap, answer, spans):
    units = Chunks(width, overlap).units(Row(tuple(range(7)), 3), answer)
    assert [(unit.start, unit.stop) for unit in units] == spans
    assert [unit.slot for unit in units] == [6 + start for start, _ in spans]


@pytest.mark.parametrize(("family", "site", "overlap"), [("llama", "block", 0), ("gpt2", "matrix", 1)])
def test_each_window_is_found_with_the_earlier_targets_in_their_places(family, site, overlap):
    model, by = make_model(family), Chunks(3, overlap)
    found = make_stage(by, site).optimize(model, LONG, ["{}"])
    built = build_rows(LONG, ["{}"], model.text)
    vectors = found.of_requests(found.vectors)
    assert found.units[0] > 2
    assert found.units[1] > 2, "an answer with braces is an answer"
    for i, rows in enumerate(built):
        held, steps, lost = [], 0, []
        for number, unit in enumerate(cut(rows, by, ())):
            assert unit.essence is None
            expected, more, losses = descend(model, unit, kl=0, extra_steps=None, site=site, held=held, **SETTINGS)
            assert (vectors[i][number] - expected).norm() < 1e-6 * expected.norm()
            held.append((unit.contexts[0].slot, expected))
            steps, lost = steps + more, [*lost, losses[-1]]
        assert found.steps[i] == steps
        assert found.losses[i] == pytest.approx(sum(lost) / len(lost), rel=1e-6)
    together = make_stage(by, site).optimize(model, LONG[:1], ["{}"])
    torch.testing.assert_close(together.vectors, vectors[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("site", ["block", "matrix"])
def test_earlier_targets_stand_in_the_layer_that_the_targets_are_for(site):
    """A policy may ask for targets at any edited layer, not at the last one alone."""
    below = make_stage(Chunks(3), site).optimize(make_model(layers=(0, 1)), LONG, ["{}"], layer=0)
    alone = make_stage(Chunks(3), site).optimize(make_model(layers=(0,)), LONG, ["{}"])
    assert torch.equal(below.vectors, alone.vectors)


def test_one_window_is_an_edit_at_the_prompts_last_token():
    model = make_model()
    at_the_end = [LONG[0], EditRequest(id="1", prompt=LONG[1].text, target=LONG[1].target), LONG[2]]
    chunked = make_stage(Chunks(1000)).optimize(model, LONG, ["{}"])
    whole = make_stage(None).optimize(model, at_the_end, ["{}"])
    assert torch.equal(chunked.vectors, whole.vectors)
    assert (chunked.steps, chunked.losses, chunked.units) == (whole.steps, whole.losses, [1, 1, 1])


def test_answers_that_begin_alike_share_the_targets_of_the_keys_they_share():
    model = make_model()
    twins = [
        EditRequest(id=name, prompt="the mother", relation=name, target=f"of the city in {end} is")
        for name, end in (("a", "piano"), ("b", "guitar"))
    ]
    shared = 1 + len(model.text.continuations([("the mother", "of the city in")])[0][1])
    found = make_stage(Chunks(1)).optimize(model, twins, ["{}"])
    one, other = found.of_requests(found.vectors)
    assert torch.equal(one[:shared], other[:shared])
    assert not torch.allclose(one[shared], other[shared])
    assert found.groups[0] == found.groups[1]


def test_chunks_take_no_contexts():
    model = make_model()
    with pytest.raises(EditError, match=r"Chunks takes prompts as they are.*seeds to \[\]"):
        make_stage(Chunks(), contexts=ContextTemplates(templates=["The river. {}"])).prepare(model, LONG)
    stage = make_stage(Chunks(), contexts=ContextTemplates(seeds=[]))
    stage.prepare(model, LONG)
    assert stage.contexts == ["{}"]
    with pytest.raises(EditError, match=r"Chunks\.overlap is 4"):
        Chunks(4, 4)


CONTEXTS = ["{}", "The river is in the city. {}"]


def said(model, prompt):
    """The model's first choice after a prompt, a token that can be written and read again."""
    [ids] = model.text.prompts([prompt])
    batch = model.text.pad([Row(ids, len(ids) - 1)])
    logits = model.logits(batch, torch.tensor([0]), torch.tensor([len(ids) - 1]))[0]
    order = logits.argsort(descending=True).tolist()
    return next(
        (token, text)
        for token, text in ((t, model.text.tokenizer.decode([t])) for t in order)
        if text.startswith(" ") and text.strip() and model.text.continuations([(prompt, text)])[0][1] == (token,)
    )


def knowing(prompt, how_well=2.0, layers=(0, 1)):
    """A model whose first choice after a prompt is a word, and that word."""
    model = make_model(layers=layers)
    token, text = said(model, prompt)
    with torch.no_grad():
        [ids] = model.text.prompts([prompt])
        hidden = model.network.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        model.network.lm_head.weight[token] += how_well * hidden
    return model, text.strip()


def test_a_neighbour_is_alike_and_known_and_gets_the_same_change():
    prompt = "the mother tongue of Cyd is in"
    model, word = knowing(prompt)
    wrong = "piano" if word != "piano" else "guitar"
    request = EditRequest(
        id="0", prompt="the mother tongue of {} is in", subject="Bob Smith", target="the capital",
        neighborhood=(Probe("Cyd speaks", word), Probe(prompt, wrong), Probe(prompt, word)),
    )  # fmt: skip
    plain = EditRequest(id="1", prompt="{} plays the", subject="Ana", target="piano")
    [(neighbour,), none] = Neighbours().others(model, [request, plain], CONTEXTS)
    assert none == ()
    row, answer = neighbour
    assert model.text.tokenizer.decode(row.ids) == f"The river is in the city. {prompt}"
    assert model.text.tokenizer.decode(row.ids[: row.slot + 1]) == "The river is in the city. the mother tongue of Cyd"
    assert model.text.tokenizer.decode(answer).strip() == word
    stop = [MostProbable(2), LossBelow(0.01)]
    found = make_stage(Neighbours(), kl=0.05, stopping=stop).optimize(model, [plain, request], CONTEXTS)
    built = build_rows([plain, request], CONTEXTS, model.text)
    for i, others in enumerate([(), (neighbour,)]):
        [rows] = cut(built[i], Whole(), others)
        expected, steps, losses = descend(model, rows, kl=0.05, extra_steps=2, **SETTINGS)
        assert (found.vectors[i] - expected).norm() < 1e-6 * expected.norm()
        assert (found.steps[i], found.losses[i]) == (steps, pytest.approx(losses[-1], rel=1e-6))
    without = make_stage(None, kl=0.05, stopping=stop).optimize(model, [plain, request], CONTEXTS)
    torch.testing.assert_close(without.vectors[0], found.vectors[0], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(without.vectors[1], found.vectors[1])


def test_a_neighbours_answer_is_kept_better_than_without_it():
    """In the weights, by MEMIT on one layer: how far the loss of the neighbour's answer rises."""
    prompt, rises = "the mother tongue of Ana is in", []
    for expansion in (Neighbours(), None):
        model, word = knowing(prompt, 0.15, layers=(0,))
        request = EditRequest(
            id="0", prompt="the mother tongue of {} is in", subject="Bob Smith", target="the capital",
            neighbours=(Probe(prompt, word),),
        )  # fmt: skip
        contexts = ContextTemplates(templates=CONTEXTS[1:])
        one = TargetOptimization([NegativeLogLikelihood()], [], NormBall(8.0), contexts, lr=0.5, expansion=expansion)
        solver = LeastSquares([BaseStatistics(0.1)])
        stages, before = Stages(one, WeightUpdate(solver, statistics=Unit(), norm_limit=None)), nll(model, prompt, word)
        stages.prepare(model, [request])
        [(first, last)] = stages.edit(model, EditBatch.of([request]), Register()).targets.nlls
        assert last < first
        rises.append(nll(model, prompt, word) - before)
    assert 0 < rises[0] < rises[1] / 2


def nll(model, prompt, answer):
    """Of an answer, by one forward."""
    [(ids, wanted)] = model.text.continuations([(prompt, answer)])
    read = model.network(torch.tensor([ids + wanted]), use_cache=False).logits[0, len(ids) - 1 : -1]
    return -read.log_softmax(1)[range(len(wanted)), list(wanted)].mean().item()


def test_neighbours_that_are_scored_or_missing_are_told():
    known, plain = Probe("Cyd plays the", "piano"), EditRequest(id="0", prompt="{} plays the", subject="A", target="b")
    scored = EditRequest(id="1", prompt="{} plays the", subject="A", target="b", neighborhood=(known,))
    held = EditRequest(id="2", prompt="{} plays the", subject="A", target="b", neighbours=(known,))
    with pytest.warns(UserWarning, match="1 of 2 edits are made without a neighbour"):
        Neighbours().check([plain, held], CONTEXTS)
    with pytest.warns(UserWarning, match="1 edits use a neighborhood prompt that the scorecard measures"):
        Neighbours().check([scored, held], CONTEXTS)
