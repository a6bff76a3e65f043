"""Positions and target ids by the stated rule, on made-up tokenizers and on real prompts with GPT-2's."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from lke_lightning.edits import EditError, EditRequest
from lke_lightning.model.tokens import TextEncoder
from lke_lightning.testing import tiny_tokenizer

SHARED = Path(__file__).parents[3] / "shared"


@pytest.mark.parametrize("bos", [False, True])
def test_prefix_stands_once_in_front(bos):
    text = TextEncoder(tiny_tokenizer(bos=bos))
    [(prompt, target)] = text.continuations([("Bob was born in", "the city")])
    assert (prompt[0] == 0) == bos
    assert 0 not in prompt[1:] + target
    assert text.tokenizer.decode(target) == " the city"


def test_a_blank_at_the_seam_is_not_doubled():
    text = TextEncoder(tiny_tokenizer())
    assert text.continuations([("Bob was born in ", " the city")]) == text.continuations(
        [("Bob was born in", "the city")]
    )


def test_slot_is_the_last_token_of_the_subject():
    text = TextEncoder(tiny_tokenizer(bos=True))
    request = EditRequest(id="0", prompt="In {}, they speak", subject="the river city", target="guitar")
    [row] = text.rows([request.in_context("Because. {}")])
    assert text.tokenizer.decode(row.ids[1 : row.slot + 1]) == "Because. In the river city"


def test_slot_without_a_subject_is_the_last_token():
    text = TextEncoder(tiny_tokenizer())
    [row] = text.rows([EditRequest(id="0", prompt="they speak", target="guitar").in_context("{}")])
    assert row.slot == len(row.ids) - 1


def test_where_the_subjects_end_merges_the_merged_token_is_the_slot():
    text = TextEncoder(tiny_tokenizer(["zqzqzq zqzqzq"] * 50))
    whole, part = text.encode(["zqzqzq", "zqz"])
    assert whole[: len(part)] != part
    [row] = text.rows([("zqzqzq", "zqz")])
    assert "z" in text.tokenizer.decode([row.ids[row.slot]])


def test_an_unknown_target_is_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "Bob": 1, "likes": 2, "tea": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    text = TextEncoder(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]"))
    assert text.continuations([("Bob likes", "tea")]) == [((1, 2), (3,))]
    with pytest.raises(EditError, match="unknown to this vocabulary"):
        text.continuations([("Bob likes", "coffee")])


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}")
def test_rule_on_real_prompts_with_gpt2():
    """Against character offsets, an independent route that is reliable for GPT-2's tokenizer."""
    from transformers import GPT2TokenizerFast

    files = SHARED / "data/tokenizers/gpt2"
    vocabulary, merges = json.loads((files / "vocab.json").read_text()), (files / "merges.txt").read_text().split("\n")
    pairs = [tuple(line.split()) for line in merges if line and not line.startswith("#version")]
    text = TextEncoder(GPT2TokenizerFast(vocab=vocabulary, merges=pairs))
    records = json.loads((SHARED / "data/counterfact/multi_counterfact.json").read_text())[:3000]
    requests = [r["requested_rewrite"] for r in records]
    placed = [EditRequest("", r["prompt"], r["target_new"]["str"], r["subject"]).in_context("{}") for r in requests]
    for row, (whole, upto) in zip(text.rows(placed), placed, strict=True):
        offsets = text.tokenizer(whole, return_offsets_mapping=True)["offset_mapping"]
        assert row.slot == next(i for i, (start, end) in enumerate(offsets) if start < len(upto) <= end)
    targets = text.continuations(
        [(whole, r["target_new"]["str"]) for (whole, _), r in zip(placed, requests, strict=True)]
    )
    assert all(len(ids) == 1 for _, ids in targets), "all CounterFact targets are single GPT-2 tokens"


def test_a_prompt_is_tokenised_once(monkeypatch):
    text, pairs = TextEncoder(tiny_tokenizer()), [("the city", "the"), ("a river is", "a river")]
    first = text.rows(pairs), text.continuations(pairs)
    monkeypatch.setattr(text, "tokenizer", SimpleNamespace(unk_token_id=None))
    assert (text.rows(pairs), text.continuations(pairs)) == first
