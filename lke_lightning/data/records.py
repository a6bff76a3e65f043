"""Records of a file or a hub dataset, in order, through `datasets`; what is wrong with one is said with its number."""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lke_lightning.data.stream import EditStream
from lke_lightning.edits import SLOT, EditError, EditRequest

Record = dict[str, Any]


class RecordFile(EditStream):
    """Records of one format from a file or a hub dataset; a subclass says which edits a record holds.

    Published files have irregular records. A subclass states what it does with them, and what it did is counted and
    printed once the file is read; anything else that is wrong is an error that names the record.

    Args:
        path: the file, or the name of a hub dataset with the same fields.
        batch_size: edits of one training step.
        limit: edit only this many, from the start.
        shuffle_seed: shuffle with this seed first.
    """

    def __init__(
        self, path: str, batch_size: int = 100, limit: int | None = None, shuffle_seed: int | None = None
    ) -> None:
        super().__init__(batch_size, limit, shuffle_seed)
        self.path = path
        self.irregular: Counter[str] = Counter()
        """What was done with irregular records, and how often."""

    def read(self) -> Iterator[EditRequest]:
        """Yield the file's edits; a record's fields that are null count as absent.

        Raises:
            EditError: the file cannot be read, or a record cannot be edited with.
        """
        try:
            for index, record in enumerate(records(self.path)):
                with naming(self.path, index, record):
                    yield from self.edits(present(index, record))
        finally:
            self.tell()

    @abstractmethod
    def edits(self, record: Record) -> Iterator[EditRequest]:
        """Yield the edits of a record, which has its position under `index`; mostly one."""

    def note(self, what: str) -> None:
        """Count something irregular, and what was done about it."""
        self.irregular[what] += 1

    def tell(self) -> None:
        """Print what was irregular."""
        for what, count in self.irregular.items():
            rank_zero_info(f"{self.path}: {count} x {what}")


def present(index: int, record: Record) -> Record:
    """Return what a record has, with its position under `index`."""
    return {"index": index, **{name: value for name, value in record.items() if value is not None}}


@contextmanager
def naming(path: str, index: int, record: Record) -> Iterator[None]:
    """Let what goes wrong with a record name it.

    Raises:
        EditError: in the place of the error, with file and number of the record.
    """
    try:
        yield
    except EditError as error:
        raise EditError(f"{path}, record {index}: {error}") from error
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        missing = f"field {error} is missing" if isinstance(error, KeyError) else f"it has another form ({error})"
        raise EditError(f"{path}, record {index}: {missing}; it has {sorted(record)}") from error


def nested(value: Any) -> Any:
    """Return a nested field; where its form differs between records, `datasets` hands it over as JSON text."""
    return json.loads(value) if isinstance(value, str) else value


def marked(prompt: str, subject: str) -> str:
    """Mark the last place where a subject stands as words of its own; as it is where there is none."""
    places = list(re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt))
    return prompt[: places[-1].start()] + SLOT + prompt[places[-1].end() :] if places else prompt


def records(path: str) -> Iterator[Record]:
    """Yield the records of a JSON or JSON Lines file, or of a hub dataset's training split.

    Raises:
        EditError: there is no such file or dataset, or it cannot be read; a malformed line is named.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    is_file = Path(path).suffix in (".json", ".jsonl") or Path(path).exists()
    if is_file and not Path(path).is_file():
        raise EditError(f"no file {path!r} (data.path)")
    try:
        if is_file:
            source = load_dataset("json", data_files=path, split="train", streaming=True)
        else:
            source = load_dataset(path, split="train", streaming=True)
        yield from source
    except EditError:
        raise
    except (DatasetGenerationError, OSError, ValueError, StopIteration) as error:
        if is_file:
            raise EditError(f"{path}: {_what_is_wrong(Path(path)) or error}") from error
        raise EditError(f"{path!r} is neither a file nor a hub dataset that can be reached: {error}") from error


def _what_is_wrong(path: Path) -> str:
    """Find the line at which a JSON or JSON Lines file stops being one."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.strip():
        return "the file is empty"
    if path.suffix == ".json":
        try:
            json.loads(text)
        except json.JSONDecodeError as error:
            return f"line {error.lineno}, column {error.colno}: {error.msg}"
        return ""
    for number, line in enumerate(text.splitlines(), 1):
        try:
            if line.strip() and not isinstance(json.loads(line), dict):
                return f"line {number}: a record must be a JSON object"
        except json.JSONDecodeError as error:
            return f"line {number}: {error.msg}"
    return ""
