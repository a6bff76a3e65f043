"""Look back: what a run did to its model, from its ledger."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lke_lightning import checkpoints
from lke_lightning.edits import EditError
from lke_lightning.ledger import Entry, Ledger, states

FILE_WIDTH = 160
"""Columns of a table that is not printed on a terminal."""


def log(
    run: str,
    event: str | None = None,
    batch: int | None = None,
    find: str | None = None,
    state: str | None = None,
    failed: bool = False,
    last: int | None = None,
    as_json: bool = False,
) -> None:
    """List what a run did, in order.

    Args:
        run: the run's folder.
        event: only entries of this kind: `edit`, `left_out`, `undo`, `redo`, `guard`, `batch`, `evaluation` or
            `downstream`; default: the first five.
        batch: only entries of this batch; the first is 0.
        find: only entries with this text in their id, prompt, subject or target; letter case does not count.
        state: only edits that are `in the weights`, `replaced`, `undone` or `not saved` (newer than the checkpoint).
        failed: only edits that did not succeed just after they were made.
        last: only so many, the last ones.
        as_json: print the entries as JSON, one a line, instead of a table.

    Raises:
        EditError: there is no ledger.
    """
    ledger, saved = _open(run)
    now = states(ledger.read(), saved)
    chosen = []
    for number, entry in enumerate(ledger.read()):
        kinds = (event,) if event else ("edit", "left_out", "undo", "redo", "guard")
        text = " ".join(str(entry.get(name) or "") for name in ("id", "prompt", "subject", "target")).lower()
        if (
            entry["event"] in kinds
            and batch in (None, entry.get("batch"))
            and (find or "").lower() in text
            and state in (None, now.get(number))
            and not (failed and entry.get("success_just_after", entry.get("accurate_just_after")) is not False)
        ):
            chosen.append((entry, now.get(number, "")))
    chosen = chosen[-last:] if last else chosen
    if as_json:
        for entry, _ in chosen:
            print(json.dumps(entry, ensure_ascii=False))
        return
    table = Table(title=f"{len(chosen)} entries of {ledger.path}", title_justify="left")
    for name in ("event", "id", "batch", "what", "steps", "stopped by", "success", "state"):
        table.add_column(name, justify="right" if name in ("batch", "steps") else "left", no_wrap=name != "what")
    for entry, said in chosen:
        table.add_row(*_row(entry), said)
    Console(width=None if sys.stdout.isatty() else FILE_WIDTH).print(table)


def show(run: str, edit: str) -> None:
    """Print all that a run's ledger says of one edit.

    Args:
        run: the run's folder.
        edit: the edit's id.

    Raises:
        EditError: there is no such edit.
    """
    ledger, saved = _open(run)
    now = states(ledger.read(), saved)
    found = [(n, entry) for n, entry in enumerate(ledger.read()) if edit in (entry.get("id"), entry.get("other"))]
    if not found:
        raise EditError(f"the ledger of {run} has no edit {edit!r}; `log {run}` lists them")
    console = Console()
    for number, entry in found:
        table = Table(show_header=False, title=f"{entry['event']} {entry['id']}", title_justify="left")
        for name, value in entry.items():
            if name not in ("event", "id"):
                table.add_row(name, str(value))
        if number in now:
            table.add_row("state", now[number])
        console.print(table)


def _open(run: str) -> tuple[Ledger, int]:
    """Return the ledger, and how many bytes of it the newest checkpoint knows of."""
    ledger = Ledger(Path(run))
    if not ledger.path.is_file():
        raise EditError(f"{run!r} is not the folder of a run: it has no ledger")
    path = checkpoints.newest(run)
    return ledger, checkpoints.peek(path)["callbacks"]["Recorder"]["size"] if path else 0


def _row(entry: Entry) -> list[str]:
    what = f"{entry['prompt'].replace('{}', entry['subject'] or '{}')} → {entry['target']}" if "prompt" in entry else ""
    other: Any = entry.get("other") or entry.get("reason")
    if entry["event"] == "guard":
        what = f"{entry['action']}: " + ", ".join(f"{name} {value:.3g}" for name, value in entry["measured"].items())
    elif other:
        what = f"{what}  ({other})".strip()
    success = entry.get("success_just_after", entry.get("accurate_just_after"))
    said = "" if success is None else "yes" if success else "no"
    cells = (entry["event"], entry.get("id", ""), entry.get("batch", ""), what, entry.get("steps", ""))
    return [*map(str, cells), str(entry.get("stopped_by", "")), said]
