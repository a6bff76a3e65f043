"""Figures over plain tensors and texts, a function each: of one prompt, of the prompts of a record, of all records.

There are no accumulating metrics: bounds need every record's own value (`records.resampled_means`), and what several
processes measured is gathered record by record.
"""

from lke_lightning.metrics.answers import ANSWER_MEASURES, digest, match, normalize
from lke_lightning.metrics.fluency import TextSimilarity, ngram_entropy
from lke_lightning.metrics.overlap import OVERLAPS, MeaningSimilarity, overlap
from lke_lightning.metrics.preference import MEASURES, preferences
from lke_lightning.metrics.probability import distribution, histogram, probabilities
from lke_lightning.metrics.records import harmonic_mean, interval, record_means, resampled_means
from lke_lightning.metrics.tokens import TOKEN_MEASURES, agreement, token_accuracies

__all__ = [
    "ANSWER_MEASURES",
    "MEASURES",
    "OVERLAPS",
    "TOKEN_MEASURES",
    "MeaningSimilarity",
    "TextSimilarity",
    "agreement",
    "digest",
    "distribution",
    "harmonic_mean",
    "histogram",
    "interval",
    "match",
    "ngram_entropy",
    "normalize",
    "overlap",
    "preferences",
    "probabilities",
    "record_means",
    "resampled_means",
    "token_accuracies",
]
