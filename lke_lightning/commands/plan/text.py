"""Ordinary text before a run: how much of it there is, what it looks like, and whether it was read already."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

from safetensors import safe_open

from lke_lightning.commands.plan.shape import Shape
from lke_lightning.edits import EditRequest
from lke_lightning.model.tokens import TextEncoder
from lke_lightning.stage_two.statistics import KeyStatistics, Statistics

SAMPLE_CHARACTERS = 100_000
"""Text that is read closely; it speaks for the rest."""


def documents_of(statistics: Statistics, requests: Sequence[EditRequest]) -> list[str]:
    """Take documents from the start of the statistics' text.

    Text that would have to be fetched, and statistics that read none, are replaced by prompts of the stream.
    """
    found: list[str] = []
    if isinstance(statistics, KeyStatistics) and statistics.corpus.is_here:
        size = 0
        for document in statistics.corpus.documents():
            found.append(document)
            size += len(document)
            if size >= SAMPLE_CHARACTERS:
                break
        return found
    prompts = [request.text + " " + request.target + "." for request in requests]
    many = prompts * (SAMPLE_CHARACTERS // max(1, sum(map(len, prompts))) + 1)
    return [" ".join(many[i : i + 50]) for i in range(0, len(many), 50)]


def wanted_tokens(statistics: KeyStatistics, shape: Shape) -> int:
    """Return how many tokens are asked for."""
    return statistics.tokens or 100 * shape.d_key


def available_tokens(statistics: KeyStatistics, wanted: int, documents: Sequence[str], text: TextEncoder) -> int:
    """Estimate how many tokens will be read: those asked for, or all there are."""
    if not statistics.corpus.is_here:
        return wanted
    sample = documents[:500]
    ids = [len(ids) for ids in text.encode(sample)]
    each = sum(len(document) for document in sample) / max(1, sum(ids))
    count = 0.0
    for document in statistics.corpus.documents():
        count += min(statistics.length, len(document) / each + len(text.prefix))
        if count >= wanted:
            return wanted
    return int(count)


def uncached_layers(statistics: KeyStatistics, shape: Shape, text: TextEncoder) -> list[int]:
    """Return the layers for which no statistics of this text, tokenizer and size are in the cache.

    Which model they were made of is part of their key as a hash of its weights, which a plan does not read.
    """
    matrix = SimpleNamespace(matrix_name=shape.matrix)
    asking = SimpleNamespace(base_hash="", text=text, architecture=matrix, layers=shape.layers)
    known = []
    for file in (statistics.cache.folder / "statistics").glob("*.safetensors"):
        with safe_open(file, "pt") as stored:
            if stored.get_slice("second_moment").get_shape() == [shape.d_key, shape.d_key]:
                known.append(stored.metadata() or {})
    missing = []
    for layer, key in statistics.keys(asking, wanted_tokens(statistics, shape)).items():
        del key["model"]
        if not any(all(metadata.get(name) == value for name, value in key.items()) for metadata in known):
            missing.append(layer)
    return missing
