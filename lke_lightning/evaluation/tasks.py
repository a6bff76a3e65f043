"""The six tasks that the publication reports, with its prompts and answers.

A question ends where its answer follows after one blank; a solved example is a question, its answer and a line break.
Where this differs from the published code is in docs/capability.md.
"""

from __future__ import annotations

import csv
from pathlib import Path

from lke_lightning.data.records import Record
from lke_lightning.edits import EditError
from lke_lightning.evaluation.downstream import FewShot, Item, hub_records

GLUE = "nyu-mll/glue"
LETTERS = "ABCD"


class SST2(FewShot):
    """SST-2, GLUE: is a piece of a film review positive? Fields: `sentence`, `label` (0 negative, 1 positive)."""

    words = ("negative", "positive")
    hub = (GLUE, "sst2", "validation")

    def item(self, record: Record) -> Item:
        """Ask for the sentiment."""
        return Item(f"Review : {record['sentence']}\nSentiment :", int(record["label"]))


class MRPC(FewShot):
    """MRPC, GLUE: do two sentences say the same? Fields: `sentence1`, `sentence2`, `label` (0 no, 1 yes)."""

    words = ("No", "Yes")
    hub = (GLUE, "mrpc", "validation")

    def item(self, record: Record) -> Item:
        """Ask whether they are paraphrases."""
        asked = f"Sentence 1: {record['sentence1']}\nSentence 2: {record['sentence2']}\nAnswer:"
        return Item(f"Are the sentences paraphrases of each other.\n{asked}", int(record["label"]))


class CoLA(FewShot):
    """CoLA, GLUE: is a sentence good English? Fields: `sentence`, `label` (0 no, 1 yes)."""

    words = ("No", "Yes")
    hub = (GLUE, "cola", "validation")

    def item(self, record: Record) -> Item:
        """Ask whether it is acceptable."""
        asked = f"Is this sentence linguistically acceptable?\nSentence: {record['sentence']}\nAnswer:"
        return Item(asked, int(record["label"]))


class RTE(FewShot):
    """RTE, GLUE: does a second sentence follow from the first? Fields: `sentence1`, `sentence2`, `label`.

    GLUE's labels are 0 for entailment, whose answer is True, and 1 for none.

    Args:
        path: a JSON or JSON Lines file with the fields of the data set; `None`: the validation split on the hub.
        shots: solved examples before each question: the first ones of the file.
        limit: ask only this many of the other records; `None`: all.
        seed: draw them with this seed; `None`: take the first.
        reference_quirks: take 0 for False and 1 for True, in the examples too, as the published code does: a model
            that understands the task is then below chance, unless it follows the examples against their sense.
    """

    hub = (GLUE, "rte", "validation")

    def __init__(
        self,
        path: str | None = None,
        shots: int = 4,
        limit: int | None = None,
        seed: int | None = 0,
        reference_quirks: bool = False,
    ) -> None:
        super().__init__(path, shots, limit, seed)
        self.words = ("False", "True") if reference_quirks else ("True", "False")

    def item(self, record: Record) -> Item:
        """Ask whether it is true."""
        asked = f"{record['sentence1']}\nquestion: {record['sentence2']} True or False?\nanswer:"
        return Item(asked, int(record["label"]))


class NLI(FewShot):
    """MultiNLI: does a hypothesis follow from a premise? Another task's records than RTE's.

    Fields: `premise` and `hypothesis`, or `sentence1` and `sentence2`; `label`: 0 or `entailment`, whose answer is
    True, 1 or `neutral`, 2 or `contradiction`, whose answer is False.

    Args:
        path: a JSON or JSON Lines file with the fields of the data set; `None`: the matched validation split on the
            hub.
        shots: solved examples before each question: the first ones of the file.
        limit: ask only this many of the other records; `None`: all.
        seed: draw them with this seed; `None`: take the first.
        reference_quirks: accept RTE's training split, labelled `entailment` and `not_entailment`, which is what the
            published code calls NLI: RTE then counts twice in the mean.
    """

    words = ("True", "False")
    hub = (GLUE, "mnli", "validation_matched")

    def __init__(
        self,
        path: str | None = None,
        shots: int = 4,
        limit: int | None = None,
        seed: int | None = 0,
        reference_quirks: bool = False,
    ) -> None:
        super().__init__(path, shots, limit, seed)
        self.reference_quirks = reference_quirks

    def item(self, record: Record) -> Item:
        """Ask whether it is true.

        Raises:
            EditError: the record is RTE's.
        """
        label = record["label"]
        if label == "not_entailment" and not self.reference_quirks:
            raise EditError(
                f"{self.path} has RTE's labels, and RTE is measured by itself: give NLI a file of MultiNLI, or set "
                "reference_quirks to measure what the published code does"
            )
        follows = label == "entailment" if isinstance(label, str) else int(label) == 0
        if label == -1:
            raise ValueError("it has no label")
        premise = record["premise"] if "premise" in record else record["sentence1"]
        hypothesis = record["hypothesis"] if "hypothesis" in record else record["sentence2"]
        return Item(f"{premise} entails the {hypothesis} True or False? Answer:", int(not follows))


class MMLU(FewShot):
    """MMLU: questions of 57 subjects with four choices each; solved examples are the subject's own, from `dev`.

    Args:
        path: a folder with `dev/SUBJECT_dev.csv` and `test/SUBJECT_test.csv`: question, four choices, answer (A to D
            or 0 to 3), with or without a line of names; `None`: `cais/mmlu` on the hub.
        shots: solved examples before each question: the first of the subject's; there are five.
        limit: ask only this many, of all subjects together; `None`: all.
        seed: draw them with this seed; `None`: take the first.
    """

    words = ("A", "B", "C", "D")
    hub = ("cais/mmlu", "all", "test")
    most_shots = 5

    def item(self, record: Record) -> Item:
        """Ask for the letter."""
        choices = "".join(f"({letter}) {text}\n" for letter, text in zip(LETTERS, record["choices"], strict=True))
        answer = str(record["answer"]).strip()
        label = LETTERS.index(answer) if answer in LETTERS and answer else int(answer)
        if not 0 <= label < len(LETTERS):
            raise ValueError(f"no answer {label}")
        return Item(f"Question: {record['question']}\n{choices}Answer:", label, record["subject"])

    def split(self) -> tuple[dict[str, list[Item]], list[Item]]:
        """Read the subjects' examples, and all questions."""
        examples: dict[str, list[Item]] = {}
        for item in self._split("dev"):
            examples.setdefault(item.group, []).append(item)
        items = list(self._split("test"))
        missing = {item.group for item in items} - set(examples)
        if missing and self.shots:
            raise EditError(f"{self.path or self.hub[0]} has no examples of {sorted(missing)[0]}")
        groups = dict.fromkeys(item.group for item in items)
        return {group: examples.get(group, [])[: self.shots] for group in groups}, items

    def _split(self, split: str) -> list[Item]:
        if self.path is None:
            return [self.item(record) for record in hub_records(*self.hub[:2], split)]
        files = sorted((Path(self.path) / split).glob(f"*_{split}.csv"))
        if not files:
            raise EditError(f"no files {split}/SUBJECT_{split}.csv in {self.path!r} (downstream.tasks, MMLU)")
        return [item for file in files for item in self._lines(file, file.stem.removesuffix(f"_{split}"))]

    def _lines(self, file: Path, subject: str) -> list[Item]:
        # csv, not pandas: some choices are the words None and NA
        try:
            with file.open(encoding="utf-8", newline="") as lines:
                rows = list(csv.reader(lines))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise EditError(f"{file} is no csv file in UTF-8: {error} (downstream.tasks, MMLU)") from error
        names = rows and rows[0][:1] == ["question"]
        items = []
        for number, row in enumerate(rows[1:] if names else rows, 2 if names else 1):
            try:
                question, *choices, answer = row
                items.append(
                    self.item({"question": question, "choices": choices, "answer": answer, "subject": subject})
                )
            except ValueError as error:
                raise EditError(f"{file}, record {number}: {error}") from error
        return items
