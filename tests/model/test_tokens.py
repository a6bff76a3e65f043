"""Positions and target ids by the stated rule, on made-up tokenizers and on real prompts with GPT-2's."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from lke_lightning.edits import EditError, EditRequest
from lke_lightning.model.tokens import TextEncoder
from lke_lightning.testing import WORDS, marker_tokenizer, tiny_tokenizer, word_piece_tokenizer

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


REAL = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}")
KINDS = {
    "byte-level": lambda texts: tiny_tokenizer(texts, vocabulary=2000),
    "byte-level, BOS": lambda texts: tiny_tokenizer(texts, bos=True, vocabulary=2000),
    "marker always, BOS": lambda texts: marker_tokenizer(texts, vocabulary=2000),
    "marker first": lambda texts: marker_tokenizer(texts, bos=False, vocabulary=2000, scheme="first"),
    "marker never, BOS": lambda texts: marker_tokenizer(texts, vocabulary=2000, scheme="never"),
    "unigram": lambda texts: marker_tokenizer(texts, bos=False, vocabulary=2000, kind="unigram"),
    "WordPiece": lambda texts: word_piece_tokenizer(texts, vocabulary=3000),
    "WordPiece, BOS and EOS": lambda texts: word_piece_tokenizer(texts, bos=True, vocabulary=3000),
}


@functools.cache
def real_edits():
    """Return (prompt, subject, target) of 1,200 CounterFact and 800 zsRE records."""
    counterfact = json.loads((SHARED / "data/counterfact/multi_counterfact.json").read_text())[:1200]
    zsre = json.loads((SHARED / "data/zsre/zsre_mend_eval.json").read_text())
    rewrites = [record["requested_rewrite"] for record in counterfact]
    found = [(r["prompt"].format(r["subject"]), r["subject"], r["target_new"]["str"]) for r in rewrites]
    fitting = [r for r in zsre if r["src"].count(r["subject"]) == 1 and r["answers"][0].strip()]
    return found + [(r["src"], r["subject"], r["answers"][0]) for r in fitting[:800]]


@REAL
@pytest.mark.parametrize("kind", KINDS)
def test_rule_on_real_prompts_with_every_kind_of_tokenizer(kind):
    edits = real_edits()
    text = TextEncoder(KINDS[kind]([f"{prompt} {target}" for prompt, _, target in edits]))
    begin, seen = text.tokenizer.bos_token_id, {True: 0, False: 0}
    asked = [(prompt, prompt[: prompt.index(subject) + len(subject)]) for prompt, subject, _ in edits]
    rows = text.rows(asked)
    pairs = text.continuations([(prompt, target) for prompt, _, target in edits])
    plain = text.tokenizer([f"{prompt} {target.strip()}" for prompt, _, target in edits], add_special_tokens=False)
    for row, (_, upto), (ids, target), whole in zip(rows, asked, pairs, plain["input_ids"], strict=True):
        assert ids == row.ids
        assert ids[: len(text.prefix)] == text.prefix
        assert ids + target == (*text.prefix, *whole)  # nothing doubled, dropped or appended at the boundary
        assert begin not in target
        assert begin not in ids[len(text.prefix) :]
        said = squeezed(text.tokenizer.decode(row.ids[len(text.prefix) : row.slot + 1]))
        before = squeezed(text.tokenizer.decode(row.ids[len(text.prefix) : row.slot]))
        if (text.tokenizer.unk_token or "no such token") not in said:  # which has other letters than what it stands for
            assert len(before) < len(squeezed(upto)) <= len(said)
        seen[len(target) > 1] += 1
    assert min(seen.values()) > 100, "single- and multi-token targets both"


def squeezed(text):
    return "".join(text.split()).replace("##", "").rstrip("\ufffd")  # half a letter


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizers_padding_side_does_not_matter(kind):
    found, tokenizer = [], KINDS[kind]([" ".join(WORDS)])
    for side in ("left", "right"):
        tokenizer.padding_side = side
        text = TextEncoder(tokenizer)
        batch = text.pad(text.rows([("the city of the river", "the city"), ("guitar", "guitar")]))
        found.append((batch.ids.tolist(), batch.mask.tolist(), batch.slots.tolist()))
    assert found[0] == found[1]


def test_bytes_stand_in_for_what_is_not_in_the_vocabulary():
    text = TextEncoder(marker_tokenizer())
    [(_, target)] = text.continuations([("the city", "東京")])
    assert len(target) >= 6
    assert text.tokenizer.decode(target).strip() == "東京"


def test_a_bos_in_the_text_is_not_doubled_and_never_a_target():
    text = TextEncoder(tiny_tokenizer(bos=True))
    assert text.encode(["<s>the city"]) == text.encode(["the city"])
    with pytest.raises(EditError, match="BOS"):
        text.continuations([("the city", "<s>")])


def test_where_a_target_merges_with_its_prompt_both_keep_their_own_tokens():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    letters = {letter: i for i, letter in enumerate("ab c.")}
    letters["b c"] = len(letters)
    merged = Tokenizer(models.BPE({**letters, "b ": 6}, [("b", " "), ("b ", "c")]))
    text = TextEncoder(PreTrainedTokenizerFast(tokenizer_object=merged))
    assert text.continuations([("ab", "c")]) == [((0, 1), (2, 3))]
