"""Is generated text still text, and about the right thing? Fluency and consistency of ROME.

*Fluency* is the entropy of a text's bigrams and trigrams: it falls when a model repeats itself, and says nothing of
grammar or truth. *Consistency* compares the words of what was generated about a subject with texts about things of
which the new fact is true.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from lke_lightning.edits import EditError

WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""Weight of the entropy of n-grams, by n."""

WORD = re.compile(r"\w+|[^\w\s]")
"""A word, or a mark. The published code splits as the Penn Treebank does; contractions differ."""


def ngram_entropy(text: str, weights: dict[int, float] = WEIGHTS) -> float:
    """Return the weighted mean of the entropies (bits) of a text's n-grams; above 0, higher is more varied.

    With p the frequencies of its n-grams, H_n = -sum p log2 p; the result is the mean of weight_n H_n over n, for
    ROME (2/3 H_2 + 4/3 H_3) / 2. Tables show it times 100. A text too short for an n-gram has H_n = 0.

    Source: Zhang et al. 2018, with the weights of ROME's `n_gram_entropy`.

    Example:
        >>> ngram_entropy("a b a b a b")
        0.9903...
    """
    words = WORD.findall(text)
    return sum(weight * _entropy(words, n) for n, weight in weights.items()) / len(weights)


def _entropy(words: list[str], n: int) -> float:
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)).values()
    total = sum(counts)
    return -sum(count / total * math.log2(count / total) for count in counts) if total else 0.0


class TextSimilarity:
    """Cosine of TF-IDF vectors: words of two and more letters, lower-cased, smoothed idf, as in ROME.

    Args:
        corpus: documents from which the idf is learned. ROME learns it from all of its attribute snippets; figures
            from another corpus are comparable with each other only.

    Raises:
        EditError: scikit-learn is not there, or the corpus has no word.
    """

    def __init__(self, corpus: Sequence[str]) -> None:
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError as error:
            raise EditError("consistency needs scikit-learn: pip install 'lke-lightning[eval]'") from error
        try:
            self._vectorizer = TfidfVectorizer().fit(list(corpus))
        except ValueError as error:
            raise EditError(f"the reference texts have no word to compare with: {error}") from error

    def __call__(self, generated: Sequence[str], references: Sequence[str]) -> float:
        """Compare the generated texts of one record, joined, with its references, joined; from 0 to 1.

        NaN where there is nothing to compare.
        """
        if not generated or not references:
            return math.nan
        one, other = self._vectorizer.transform([" ".join(generated), " ".join(references)])
        return float((one @ other.T).sum())  # rows are of length 1 already
