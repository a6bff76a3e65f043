"""Score a few answers after prompts with a shared prefix."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from lke_lightning.evaluation.likelihood import likelihoods
from lke_lightning.model.batching import by_length, within_memory
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.prefix import Prefixes

Ids = tuple[int, ...]


def common_beginning(prompts: Sequence[Ids]) -> Ids:
    """Return the shared prefix of all prompts, without the last token of any, which predicts the answer."""
    pairs = zip(
        min(prompts), max(prompts), strict=False
    )  # a prefix of both the least and the greatest is a prefix of all
    alike = tuple(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return alike[: min(len(ids) for ids in prompts) - 1]


class Answers:
    """Scores answers after prompts; their shared prefix runs once, on construction.

    Args:
        model: the language model, as it is now.
        beginning: token ids of the shared prefix, shorter than every prompt.
        max_tokens: how many tokens are run at once, those of the beginning counted with every prompt, because their
            keys and values are held for each. The result does not depend on it.
    """

    def __init__(self, model: LanguageModel, beginning: Ids, max_tokens: int = 16384) -> None:
        self._model, self._beginning, self._max_tokens = model, beginning, max_tokens
        with torch.no_grad():
            self._prefixes = Prefixes.run(model, [beginning])

    @torch.no_grad()
    def nll(self, prompts: Sequence[Ids], answers: Sequence[Ids]) -> Tensor:
        """Return the mean negative log-likelihood per token of each answer after each prompt.

        A prompt is run once for all answers of one token.

        Args:
            prompts: token ids.
            answers: token ids, at least one each.

        Returns:
            (prompts, answers), float64, on the host.
        """
        reads: dict[Ids, list[tuple[int, int, int, int]]] = {}  # row -> (position, label, prompt, answer)
        for number, prompt in enumerate(prompts):
            for which, answer in enumerate(answers):
                row = prompt[len(self._beginning) :] + answer[:-1]
                first = len(row) - len(answer)
                reads.setdefault(row, []).extend((first + j, label, number, which) for j, label in enumerate(answer))

        def run(rows: list[Ids]) -> Tensor:
            sums = torch.zeros(len(prompts), len(answers), dtype=torch.float64)
            for members in by_length([len(row) for row in rows], self._max_tokens, self._model.device):
                self._add(sums, [rows[i] for i in members], reads)
            return sums

        rows = sorted(reads, key=len)
        found, self._max_tokens = within_memory(
            run, rows, lambda row: len(self._beginning) + len(row), self._max_tokens
        )
        return torch.stack(found).sum(0) / torch.tensor([len(answer) for answer in answers], dtype=torch.float64)

    def _add(self, sums: Tensor, rows: list[Ids], reads: dict[Ids, list[tuple[int, int, int, int]]]) -> None:
        batch = self._prefixes.followed_by(self._model, [self._beginning] * len(rows), rows)
        wanted = [(place, *read) for place, row in enumerate(rows) for read in reads[row]]
        place, position, label, prompt, answer = torch.tensor(wanted, device=self._model.device).T
        nll, _ = likelihoods(self._model, self._model.states(batch, place, position), label)
        sums.index_put_((prompt.cpu(), answer.cpu()), nll, accumulate=True)
