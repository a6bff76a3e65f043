"""Ordinary text before a run: how much of it there is, what it looks like, and whether it was read already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from safetensors import safe_open

from lke_lightning.commands.plan.shape import Shape
from lke_lightning.edits import EditRequest
from lke_lightning.model.language_model import DEMO
from lke_lightning.model.tokens import TextEncoder
from lke_lightning.stage_two.statistics import TEXT_SUFFIXES, KeyStatistics, Statistics

SAMPLE_CHARACTERS = 100_000
"""Text that is read closely; it speaks for the rest."""


def documents_of(statistics: Statistics, requests: Sequence[EditRequest]) -> list[str]:
    """Take documents from the start of the statistics' text.

    Text that would have to be fetched, and statistics that read none, are replaced by prompts of the stream.
    """
    found: list[str] = []
    if isinstance(statistics, KeyStatistics) and is_here(statistics):
        size = 0
        for document in statistics.documents():
            found.append(document)
            size += len(document)
            if size >= SAMPLE_CHARACTERS:
                break
        return found
    prompts = [request.text + " " + request.target + "." for request in requests]
    many = prompts * (SAMPLE_CHARACTERS // max(1, sum(map(len, prompts))) + 1)
    return [" ".join(many[i : i + 50]) for i in range(0, len(many), 50)]


def is_here(statistics: KeyStatistics) -> bool:
    """Tell whether the text is on this machine."""
    return all(name == DEMO or Path(name).suffix in TEXT_SUFFIXES for name in statistics.corpus)


def wanted_tokens(statistics: KeyStatistics, shape: Shape) -> int:
    """Return how many tokens are asked for."""
    return statistics.tokens or 100 * shape.d_key


def available_tokens(statistics: KeyStatistics, wanted: int, documents: Sequence[str], text: TextEncoder) -> int:
    """Estimate how many tokens will be read: those asked for, or all there are."""
    if not is_here(statistics):
        return wanted
    sample = documents[:500]
    ids = [len(ids) for ids in text.encode(sample)]
    each = sum(len(document) for document in sample) / max(1, sum(ids))
    count = 0.0
    for document in statistics.documents():
        count += min(statistics.length, len(document) / each + len(text.prefix))
        if count >= wanted:
            return wanted
    return int(count)


def uncached_layers(statistics: KeyStatistics, shape: Shape, text: TextEncoder) -> list[int]:
    """Return the layers for which no statistics of this text, tokenizer and size are in the cache.

    Which model they were made of is part of their key as a hash of its weights, which a plan does not read.
    """
    asking = SimpleNamespace(base_hash="", text=text, architecture=SimpleNamespace(matrix_name=shape.matrix))
    known = []
    for file in (statistics.cache_dir / "statistics").glob("*.safetensors"):
        with safe_open(file, "pt") as stored:
            if stored.get_slice("second_moment").get_shape() == [shape.d_key, shape.d_key]:
                known.append(stored.metadata() or {})
    missing = []
    for layer in shape.layers:
        key = statistics.key(asking, layer, wanted_tokens(statistics, shape))
        del key["model"]
        if not any(all(metadata.get(name) == value for name, value in key.items()) for metadata in known):
            missing.append(layer)
    return missing
