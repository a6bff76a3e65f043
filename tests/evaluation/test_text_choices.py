"""Tasks made of ordinary text: what is asked, what counts as right, and what text is refused."""

import json
import random

import pytest
import torch

from lke_lightning.edits import EditError
from lke_lightning.evaluation import text_choices
from lke_lightning.evaluation.text_choices import BEGINNING, ENDING, OTHER, Agreement, Completion
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.testing import WORDS, tiny_network, tiny_tokenizer

SENTENCES = [
    "The river {} long. There is water.",
    "In the north there {} a city.\nIt {} and {} big.",  # nothing to ask: decided by what follows, or two verbs
    "Every word of the text {} short.",
]


@pytest.fixture(scope="module")
def model():
    return LanguageModel(tiny_network("llama"), tiny_tokenizer(), [0, 1])


def lines(folder, documents):
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return [str(path)]


def articles(count):
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=100)) for _ in range(count)]


def test_agreement_asks_for_the_number_of_the_only_verb_as_often_in_singular_as_in_plural(tmp_path):
    documents = [sentence.format(verb, verb, verb) for sentence in SENTENCES for verb in OTHER]
    choices = Agreement(lines(tmp_path, documents), limit=12).read()
    verbs = [choice.endings[0] for choice in choices]
    assert [verb in ("is", "was", "has") for verb in verbs] == [True, False] * 6
    assert {choice.beginning for choice in choices} == {"The river", "Every word of the text"}
    assert all(choice.endings == (verb, OTHER[verb]) for choice, verb in zip(choices, verbs, strict=True))


def test_completion_asks_for_what_follows_among_what_comes_later(tmp_path):
    documents = ["too short", *articles(9)]
    choices = Completion(lines(tmp_path, documents), limit=9).read()
    for document, choice in zip(documents[1:], choices, strict=True):
        words = document.split()
        assert choice.beginning == " ".join(words[:BEGINNING])
        assert choice.endings[0] == " ".join(words[BEGINNING : BEGINNING + ENDING])
        assert len(set(choice.endings)) == 4
        later = " ".join(words[BEGINNING + ENDING :])
        assert all(ending in later and len(ending.split()) == ENDING for ending in choice.endings[1:])
    assert choices == Completion(lines(tmp_path, documents), limit=9).read()
    assert choices != Completion(lines(tmp_path, documents), limit=9, seed=1).read()
    assert choices[:5] == Completion(lines(tmp_path, documents), limit=5).read()


def test_right_is_what_is_more_probable_than_all_others(model, tmp_path):
    task = Completion(lines(tmp_path, articles(6)), limit=6)
    found = task.measure(model)
    right = 0
    for choice in task.read():
        nll = []
        for ending in choice.endings:
            ids, words = model.text.continuations([(choice.beginning, ending)])[0]
            logp = model.network(torch.tensor([ids + words])).logits[0].double().log_softmax(-1)
            nll.append(-sum(logp[len(ids) - 1 + j, word].item() for j, word in enumerate(words)) / len(words))
        right += nll[0] < min(nll[1:])
    assert found["accuracy"] == pytest.approx(right / 6, abs=1e-6)
    share = right / 6
    assert found["standard_error"] == pytest.approx((share * (1 - share) / 6) ** 0.5, abs=1e-6)
    assert (found["chance"], found["items"]) == (0.25, 6)


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_a_broken_model_is_never_right(model, tmp_path, monkeypatch, value):
    class Found:
        nll = torch.full((24,), value)

    monkeypatch.setattr(text_choices, "continuations", lambda *_: Found)
    assert Completion(lines(tmp_path, articles(6)), limit=6).measure(model)["accuracy"] == 0


def test_text_that_gives_too_few_questions_is_refused(tmp_path):
    text = lines(tmp_path, articles(3))
    with pytest.raises(EditError, match=r"gives 3 questions of Completion, not 9: give more text"):
        Completion(text, limit=9).check()
    with pytest.raises(EditError, match=r"limit of Agreement \(downstream.tasks\) is 0"):
        Agreement(text, limit=0).check()
    with pytest.raises(EditError, match=r"no text file 'nowhere.txt' \(downstream.tasks, Agreement\)"):
        Agreement(["nowhere.txt"]).check()
