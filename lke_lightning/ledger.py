"""The ledger of a run: what happened to the model, one JSON object a line, in order, never rewritten."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lke_lightning.edits import EditError
from lke_lightning.results import replace
from lke_lightning.shapes import lacking

NAME, DISCARDED, LOCK = "ledger.jsonl", "ledger.discarded.jsonl", ".lock"

Entry = dict[str, Any]
"""One event: `event` says of what kind it is, `time` (UTC) when it was written."""

_REQUEST = {"id": str, "prompt": str, "subject": str | None, "target": str}
CONTENTS = {
    "edit": {**_REQUEST, "number": int, "batch": int, "weight": float},
    "left_out": {**_REQUEST, "reason": str},
    "undo": {"id": str, "other": str | None},
    "redo": {"id": str, "other": str | None},
    "guard": {"action": str, "measured": dict[str, float]},
    "batch": {"batch": int, "edits": int, "norm_growth": dict[str, float]},
}
"""What an entry holds at least, by its kind, and of which type."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder; the lock goes with the process, however that ends.

    Raises:
        EditError: another process is in it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, blocking=False)
        lock.acquire()
    except Timeout:
        raise EditError(f"another process is editing in {folder}: wait for it, or name another folder") from None
    except OSError as error:
        raise EditError(
            f"cannot write into {folder} ({error.strerror}): name another with trainer.default_root_dir"
        ) from error
    try:
        yield
    finally:
        lock.release()


class Ledger:
    """An append-only file of entries.

    A checkpoint remembers how long the ledger was. What a run wrote after its last checkpoint describes edits that died
    with the process; `cut` takes it out, to where it can still be read.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / NAME

    def append(self, entries: Iterable[Entry]) -> None:
        """Write entries and see them to the disk.

        Raises:
            EditError: they cannot be written; none of them counts then, because no checkpoint knows of them.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        lines = "".join(json.dumps({**entry, "time": now}, ensure_ascii=False) + "\n" for entry in entries)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise EditError(
                f"cannot write {self.path} ({error.strerror}): is the disk full or the folder read-only?"
            ) from error

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def begin_with(self, other: Ledger, size: int) -> None:
        """Copy the first `size` bytes of another run's ledger.

        Raises:
            EditError: it is not that long.
        """
        if other.size < size:
            raise EditError(f"the checkpoint was written when {other.path} had {size} bytes; it has {other.size} now")
        with other.path.open("rb") as file:
            past = file.read(size)
        replace(self.path, lambda file: file.write(past))

    def cut(self, size: int) -> int:
        """Shorten the ledger to a length that a checkpoint remembers; return how many entries were taken out.

        Raises:
            EditError: the ledger is shorter than that: part of it is gone.
        """
        self._check_length(size)
        if self.size == size:
            return 0
        with self.path.open("r+b") as file:
            file.seek(size)
            rest = file.read()
            with self.path.with_name(DISCARDED).open("ab") as discarded:
                discarded.write(rest if rest.endswith(b"\n") else rest + b"\n")
            file.truncate(size)
        return rest.count(b"\n")

    def read(self, size: int | None = None) -> Iterator[Entry]:
        """Yield the entries in order, those of the first `size` bytes only if given; an unfinished line is left out.

        Raises:
            EditError: a line is not an entry, with its number; or the ledger is shorter than `size`.
        """
        self._check_length(size or 0)
        if not self.path.is_file():
            return
        position = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                position += len(line)
                if not line.endswith(b"\n") or (size is not None and position > size):
                    return
                entry, wrong = _parsed(line)
                if wrong is not None:
                    raise EditError(
                        f"{self.path} is damaged: line {number} is not an entry of a ledger ({wrong}); put an intact "
                        "copy back"
                    )
                yield entry

    def _check_length(self, size: int) -> None:
        if self.size < size:
            raise EditError(
                f"{self.path} has {self.size} bytes, the checkpoint was written when it had {size}: it was changed or "
                "replaced since; put the original back, or continue from a copy of the run"
            )


def _parsed(line: bytes) -> tuple[Entry, str | None]:
    """Return the entry that a line holds, and what is wrong with it, if anything is."""
    try:
        entry = json.loads(line)
        json.dumps(entry, ensure_ascii=False).encode()  # fails for half a character, which cannot be printed
    except (ValueError, RecursionError):
        return {}, "not JSON in UTF-8"
    if not isinstance(entry, dict) or not isinstance(entry.get("event"), str):
        return {}, "no event"
    wrong = lacking(entry, CONTENTS.get(entry["event"], {}))
    return entry, wrong and f"{wrong} is missing or of another type"
