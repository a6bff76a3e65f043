"""Runs, each in its own process and folder: finished ones are not repeated, interrupted ones are continued."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lke_lightning import ledger
from lke_lightning.edits import EditError
from lke_lightning.progress import work
from lke_lightning.results import write

LOG, BEGUN, DONE, SCORECARD = "log.txt", "begun.json", "done.json", "scorecard.json"
DOWNSTREAM = "downstream.json"
CARDS = {"fit": SCORECARD, "singly": "singly.json"}
"""The commands that a run may be of, with the file that says what it has found."""
MEASURED = (DOWNSTREAM, "drift.json", *CARDS.values(), "singly.jsonl")
"""What a run may have written of what it measured."""
FILE_OPTIONS = ("-c", "--config")
TAIL = 15
"""Lines of the log that are kept of a failed run."""


@dataclass(frozen=True)
class Job:
    """A run: its name, which is also its folder's, its arguments, and the command that takes them."""

    name: str
    arguments: tuple[str, ...]
    command: str = "fit"
    """A key of `CARDS`."""

    def configurations(self) -> Iterator[Path]:
        """Yield the YAML files that the arguments name."""
        for option, value in itertools.pairwise((*self.arguments, "")):
            if option in FILE_OPTIONS:
                yield Path(value)
            elif option.startswith("--config="):
                yield Path(option.partition("=")[2])

    def check(self) -> None:
        """Raise `EditError` if a YAML file that the arguments name is missing."""
        for path in self.configurations():
            if not path.is_file():
                raise EditError(f"{self.name}: no configuration {str(path)!r}; paths are relative to {Path.cwd()}")

    def identity(self) -> str:
        """Hash the arguments and the contents of their YAML files."""
        contents = [path.read_text() for path in self.configurations()]
        told = [self.arguments, contents, *([] if self.command == "fit" else [self.command])]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    @property
    def card(self) -> str:
        """The file that says what it has found, in its folder."""
        return CARDS[self.command]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job."""

    job: Job
    card: dict[str, Any] | None = None
    """Its scorecard, or what its command has in that place, if it is done."""
    downstream: dict[str, Any] | None = None
    """Its `downstream.json`, if it is done and has measured tasks."""
    error: str | None = None
    """The last lines of its log, if it failed."""

    @property
    def status(self) -> str:
        """`done`, `failed` or `waiting`."""
        return "done" if self.card else "failed" if self.error else "waiting"


def carry_out_all(jobs: Sequence[Job], output: Path, report: Callable[[list[Outcome]], None]) -> list[Outcome]:
    """Run the jobs that are not done yet, in order.

    Args:
        jobs: what to run; names differ.
        output: each job writes into a subfolder with its name.
        report: called at the start and after every job, with the outcomes of all jobs.

    Raises:
        EditError: a configuration file is missing; nothing has been run then.
    """
    for job in jobs:
        job.check()
    outcomes = [_found(job, output / job.name) for job in jobs]
    report(outcomes)
    for i, job in enumerate(jobs):
        outcomes[i] = carry_out(job, output / job.name, f"{i + 1}/{len(jobs)}")
        report(outcomes)
    return outcomes


def carry_out(job: Job, folder: Path, number: str) -> Outcome:
    """Run a job, unless it is done already, and print its number and status."""
    console, where = Console(), f"{number} {job.name}"
    outcome = _found(job, folder)
    if outcome.card:
        console.print(f"{where}: already done", highlight=False, markup=False)
        return outcome
    start = time.perf_counter()
    outcome = _ran(job, folder, where)
    took = f"{outcome.status} in {time.perf_counter() - start:.0f} s"
    why = f": {_last_lines(folder / LOG)[-1]}" if outcome.error and (folder / LOG).stat().st_size else ""
    console.print(f"{where}: {took}{why}", highlight=False, markup=False)
    return outcome


def call(*arguments: str) -> list[str]:
    """Return the command that runs this package in a process of its own."""
    return [sys.executable, "-m", "lke_lightning", *arguments]


def _found(job: Job, folder: Path) -> Outcome:
    """Return the outcome of this very job, if it was done before."""
    if not (folder / job.card).is_file() or _identity(folder / DONE) != job.identity():
        return Outcome(job)
    return _done(job, folder)


def _done(job: Job, folder: Path) -> Outcome:
    tasks = folder / DOWNSTREAM
    return Outcome(
        job,
        json.loads((folder / job.card).read_text()),
        json.loads(tasks.read_text()) if tasks.is_file() else None,
    )


def _identity(file: Path) -> str | None:
    """Return which job a file of a folder is of; `None`: there is no such file."""
    return json.loads(file.read_text())["identity"] if file.is_file() else None


def _ran(job: Job, folder: Path, where: str) -> Outcome:
    folder.mkdir(parents=True, exist_ok=True)
    identity = job.identity()
    if (folder / LOG).is_file() and _identity(folder / BEGUN) != identity:
        # left by another job of this name, whose files must not pass for this one's
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        for name in (DONE, LOG, ledger.NAME, *MEASURED):
            (folder / name).unlink(missing_ok=True)
    about = json.dumps({"identity": identity, "arguments": job.arguments}, indent=1) + "\n"
    write(folder / BEGUN, about)
    quiet = ("--trainer.enable_progress_bar", "false")  # a log has no use for it; the run's own arguments may differ
    # a row may name a checkpoint of its own to begin with; from its first one on it goes on where it was left
    where_left = ("--ckpt_path", "last") if any((folder / "checkpoints").glob("*.ckpt")) else ()
    place = "--trainer.default_root_dir" if job.command == "fit" else "--output"
    command = call(job.command, *quiet, *job.arguments, *where_left, place, str(folder))
    code = _watched(command, folder / LOG, where)
    if code == 0 and (folder / job.card).is_file():
        write(folder / DONE, about)
        return _done(job, folder)
    ended = "It ended without a scorecard." if code == 0 else f"It ended with exit code {code}."
    return Outcome(job, error="\n".join([*_last_lines(folder / LOG), ended]))


def _watched(command: Sequence[str], log: Path, where: str) -> int:
    """Run a command with its output in a file, and show the last line of it."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # as an exception, like Ctrl-C
    with (
        log.open("a") as file,
        work(where) as going,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT) as process,
    ):
        try:
            while True:
                try:
                    return process.wait(timeout=0.3)
                except subprocess.TimeoutExpired:
                    going.say("".join(_last_lines(log)[-1:]).strip())
        except BaseException:  # an interrupted sweep leaves nothing running
            process.terminate()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)


def _last_lines(log: Path) -> list[str]:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        text = file.read().decode(errors="replace")
    return [line for line in text.splitlines() if line.strip()][-TAIL:]
