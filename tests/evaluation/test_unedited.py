"""Scores of the unedited model from the cache: the same bits, no forward, and only where everything is the same."""

import pytest
import torch
from torch import nn

from lke_lightning.cache import TensorCache
from lke_lightning.edits import EditRequest, Probe
from lke_lightning.evaluation import unedited
from lke_lightning.evaluation.teacher_forced import score
from lke_lightning.evaluation.unedited import UneditedScores, user_cache
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.testing import tiny_network, tiny_tokenizer

REQUESTS = [
    EditRequest(id="0", prompt="{} was born in", subject="Bob", target="the city", original="a",
                neighborhood=(Probe("Ana was born in", "a"),)),
    EditRequest(id="1", prompt="The capital", target="is"),
]  # fmt: skip
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


def model(chat=False, system=None, dtype=torch.float64):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return LanguageModel(tiny_network("llama").to(dtype), tokenizer, [0], chat=chat, system=system)


def found(model, cache, requests=REQUESTS, precision="32-true", protocol="p"):
    """Return scores, the ids of what had to be scored, and what a run finds out to be so."""
    asked = []

    def run(some):
        asked.extend(request.id for request in some)
        return score(model, some)

    known = UneditedScores(model, precision, cache)
    scores = known.recall(protocol, requests, run)
    assert known.keep() == set(asked)
    return scores, asked


@pytest.fixture
def cache(tmp_path):
    return TensorCache(str(tmp_path), "x")


def same(some, others):
    return all(
        one.keys() == other.keys() and all(torch.equal(one[k].nan_to_num(9), other[k].nan_to_num(9)) for k in one)
        for one, other in zip(some, others, strict=True)
    )


def test_what_was_scored_once_is_not_scored_again_and_a_longer_stream_only_in_its_rest(cache, monkeypatch):
    first, asked = found(model(), cache, REQUESTS[:1])
    assert asked == ["0"]
    again = model()
    longer, asked = found(again, cache)
    assert asked == ["1"]
    assert same(longer[:1], first)
    monkeypatch.setattr(nn.Module, "__call__", None)  # no forward of any module
    hit, asked = found(again, cache)
    assert asked == []
    assert same(hit, longer)


def test_other_ids_are_the_same_question_and_scores_may_be_added_to(cache):
    found(model(), cache, REQUESTS[1:])
    named = EditRequest(id="z", prompt="The capital", target="is")
    [scores], asked = found(model(), cache, [named])
    assert asked == []
    scores["more"] = torch.ones(1)
    assert "more" not in found(model(), cache, [named])[0][0]


def test_whatever_scores_depend_on_makes_them_new(cache):
    found(model(), cache)
    network = model()
    with torch.no_grad():
        network.network.get_input_embeddings().weight[5, 0] += 1
    changed = LanguageModel(network.network, network.text.tokenizer, [0])
    asks = EditRequest(id="0", prompt="{} was born in", subject="Bob", target="the city", original="the")
    others = [
        (changed, {}), (model(dtype=torch.float32), {}), (model(chat=True), {}),
        (model(), {"precision": "bf16-mixed"}), (model(), {"protocol": "q"}), (model(), {"requests": [asks]}),
        (model(chat=True, system="Be short."), {}),
    ]  # fmt: skip
    for other, options in others:
        _, asked = found(other, cache, **options)
        assert asked == [request.id for request in options.get("requests", REQUESTS)]
    assert found(model(), cache)[1] == []  # what the others stored took nothing away


def test_a_damaged_file_is_made_anew(cache, tmp_path):
    first, _ = found(model(), cache)
    [file] = (tmp_path / unedited.KIND).iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-9] + bytes(9))
    with pytest.warns(UserWarning, match="damaged and is made anew"):
        again, asked = found(model(), cache)
    assert asked == ["0", "1"]
    assert same(again, first)
    assert found(model(), cache)[1] == []


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / unedited.KIND).write_text("in the way, also of a superuser")
    with pytest.warns(UserWarning, match="could not be cached"):
        assert found(model(), TensorCache(str(tmp_path), "x"))[1] == ["0", "1"]
    assert found(model(), None)[1] == ["0", "1"]
    monkeypatch.setenv("LKE_CACHE", str(tmp_path / unedited.KIND))
    with pytest.warns(UserWarning, match="not kept for the next run"):
        assert user_cache() is None


def test_a_number_is_measured_once(cache):
    measured = []
    for what in ({"text": "a"}, {"text": "a"}, {"text": "b"}):
        known = UneditedScores(model(), "32-true", cache)
        assert known.number(what, lambda: measured.append(1) or torch.inf) == torch.inf
    assert len(measured) == 2


def test_what_a_run_asks_twice_no_earlier_one_has_scored(cache):
    named = EditRequest(id="z", prompt="The capital", target="is")
    known = UneditedScores(model(), "32-true", cache)
    known.recall("p", [REQUESTS[1], named], lambda some: score(model(), some))
    assert known.keep() == {"1", "z"}
