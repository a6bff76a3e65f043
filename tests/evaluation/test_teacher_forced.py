"""Batched scores against one plain forward per prompt and continuation."""

import pytest
import torch

from lke_lightning.edits import EditError, EditRequest, Probe
from lke_lightning.evaluation import likelihood, teacher_forced
from lke_lightning.evaluation.summary import summarize
from lke_lightning.evaluation.teacher_forced import continuation_nll, continuations, score
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.testing import tiny_network, tiny_tokenizer

PAIRS = [("Bob was born in", "the city"), ("Bob was born in", "a"), ("The capital", "is"), ("Bob was born in", "the")]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("max_tokens", [1, 10_000])
def test_continuations_against_plain_forwards(family, bos, max_tokens):
    model = LanguageModel(tiny_network(family), tiny_tokenizer(bos=bos), [0])
    nll, correct = continuation_nll(model, PAIRS, max_tokens)
    for i, (prompt, target) in enumerate(model.text.continuations(PAIRS)):
        logits = model.network(input_ids=torch.tensor([prompt + target])).logits[0].log_softmax(-1)
        read = logits[len(prompt) - 1 : -1]
        assert nll[i].item() == pytest.approx(-read[range(len(target)), target].mean().item())
        assert correct[i].item() == (read.argmax(-1).tolist() == list(target))


@pytest.mark.parametrize("cost", [0, 99])
def test_scores_are_alike_with_and_without_shared_prefixes_and_a_few_logits_at_a_time(cost, monkeypatch):
    model = LanguageModel(tiny_network("llama"), tiny_tokenizer(), [0])
    pairs = [
        (f"{who} was born in the", what) for who in ("Bob", "Ana", "The city of Bob") for what in ("a", "the city")
    ]
    rows = []
    run = model.states
    monkeypatch.setattr(model, "states", lambda batch, *read: rows.extend(batch.ids.tolist()) or run(batch, *read))
    expected = continuations(model, pairs)
    assert len(rows) == 3  # that of the long answer has that of the short one in it
    monkeypatch.setattr(teacher_forced, "SHARED_COST", cost)
    monkeypatch.setitem(likelihood.LOGITS_AT_ONCE, "cpu", 1)
    found = continuations(model, pairs)
    torch.testing.assert_close(found.nll, expected.nll, rtol=1e-9, atol=0)
    assert found.top.tolist() == expected.top.tolist()


@pytest.mark.parametrize("max_tokens", [1, 10_000])
def test_right_tokens_and_what_is_said_against_plain_forwards(max_tokens):
    model = LanguageModel(tiny_network("llama"), tiny_tokenizer(), [0])
    pairs = [*PAIRS, ("Bob was born in", "the river of the city")]
    says, right = [], []
    for prompt, target in model.text.continuations(pairs):
        read = model.network(input_ids=torch.tensor([prompt + target])).logits[0].argmax(-1)[len(prompt) - 1 : -1]
        says += read.tolist()
        right.append(sum(a == b for a, b in zip(read.tolist(), target, strict=True)))
    found = continuations(model, pairs, max_tokens)
    assert found.top.tolist() == says
    assert found.right.tolist() == right
    assert found.tokens.tolist() == [len(target) for _, target in model.text.continuations(pairs)]


def test_tokens_are_counted_for_both_continuations_and_the_neighborhood_is_remembered():
    model = LanguageModel(tiny_network("llama"), tiny_tokenizer(), [0])
    request = EditRequest(
        id="0", prompt="{} was born in", subject="Bob", target="the city of", original="a",
        neighborhood=(Probe("Ana was born in", "a"), Probe("The capital", "the river")),
        portability=(Probe("Bob is", "a", ("another",)),), two_hop=(Probe("the river of Bob is", "the city"),),
    )  # fmt: skip
    [scores] = score(model, [request])
    asked = [("Bob was born in", "the city of"), ("Bob was born in", "a"),
             ("Ana was born in", "a"), ("The capital", "the river"), ("the river of Bob is", "the city")]  # fmt: skip
    found = continuations(model, asked)
    expected = [float(x) for pair in zip(found.right.tolist(), found.tokens.tolist(), strict=True) for x in pair]
    assert scores["efficacy/tokens"].tolist() == [expected[:4]]
    assert scores["neighborhood/tokens"][:, :2].flatten().tolist() == expected[4:8]
    assert scores["two_hop/tokens"][:, :2].flatten().tolist() == expected[8:]
    assert scores["two_hop/tokens"][:, 2:].isnan().all()
    parts = found.top.split(found.tokens.tolist())
    assert scores["neighborhood/says"].tolist() == torch.cat(parts[2:4]).tolist()
    assert scores["portability"].shape == (1, 3)


def test_each_question_gets_its_own_answer():
    model = LanguageModel(tiny_network("llama"), tiny_tokenizer(), [0])
    requests = [
        EditRequest(
            id="0", prompt="{} was born in", subject="Bob", target="the city", original="a",
            paraphrases=("Bob is native in", "The city of Bob is"), neighborhood=(Probe("Ana was born in", "a"),),
        ),
        EditRequest(id="1", prompt="The capital", target="is", neighborhood=(Probe("the river is", "a"),)),
    ]  # fmt: skip
    first, second = score(model, requests)
    wanted, _ = continuation_nll(model, [("Ana was born in", "a"), ("Ana was born in", "the city")])
    assert first["neighborhood"][0, :2].tolist() == pytest.approx(wanted.tolist())
    assert first["paraphrase"].shape == (2, 3)
    assert second["efficacy"][0, 1].isnan()
    assert second["paraphrase"].shape == (0, 3)
    summary = summarize([second])
    assert summary["score"] is None
    assert summary["efficacy"]["success"] is None
    assert summary["efficacy"]["accuracy"] in (0.0, 1.0)


@pytest.mark.parametrize("family", ["gpt2", "llama"])  # learned positions, and rotary ones
def test_a_question_beyond_the_context_is_refused_and_one_that_fills_it_is_not(family):
    model = LanguageModel(tiny_network(family), tiny_tokenizer(bos=True), [0])
    fills, beyond = (" ".join(["the"] * count) for count in (64, 65))
    [(prompt, answer)] = model.text.continuations([(fills, "city")])
    assert (len(prompt), len(answer)) == (128, 1)  # the last token of an answer is not read
    assert continuations(model, [(fills, "city")]).nll.isfinite().all()
    with pytest.raises(EditError, match="takes 130 tokens, but the model's context holds 128: shorten it"):
        continuations(model, [("is", "a"), (beyond, "city")])
