"""Perplexity in batches against one plain forward per window."""

import math

import pytest
import torch

from lke_lightning.edits import EditError
from lke_lightning.evaluation import likelihood
from lke_lightning.evaluation.perplexity import perplexity, summed_nll
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.testing import WORDS, tiny_network, tiny_tokenizer

TEXTS = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(5)] + ["a", "the river"]


def naive(model, texts, tokens, length):
    """Go document by document, window by window, token by token."""
    prefix, nll = list(model.text.prefix), []
    for text in texts:
        ids = model.text.tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]
        tokens -= len(ids)
        while ids:
            window, ids = prefix + ids[: length - len(prefix)], ids[length - len(prefix) :]
            read = model.network(input_ids=torch.tensor([window])).logits[0].log_softmax(-1)
            nll += [-read[i - 1, window[i]].item() for i in range(1, len(window))]
    return math.exp(sum(nll) / len(nll))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("max_tokens", [1, 10_000])
def test_against_plain_forwards(family, bos, max_tokens, monkeypatch):
    monkeypatch.setitem(likelihood.LOGITS_AT_ONCE, "cpu", 7 * 400)  # seven rows of logits at a time
    model = LanguageModel(tiny_network(family), tiny_tokenizer(bos=bos), [0])
    for tokens, length in ((10_000, 9), (50, 16), (10_000, 100)):
        expected = naive(model, TEXTS, tokens, length)
        assert perplexity(model, TEXTS, tokens, length, max_tokens) == pytest.approx(expected, rel=1e-6)


def test_windows_are_no_longer_than_the_model_has_positions():
    model = LanguageModel(tiny_network("gpt2"), tiny_tokenizer(), [0])
    text = [" ".join(WORDS * 20)]
    assert len(model.text.encode(text)[0]) > 128
    assert perplexity(model, text, length=512) == pytest.approx(naive(model, text, 20000, 128), rel=1e-9)


@pytest.mark.parametrize("max_tokens", [1, 20, 10_000])
def test_every_sequence_has_its_own_sum(max_tokens):
    model = LanguageModel(tiny_network("llama"), tiny_tokenizer(), [0])
    rows = [ids for ids in model.text.encode(TEXTS) if len(ids) > 1]
    expected = []
    for ids in rows:
        read = model.network(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected.append(-sum(read[i - 1, ids[i]].item() for i in range(1, len(ids))))
    assert summed_nll(model, rows, max_tokens).tolist() == pytest.approx(expected, rel=1e-6)


def test_text_without_anything_to_predict_is_an_error():
    model = LanguageModel(tiny_network("llama"), tiny_tokenizer(), [0])
    with pytest.raises(EditError, match="no token to predict"):
        perplexity(model, ["a"])
