"""Records of a file or a hub dataset, in order; errors name the record by its number."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import re
import zlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lightning.pytorch.utilities import rank_zero_info

from lke_lightning.data.fields import Fields
from lke_lightning.data.stream import EditStream
from lke_lightning.edits import SLOT, EditError, EditRequest, kind

Record = dict[str, Any]


class RecordFile(EditStream):
    """Records of one format from a file or a hub dataset; a subclass defines the edits of a record.

    Published files have irregular records. A subclass documents its rules for them, whose uses are counted and printed
    after the file is read; anything else is an error that names the record.

    Args:
        path: a file, JSON or JSON Lines, plain or compressed (gzip, bzip2, xz); or the name of a hub dataset with the
            same fields.
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
        """How often each rule for irregular records applied."""

    def read(self) -> Iterator[EditRequest]:
        """Yield the file's edits.

        Raises:
            EditError: the file cannot be read, or a record cannot be edited with.
        """
        try:
            for index, record in enumerate(records(self.path)):
                with naming(self.path, index):
                    yield from self.edits(Fields(record, index=index))
        finally:
            self.report()

    @abstractmethod
    def edits(self, record: Fields) -> Iterator[EditRequest]:
        """Yield the edits of a record; mostly one."""

    def note(self, what: str) -> None:
        """Count the use of a rule for irregular records."""
        self.irregular[what] += 1

    def report(self) -> None:
        """Print how often each rule applied."""
        for what, count in self.irregular.items():
            rank_zero_info(f"{self.path}: {count} x {what}")


@contextmanager
def naming(path: str, index: int) -> Iterator[None]:
    """Add file and record number to errors.

    Raises:
        EditError: in place of the original error, with file and record number.
    """
    try:
        yield
    except EditError as error:
        raise EditError(f"{path}, record {index}: {error}") from error
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise EditError(f"{path}, record {index}: unexpected form ({error})") from error


def marked(prompt: str, subject: str) -> str:
    """Mark the last occurrence of a subject as separate words; return the prompt unchanged if there is none."""
    places = list(re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt))
    return prompt[: places[-1].start()] + SLOT + prompt[places[-1].end() :] if places else prompt


def records(path: str) -> Iterator[Record]:
    """Yield the records of a file, or of a hub dataset's training split.

    A file is read with `json`, not through `datasets`, which infers one type for all values of a field: numeric
    ids would lose digits, and null would be indistinguishable from a missing field.

    Args:
        path: a file with one JSON list of objects, or with one object per line; or the name of a hub dataset.

    Raises:
        EditError: there is no such file or dataset, or it cannot be read; a malformed line is named.
    """
    file = Path(path)
    if file.is_file():
        yield from _of_file(file)
    elif not path.strip() or file.exists():
        raise EditError(f"{path!r} is no file (data.path): name a JSON or JSON Lines file, or a hub dataset")
    elif {".json", ".jsonl"} & set(file.suffixes):
        raise EditError(f"no file {path!r} (data.path)")
    else:
        yield from _of_hub(path)


def _of_hub(name: str) -> Iterator[Record]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        yield from load_dataset(name, split="train", streaming=True)
    except (DatasetGenerationError, OSError, ValueError, StopIteration) as error:
        raise EditError(f"{name!r} is neither a file nor a hub dataset that can be reached: {error}") from error


def _of_file(file: Path) -> Iterator[Record]:
    """Yield the objects of a file, read line by line where it has one per line."""
    is_empty = True
    try:
        with _opened(file) as lines:
            _skip_mark(lines, file)
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                is_empty = False
                if line.lstrip()[:1] == b"[":
                    parsed = _parsed(line + lines.read(), file, number)
                    yield from (_object(entry, f"{file}, record {i}") for i, entry in enumerate(parsed))
                    return
                yield _object(_parsed(line, file, number), f"{file}, line {number}")
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise EditError(
            f"{file} cannot be read, is it complete? {getattr(error, 'strerror', None) or error}"
        ) from error
    if is_empty:
        raise EditError(f"{file}: the file is empty")


_COMPRESSED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
"""Functions that open compressed files, by their first bytes."""


def _opened(file: Path) -> IO[bytes]:
    """Open a file for reading; compression is recognized by its first bytes."""
    with file.open("rb") as stream:
        head = stream.read(8)
    opener = next((opener for magic, opener in _COMPRESSED.items() if head.startswith(magic)), open)
    return opener(file, "rb")


def _skip_mark(lines: IO[bytes], file: Path) -> None:
    """Skip a UTF-8 byte order mark, and refuse that of another encoding."""
    head = lines.read(3)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise EditError(f"{file} is in UTF-16: convert it to UTF-8, for example with iconv -f UTF-16 -t UTF-8")
    lines.seek(len(head) if head == codecs.BOM_UTF8 else 0)


def _parsed(line: bytes, file: Path, number: int) -> Any:
    """Parse the JSON text that begins in a line.

    Raises:
        EditError: it is not JSON in UTF-8; the message names line and column.
    """
    try:
        return json.loads(line.decode(), object_pairs_hook=_unambiguous)
    except UnicodeDecodeError as error:
        number += line.count(b"\n", 0, error.start)
        raise EditError(
            f"{file}, line {number}: the byte 0x{line[error.start]:02x} is not UTF-8, the encoding of JSON: convert "
            "the file, for example with iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise EditError(
            f"{file}, line {number + error.lineno - 1}, column {error.colno}: {error.msg}; a file is one JSON list of "
            "objects, or has one object per line"
        ) from error
    except RecursionError as error:
        raise EditError(f"{file}, line {number}: nested too deeply") from error
    except ValueError as error:  # ours, or a number of thousands of digits
        raise EditError(f"{file}, line {number}: {error}") from error


def _unambiguous(pairs: list[tuple[str, Any]]) -> Record:
    found = dict(pairs)
    if len(found) < len(pairs):
        for name, value in pairs:
            if found[name] != value:
                raise EditError(f"field {name!r} occurs twice in one object, with different values")
    return found


def _object(value: Any, where: str) -> Record:
    if not isinstance(value, dict):
        raise EditError(f"{where}: a record must be a JSON object, this is {kind(value)}")
    return value
