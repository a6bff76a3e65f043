"""Batched scores against one plain forward per prompt and continuation."""

import pytest
import torch

from lke_lightning.edits import EditRequest, Probe
from lke_lightning.evaluation.scorecard import summarize
from lke_lightning.evaluation.teacher_forced import continuation_nll, score
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
