"""Is a freely generated answer right? Comparison of texts after a stated normalisation.

Normalised: Unicode NFKC, letter case folded, punctuation (Unicode category P) deleted, the articles a, an and the left
out unless nothing else is there, blanks collapsed; the steps of SQuAD's answers, for all of Unicode. *exact*: the whole
of what was generated is one of the accepted answers. *prefix*: it begins with one, up to the end of a word; a model
that answers and then goes on is right by this one only, and so is one that goes on to take its answer back.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

ARTICLES = frozenset({"a", "an", "the"})

ANSWER_MEASURES = ("exact", "prefix")


def normalize(text: str) -> str:
    """Return the text without what does not matter.

    Example:
        >>> normalize(" The  U.S. president's ")
        'us presidents'
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = "".join(letter for letter in folded if not unicodedata.category(letter).startswith("P")).split()
    return " ".join([word for word in words if word not in ARTICLES] or words)


def digest(text: str) -> int:
    """Return 63 bits that tell normalised texts apart, for comparison without keeping them."""
    return int.from_bytes(hashlib.sha256(normalize(text).encode()).digest()[:8], "big") >> 1


def match(said: str, accepted: Sequence[str]) -> tuple[bool, bool]:
    """Compare what was generated with the accepted answers.

    Returns:
        exact, prefix.

    Example:
        >>> match("the Nile, in Egypt", ["Nile", "Nile River"])
        (False, True)
    """
    words = normalize(said).split()
    answers = [normalize(answer).split() for answer in accepted]
    return words in answers, any(answer and words[: len(answer)] == answer for answer in answers)
