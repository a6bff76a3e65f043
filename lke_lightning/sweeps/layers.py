"""Which layers to edit in a model without published settings, from its depth and from trial edits on single layers."""

from __future__ import annotations

from collections.abc import Mapping

from lke_lightning.edits import EditError

MOST_CANDIDATES = 6


def candidates(count: int) -> list[int]:
    """Return a handful of layers spread over the lower two thirds, where subjects are enriched."""
    last = _last(count)
    many = min(MOST_CANDIDATES, last + 1)
    return sorted({round(i * last / max(1, many - 1)) for i in range(many)})


def best_window(scores: Mapping[int, float], count: int) -> list[int]:
    """Propose the adjacent layers with the best mean score; scores between candidates are interpolated.

    Args:
        scores: S by candidate layer.
        count: number of layers of the model.

    Raises:
        EditError: no candidate has a score.
    """
    if not scores:
        raise EditError(
            "no single layer could be scored: S needs edits with paraphrases, neighborhoods and original answers"
        )
    by_layer = [_interpolated(scores, layer) for layer in range(_last(count) + 1)]
    width = min(_width(count), len(by_layer))
    starts = range(len(by_layer) - width + 1)
    start = max(starts, key=lambda start: (sum(by_layer[start : start + width]), -start))
    return list(range(start, start + width))


def _width(count: int) -> int:
    return max(1, min(5, count // 3))


def _last(count: int) -> int:
    return max(0, -(-2 * count // 3) - 1)


def _interpolated(scores: Mapping[int, float], layer: int) -> float:
    below = max((known for known in scores if known <= layer), default=min(scores))
    above = min((known for known in scores if known >= layer), default=max(scores))
    if above <= below:
        return scores[below]
    return scores[below] + (scores[above] - scores[below]) * (layer - below) / (above - below)
