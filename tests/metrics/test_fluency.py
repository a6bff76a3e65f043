"""Entropy and TF-IDF cosine, against the formulas written out."""

import builtins
import math
import re

import pytest

from lke_lightning.edits import EditError
from lke_lightning.metrics import TextSimilarity, ngram_entropy

TEXT = "The river is wide, the river is deep. The river's bank is high; the bank is wide!"


def naive_entropy(text):
    words = re.findall(r"\w+|[^\w\s]", text)
    parts = []
    for n in (2, 3):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        shares = [grams.count(gram) / len(grams) for gram in set(grams)]
        parts.append(sum(-share * math.log(share) / math.log(2) for share in shares))
    return (2 / 3 * parts[0] + 4 / 3 * parts[1]) / 2


def test_entropy_against_the_formula():
    assert ngram_entropy(TEXT) == pytest.approx(naive_entropy(TEXT))


def test_entropy_of_texts_that_are_known():
    assert ngram_entropy("so so so so so") == 0
    assert ngram_entropy("a b c d e") == pytest.approx((2 / 3 * 2 + 4 / 3 * math.log2(3)) / 2)  # 4 and 3 different ones
    assert ngram_entropy("word") == ngram_entropy("") == 0


CORPUS = ["plays the guitar in a band", "plays football for the club", "was born near the river"]


def naive_cosine(one, other):
    words = [set(re.findall(r"\b\w\w+\b", text.lower())) for text in CORPUS]
    idf = {word: math.log(4 / (1 + sum(word in part for part in words))) + 1 for word in set().union(*words)}

    def vector(text):
        found = re.findall(r"\b\w\w+\b", text.lower())
        return {word: found.count(word) * idf[word] for word in set(found) & set(idf)}

    a, b = vector(one), vector(other)
    dot = sum(a[word] * b[word] for word in set(a) & set(b))
    return dot / math.sqrt(sum(x * x for x in a.values())) / math.sqrt(sum(x * x for x in b.values()))


def test_consistency_against_the_formula():
    generated, references = ["He plays the Guitar,", "the guitar!"], CORPUS[:2]
    assert TextSimilarity(CORPUS)(generated, references) == pytest.approx(
        naive_cosine(" ".join(generated), " ".join(references))
    )


def test_consistency_is_undefined_without_texts():
    similarity = TextSimilarity(CORPUS)
    assert similarity(["plays the guitar in a band"], CORPUS[:1]) == pytest.approx(1)
    assert math.isnan(similarity(["anything"], []))
    assert math.isnan(similarity([], CORPUS))
    assert similarity(["xyz"], CORPUS) == 0


def test_what_is_missing_is_told(monkeypatch):
    with pytest.raises(EditError, match="no word"):
        TextSimilarity(["!"])
    load = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EditError, match=r"pip install 'lke-lightning\[eval\]'"):
        TextSimilarity(CORPUS)
