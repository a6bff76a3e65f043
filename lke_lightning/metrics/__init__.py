"""Metrics over plain tensors and texts: a function for one record, and a class that takes the mean over records."""

from lke_lightning.metrics.answers import ANSWER_MEASURES, AnswerMatch, digest, match, normalize
from lke_lightning.metrics.fluency import Consistency, Fluency, TextSimilarity, ngram_entropy
from lke_lightning.metrics.preference import MEASURES, Preference, preference, preferences
from lke_lightning.metrics.probability import AnswerProbability, histogram, probabilities
from lke_lightning.metrics.records import (
    defined_mean,
    harmonic_mean,
    interval,
    record_means,
    resampled_means,
)
from lke_lightning.metrics.tokens import TOKEN_MEASURES, Locality, TokenAccuracy, agreement, token_accuracies

__all__ = [
    "ANSWER_MEASURES",
    "MEASURES",
    "TOKEN_MEASURES",
    "AnswerMatch",
    "AnswerProbability",
    "Consistency",
    "Fluency",
    "Locality",
    "Preference",
    "TextSimilarity",
    "TokenAccuracy",
    "agreement",
    "defined_mean",
    "digest",
    "harmonic_mean",
    "histogram",
    "interval",
    "match",
    "ngram_entropy",
    "normalize",
    "preference",
    "preferences",
    "probabilities",
    "record_means",
    "resampled_means",
    "token_accuracies",
]
