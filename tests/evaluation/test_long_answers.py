"""Long answers are generated as far as their references go, across line breaks, and compared with them."""

import math

import pytest
import torch

from lke_lightning.edits import EditRequest, Probe
from lke_lightning.evaluation import long_answers
from lke_lightning.evaluation.long_answers import OVERLAP, write_answers
from lke_lightning.evaluation.summary import section
from lke_lightning.metrics import overlap
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.testing import tiny_network, tiny_tokenizer


@pytest.fixture(scope="module")
def model():
    return LanguageModel(tiny_network("llama"), tiny_tokenizer(), [0])


REQUEST = EditRequest(
    id="0", prompt="the mother of", target="the city\nof the {river}", paraphrases=("the capital of",),
    neighborhood=(Probe("a b", "c"),), portability=(Probe("the sport", "piano"),),
)  # fmt: skip


def plainly(model, prompt, reference):
    """As many tokens as the reference has, one whole forward each."""
    [(ids, wanted)] = model.text.continuations([(prompt, reference)])
    new = []
    for _ in wanted:
        new.append(model.network(torch.tensor([[*ids, *new]])).logits[0, -1].argmax().item())
    return model.text.tokenizer.decode([*ids, *new])[len(model.text.tokenizer.decode(ids)) :]


def test_answers_are_as_long_as_their_references(model, monkeypatch):
    monkeypatch.setattr(long_answers, "end_tokens", lambda model: frozenset())
    bare = EditRequest(id="1", prompt="a b c", target="piano")
    found, plain = write_answers(model, [REQUEST, bare], similarity=lambda one, other: len(one))
    assert set(found) == {kind + OVERLAP for kind in ("efficacy", "paraphrase", "portability")}
    assert set(plain) == {"efficacy" + OVERLAP}
    text = plainly(model, REQUEST.prompt, REQUEST.target)
    expected = [*overlap(text, REQUEST.target), len(text)]
    assert found["efficacy" + OVERLAP].tolist() == [pytest.approx(expected)]


def test_the_scorecard_has_their_means(model):
    [found] = write_answers(model, [REQUEST])
    kinds = {kind: torch.zeros(0, 3).double() for kind in ("efficacy", "paraphrase", "neighborhood")}
    other = {"efficacy" + OVERLAP: torch.tensor([[1.0, 0.5, 0.25, math.nan]]).double()}
    summed = section({"0": kinds | found, "1": kinds | other}, ["0", "1"])["long_answers"]
    assert summed["efficacy"]["bleu"] == pytest.approx((1 + found["efficacy" + OVERLAP][0, 0].item()) / 2, abs=1e-6)
    assert "embedding" not in summed["efficacy"]
    assert set(summed) == {"efficacy", "paraphrase", "portability"}
