"""Correctness of freely generated answers: comparison of texts after normalization.

Normalization: Unicode NFKC, case folded, punctuation (Unicode category P) deleted, the articles a, an and the dropped
unless nothing else remains, whitespace collapsed; SQuAD's steps, for all of Unicode. *exact*: the whole generated text
is one of the accepted answers. *prefix*: it begins with one, ending at a word boundary; a model that answers and then
continues is correct only by this one, even if it then retracts its answer.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

ARTICLES = frozenset({"a", "an", "the"})

ANSWER_MEASURES = ("exact", "prefix")


def normalize(text: str) -> str:
    """Return the normalized text.

    Example:
        >>> normalize(" The  U.S. president's ")
        'us presidents'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = "".join(letter for letter in folded if not unicodedata.category(letter).startswith("P")).split()
    return " ".join([word for word in words if word not in ARTICLES] or words)


def digest(text: str) -> int:
    """Return a 63-bit hash of the normalized text, for comparison without storing it."""
    return int.from_bytes(hashlib.sha256(normalize(text).encode()).digest()[:8], "big") >> 1


def match(text: str, accepted: Sequence[str]) -> tuple[bool, bool]:
    """Compare a generated text with the accepted answers.

    Returns:
        exact, prefix.

    Example:
        >>> match("the Nile, in Egypt", ["Nile", "Nile River"])
        (False, True)
    """
    words = normalize(text).split()
    answers = [normalize(answer).split() for answer in accepted]
    return words in answers, any(answer and words[: len(answer)] == answer for answer in answers)
