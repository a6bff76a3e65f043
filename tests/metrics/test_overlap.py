"""Words in common with a reference, against counts by hand, and likeness of meaning by a tiny encoder."""

import math

import huggingface_hub.constants
import pytest
import torch

from lke_lightning.edits import EditError
from lke_lightning.metrics import MeaningSimilarity, overlap
from lke_lightning.testing import tiny_tokenizer


def test_overlap_by_hand():
    """Of 6 words 5 are there, of 5 pairs 3, of 4 triples 2, of 3 quadruples 1; the longest common part has 5 words."""
    bleu, f1, recall = overlap("the cat sat on the mat", "the cat sat on a mat")
    assert bleu == pytest.approx((5 / 6 * 4 / 6 * 3 / 5 * 2 / 4) ** 0.25, abs=1e-6)
    assert f1 == recall == pytest.approx(5 / 6)
    assert overlap("The CAT", "the cat sat on")[1:] == pytest.approx((2 / 3, 0.5))
    assert overlap("", "a b") == (0, 0, 0)
    assert overlap("def f():\n  return {1: 2}", "def f():\n  return {1: 2}") == (1, 1, 1)


def test_meaning_is_the_cosine_of_mean_states(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # no retries for a model that is nowhere
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = BertModel(BertConfig(vocab_size=400, max_position_embeddings=32, **sizes)).eval()
    encoder.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    found = MeaningSimilarity(str(tmp_path))
    one, other = "the city of the river", "piano"
    with torch.no_grad():
        means = [encoder(torch.tensor([tokenizer(t)["input_ids"]])).last_hidden_state[0].mean(0) for t in (one, other)]
    assert found(one, other) == pytest.approx(torch.cosine_similarity(*means, dim=0).item(), abs=1e-5)
    assert math.isclose(found(one, one), 1, abs_tol=1e-5)
    assert math.isfinite(found("the " * 100, one))
    with pytest.raises(EditError, match="cannot load a sentence-embedding model from 'nowhere/x'"):
        MeaningSimilarity("nowhere/x")
