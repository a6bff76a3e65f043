"""A stream in time steps: what each month brings, and which edits are scored again when it has been made."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace

from lke_lightning.data.stream import EditStream
from lke_lightning.edits import EditRequest, check_number


class TimeSteps(EditStream):
    """Edits that arrive in time steps, as WikiBigEdit's files do (arXiv 2503.05683).

    A batch never spans two steps. After each step but the last, the scorecard scores the edits of that step and a
    sample of those of each earlier one; at the end it scores all. The order inside a source is its own.

    Args:
        sources: where edits are read from, the oldest first. Their batch sizes have no effect.
        step_size: edits of one step: a source with more is several steps. `None`: each source is one step.
        sample: score at most this many edits of each earlier step, always the same ones; published: 1000.
        batch_size: edits of one training step.
        limit: edit only this many, from the start.

    Raises:
        EditError: a number is below 1, or there is no source.
    """

    def __init__(
        self,
        sources: list[EditStream],
        step_size: int | None = None,
        sample: int = 1000,
        batch_size: int = 100,
        limit: int | None = None,
    ) -> None:
        super().__init__(batch_size, limit)
        check_number("data.sources, counted,", len(sources), at_least=1)
        check_number("data.sample", sample, at_least=1)
        if step_size is not None:
            check_number("data.step_size", step_size, at_least=1)
        self.sources, self.step_size, self.sample = sources, step_size, sample

    @property
    def name(self) -> str:
        """The names of the sources, each once."""
        return ", ".join(dict.fromkeys(source.name for source in self.sources)) + " in time steps"

    def read(self) -> Iterator[EditRequest]:
        """Yield the edits of all sources; ids begin with the number of their source."""
        self.edges = []
        total = 0
        for number, source in enumerate(self.sources, 1):
            source.setup("fit")
            begin, total = total, total + len(source.requests)
            size = self.step_size or len(source.requests)
            self.edges += [*range(begin + size, total, size), total]
            yield from (replace(request, id=f"{number}-{request.id}") for request in source.requests)

    def setup(self, stage: str) -> None:
        """Read and check all requests once; a limit ends the last step.

        Raises:
            EditError: there are none, or a source cannot be read.
        """
        super().setup(stage)
        end = len(self.requests)
        self.edges = [*(edge for edge in self.edges if edge < end), end]

    def due(self, batches: int) -> list[EditRequest]:
        """Return the step that ends with this batch and a sample of each earlier one; nothing inside of a step."""
        done = self.batches[batches - 1].stop
        if done not in self.edges[:-1]:
            return []
        *earlier, last = self.steps[: bisect_left(self.edges, done) + 1]
        return [request for step in earlier for request in self._sampled(step)] + last

    def _sampled(self, step: list[EditRequest]) -> list[EditRequest]:
        chosen = sorted(random.Random(0).sample(range(len(step)), min(self.sample, len(step))))
        return [step[number] for number in chosen]
