"""Long answers, generated: how much of the text that was asked for the model says.

Greedy, up to an end token or as many tokens as the reference has, across line breaks: a longer text would gain recall
by its length alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lke_lightning.edits import EditRequest
from lke_lightning.evaluation.generated import decode, end_tokens, first_choice, texts_of
from lke_lightning.evaluation.teacher_forced import Scores, questions
from lke_lightning.metrics import overlap
from lke_lightning.model.language_model import LanguageModel

OVERLAP = "/overlap"
"""Behind a kind, in `Scores`: BLEU, ROUGE-L F1 and recall, likeness of meaning (NaN: nobody asked for it), (prompts, 4)
float64."""


def write_answers(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    similarity: Callable[[str, str], float] | None = None,
    max_tokens: int = 16384,
) -> list[Scores]:
    """Let the model answer the prompts of edits at length; the neighborhood's answers are too short to be compared.

    Args:
        model: the language model.
        requests: edits, made or not.
        similarity: compares the meaning of two texts; `None`: it is not measured.
        max_tokens: how many tokens are held at once.

    Returns:
        The scores of each request; none where a module beside the network answers, at its own length.
    """
    if model.answering is not None:
        return [{} for _ in requests]
    asked = [
        [
            (kind, q.prompt, q.wanted)
            for kind, part in questions(request).items()
            for q in part
            if kind != "neighborhood"
        ]
        for request in requests
    ]
    pairs = list(dict.fromkeys((prompt, wanted) for part in asked for _, prompt, wanted in part))
    ends = end_tokens(model)
    rows = model.text.prompts([prompt for prompt, _ in pairs])
    limits = [len(ids) for _, ids in model.text.continuations(pairs)]
    found = decode(model, rows, limits, first_choice, lambda token: token in ends, max_tokens)
    figures = {
        pair: (*overlap(text, pair[1]), torch.nan if similarity is None else similarity(text, pair[1]))
        for pair, text in zip(pairs, texts_of(model, rows, found), strict=True)
    }
    scored: list[Scores] = []
    for part in asked:
        by_kind: dict[str, list[tuple[float, ...]]] = {}
        for kind, prompt, wanted in part:
            by_kind.setdefault(kind + OVERLAP, []).append(figures[prompt, wanted])
        scored.append({name: torch.tensor(rows, dtype=torch.float64) for name, rows in by_kind.items()})
    return scored
