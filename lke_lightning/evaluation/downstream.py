"""General capabilities of a model: few-shot tasks with a few possible answers.

The protocol is that of *Lifelong Knowledge Editing requires Better Regularization* (arXiv 2502.01636): solved examples
precede every question, the prediction is the most probable answer (mean log-probability over its tokens), and the
metric is F1 averaged over the answers, each weighted by its share of the questions.
"""

from __future__ import annotations

import random
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from lke_lightning.data.records import Record, records
from lke_lightning.edits import EditError
from lke_lightning.evaluation.answers import Answers, Ids, common_beginning
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.progress import track

RESERVED = 10
"""Records at the start of a file that are reserved for solved examples, as in the published code."""

PART = 256
"""Questions between two updates of the progress bar; their shared prefix runs once for all parts."""

Result = dict[str, float | int | None]
"""The results of a task, by name; fractions of 1 and counts."""


class Task(ABC):
    """A measurement of a language model that changes neither the model nor the random state."""

    @property
    def name(self) -> str:
        """The name of its results."""
        return type(self).__name__

    @abstractmethod
    def check(self) -> None:
        """Raise `EditError` for invalid settings; called before a run begins."""

    @abstractmethod
    def measure(self, model: LanguageModel, max_tokens: int) -> Result:
        """Measure the model, running `max_tokens` tokens at once."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """Describe the task and its settings, in plain types."""


@dataclass(frozen=True)
class Item:
    """A question and the number of its answer."""

    question: str
    """The prompt; the answer follows after a space."""
    label: int
    group: str = ""
    """Items of one group share their solved examples."""


class FewShot(Task):
    """Questions with the same few answers, after solved examples.

    If a question does not fit into the model's context with all examples, the last examples are dropped first; one that
    does not fit alone is left out and counted.

    Args:
        path: a JSON or JSON Lines file with the fields of the data set; `None`: the validation split on the hub.
        shots: solved examples before each question: the first ones of the file. Ten records are reserved for them, so
            that the questions do not depend on their number.
        limit: use only this many of the other records; `None`: all. With n questions, a figure near one half is
            uncertain by 1 / sqrt(n) in either direction (95 %).
        seed: draw them with this seed; `None`: take the first, as the published code does with 100.
    """

    words: tuple[str, ...]
    """The answers, in the order of their labels."""
    hub: ClassVar[tuple[str, str, str]]
    """Name, configuration and split of the data set on the hub."""
    most_shots: ClassVar[int] = RESERVED
    """How many solved examples are available."""

    def __init__(self, path: str | None = None, shots: int = 4, limit: int | None = None, seed: int | None = 0) -> None:
        self.path, self.shots, self.limit, self.seed = path, shots, limit, seed
        self._read: tuple[dict[str, list[Item]], list[Item]] | None = None

    @abstractmethod
    def item(self, record: Record) -> Item:
        """Turn a record into a question."""

    def check(self) -> None:
        """Check the arguments, and read the records if they are files.

        Raises:
            EditError: the file is missing or has other contents, or a number is out of range.
        """
        if not 0 <= self.shots <= self.most_shots:
            raise EditError(f"{self.name} with {self.shots} shots: choose 0 to {self.most_shots}")
        if self.limit is not None and self.limit < 1:
            raise EditError(f"{self.name} with limit {self.limit}: at least one question is needed, or null for all")
        if self.path is not None:
            self.read()

    def about(self) -> dict[str, Any]:
        """Describe the questions and settings."""
        source = self.path or ":".join(self.hub)
        return {"source": source, "shots": self.shots, "limit": self.limit, "seed": self.seed, "words": [*self.words]}

    def measure(self, model: LanguageModel, max_tokens: int = 16384) -> Result:
        """Ask all questions.

        Returns:
            `f1` (weighted), `accuracy`, `items` (questions asked), `commonest` (share of the questions that got the
            answer given most often: 1 says that the model does not distinguish), `majority` (accuracy of always
            giving the answer that is right most often), `shots` (examples that fitted, on average), `left_out`.
        """
        examples, items = self.read()
        answers = [ids for _, ids in model.text.continuations([(items[0].question, word) for word in self.words])]
        room = (model.context_length or sys.maxsize) - max(len(ids) for ids in answers) + 1
        fitting = {
            (group, shots): sorted(found, key=lambda pair: len(pair[1]))
            for group, shown in examples.items()
            for shots, found in self._prompts(model, shown, [i for i in items if i.group == group], room).items()
        }
        asked = [item for found in fitting.values() for item, _ in found]
        parts = [(kind, start) for kind, found in fitting.items() for start in range(0, len(found), PART)]
        given: list[int] = []
        for kind, start in track(parts, self.name):
            prompts = [ids for _, ids in fitting[kind]]
            if not start:
                scorer = Answers(model, common_beginning(prompts), max_tokens)
            given += scorer.nll(prompts[start : start + PART], answers).argmin(1).tolist()
        if not asked:
            raise EditError(f"no question of {self.name} fits into the {model.context_length} tokens of this model")
        labels = [item.label for item in asked]
        return {
            **_scores(given, labels, len(self.words)),
            "items": len(asked),
            "commonest": _share(given),
            "majority": _share(labels),
            "shots": round(sum(shots * len(found) for (_, shots), found in fitting.items()) / len(asked), 4),
            "left_out": len(items) - len(asked),
        }

    def read(self) -> tuple[dict[str, list[Item]], list[Item]]:
        """Return the solved examples by group, and the questions; read once.

        Raises:
            EditError: there are too few records, or one cannot be used.
        """
        if self._read is None:
            examples, items = self.split()
            if not items:
                raise EditError(
                    f"{self.path or self.hub} has no questions besides the {RESERVED} reserved for examples"
                )
            self._read = examples, self._sample(items)
        return self._read

    def split(self) -> tuple[dict[str, list[Item]], list[Item]]:
        """Read all records: examples by group, and the questions."""
        items = list(_items(self))
        return {"": items[: self.shots]}, items[RESERVED:]

    def _sample(self, items: list[Item]) -> list[Item]:
        if self.limit is None or self.limit >= len(items):
            return items
        if self.seed is None:
            return items[: self.limit]
        return [items[i] for i in sorted(random.Random(self.seed).sample(range(len(items)), self.limit))]

    def _prompts(
        self, model: LanguageModel, examples: Sequence[Item], items: Sequence[Item], room: int
    ) -> dict[int, list[tuple[Item, Ids]]]:
        """Return the prompts that fit into `room` tokens, by their number of examples."""
        shown = [f"{example.question} {self.words[example.label]}\n" for example in examples]
        found: dict[int, list[tuple[Item, Ids]]] = {}
        waiting = list(items)
        for count in range(len(shown), -1, -1):
            encoded = model.text.prompts(["".join(shown[:count]) + item.question for item in waiting], may_exceed=True)
            fits = [len(ids) <= room for ids in encoded]
            if any(fits):
                found[count] = [(item, ids) for item, ids in zip(waiting, encoded, strict=True) if len(ids) <= room]
            waiting = [item for item, is_fit in zip(waiting, fits, strict=True) if not is_fit]
        return found


def hub_records(name: str, configuration: str, split: str) -> Iterator[Record]:
    """Yield the records of a data set on the hub.

    Raises:
        EditError: it cannot be reached.
    """
    from datasets import load_dataset

    try:
        yield from load_dataset(name, configuration, split=split)
    except (OSError, ValueError) as error:
        raise EditError(f"{name} ({configuration}, {split}) cannot be read from the hub: {error}") from error


def _items(task: FewShot) -> Iterator[Item]:
    if task.path is not None and not Path(task.path).is_file():
        raise EditError(f"no file {task.path!r} (downstream.tasks, {task.name})")
    source = hub_records(*task.hub) if task.path is None else records(task.path)
    for index, record in enumerate(source):
        try:
            item = task.item(record)
            if not 0 <= item.label < len(task.words):
                raise ValueError(f"its label is {record['label']}")
            yield item
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise EditError(f"{task.path or task.hub}, record {index} is not one of {task.name}: {error!r}") from error


def _scores(given: Sequence[int], labels: Sequence[int], classes: int) -> Result:
    predicted, right = torch.tensor(given), torch.tensor(labels)
    f1 = MulticlassF1Score(num_classes=classes, average="weighted")(predicted, right)
    accuracy = MulticlassAccuracy(num_classes=classes, average="micro")(predicted, right)
    return {"f1": round(f1.item(), 6), "accuracy": round(accuracy.item(), 6)}


def _share(values: Sequence[int]) -> float:
    return round(Counter(values).most_common(1)[0][1] / len(values), 6)
