"""What long work has come to: a bar on a terminal, a line now and then in a log, nothing where nobody asked."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Item = TypeVar("Item")

EVERY = 10.0
"""Seconds between two lines of a log."""
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Where launchers tell a process its number; the first that is set counts, as for Lightning."""


@dataclass(eq=False)
class Work:
    """Something that takes a while."""

    what: str
    total: int | None = None
    """How many steps it has; `None`: nobody knows."""
    steps: str = ""
    """What they are."""
    done: int = 0
    note: str = ""

    def __str__(self) -> str:
        """Say how far it is."""
        so_far = "" if self.total is None else f"{self.done} of {self.total} {self.steps}".strip()
        return ": ".join(part for part in (self.what, so_far, self.note) if part)

    def advance(self, count: int = 1) -> None:
        """Count steps that are done."""
        self.done += count
        _report()

    def say(self, note: str) -> None:
        """Say what it is at."""
        self.note = note
        _report()


class Reporter(Protocol):
    """Shows what is going on; it is told whenever something begins, goes on or ends."""

    def show(self, works: Sequence[Work]) -> None:
        """Show what is going on, the outermost first; nothing: all is done."""


_reporters: list[Reporter] = []
_going: list[Work] = []


@contextmanager
def reported(reporter: Reporter) -> Iterator[None]:
    """Let a reporter show the work of a block, in the place of the one before."""
    _reporters.append(reporter)
    try:
        yield
    finally:
        reporter.show(())
        _reporters.remove(reporter)


@contextmanager
def work(what: str, total: int | None = None, steps: str = "") -> Iterator[Work]:
    """Show a block as work; without a number of steps a log has a line of it at once."""
    going = Work(what, total, steps)
    _going.append(going)
    _report()
    try:
        yield going
    finally:
        _going.remove(going)
        _report()


def track(items: Collection[Item], what: str, steps: str = "") -> Iterator[Item]:
    """Yield items, and show how many are done; also where the loop is left early."""
    with work(what, len(items), steps) as going:
        for item in items:
            yield item
            going.advance()


def _report() -> None:
    if _reporters:
        _reporters[-1].show(_going)


def reporter_for(file: TextIO, bar: bool = True) -> Reporter:
    """Return who reports to a file: a bar if it is a terminal and one is wanted; one of several processes does."""
    rank = next((os.environ[name] for name in RANKS if name in os.environ), "0")
    return Nobody() if rank != "0" else Bars() if bar and file.isatty() else Lines(file)


class Nobody:
    """Shows nothing."""

    def show(self, works: Sequence[Work]) -> None:
        """Show nothing."""


class Lines:
    """Writes a line where work begins that cannot be counted, and one every few seconds of any other."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self._last, self._begun = time.monotonic(), list[Work]()

    def show(self, works: Sequence[Work]) -> None:
        """Write a line, if it is time."""
        self._begun = [work for work in self._begun if work in works]
        begins = [work for work in works if work.total is None and work not in self._begun]
        self._begun += begins
        now = time.monotonic()
        if begins or (works and works[-1].done and now - self._last >= EVERY):
            self._last = now
            print("; ".join(map(str, begins or works)), file=self.file, flush=True)


class Bars:
    """Shows a bar for each work on a terminal, below all that is printed; it goes with the last of them."""

    def __init__(self) -> None:
        self._bars: Progress | None = None
        self._tasks: dict[Work, TaskID] = {}

    def show(self, works: Sequence[Work]) -> None:
        """Bring the bars up to date."""
        from rich.markup import escape

        if self._bars is None:
            if not works:
                return
            self._bars = _bars()
            self._bars.start()
        for work in [work for work in self._tasks if work not in works]:
            self._bars.remove_task(self._tasks.pop(work))
        for work in works:
            if work not in self._tasks:
                self._tasks[work] = self._bars.add_task(escape(str(work)), total=work.total)
            self._bars.update(self._tasks[work], completed=work.done, description=escape(str(work)))
        if not works:
            self._bars.stop()
            self._bars = None


class AboveBars(logging.StreamHandler):
    """Writes log records to what `sys.stderr` is when they come: while there are bars, that puts lines above them."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        """The present standard error."""
        return sys.stderr


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=Console(stderr=True),
        transient=True, refresh_per_second=4, redirect_stdout=sys.stdout.isatty(),
    )  # fmt: skip
