"""Tiny random models, tokenizers and a conformance class, for tests of this package and of plug-ins."""

from lke_lightning.testing.conformance import FamilyConformance
from lke_lightning.testing.networks import tiny_network
from lke_lightning.testing.tokenizers import WORDS, marker_tokenizer, tiny_tokenizer, word_piece_tokenizer

__all__ = [
    "WORDS",
    "FamilyConformance",
    "marker_tokenizer",
    "tiny_network",
    "tiny_tokenizer",
    "word_piece_tokenizer",
]
