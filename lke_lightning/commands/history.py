"""Look back: what a run did to its model, from its ledger."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lke_lightning import checkpoints
from lke_lightning.edits import EditError, printable
from lke_lightning.ledger import Entry, Ledger
from lke_lightning.stage_two.register import HOLDS, REPLACED, UNDONE, Register

FILE_WIDTH = 160
"""Columns of a table that is not printed on a terminal."""

EVENTS = ("edit", "left_out", "undo", "redo", "guard", "batch", "evaluation", "downstream")
"""Kinds of entries; the first five are about edits."""

NOT_SAVED = "not saved"
STATES = (HOLDS, REPLACED, UNDONE, NOT_SAVED)


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
        state: only edits that are now `in the weights`, `replaced`, `undone` or `not saved` (newer than the newest
            checkpoint).
        failed: only edits that did not succeed just after they were made.
        last: only so many, the last ones.
        as_json: print the entries as JSON, one a line, instead of a table.

    Raises:
        EditError: there is no ledger, it is damaged, or a filter asks for what does not exist.
    """
    for value, known, option in ((event, EVENTS, "--event"), (state, STATES, "--state")):
        if value not in (None, *known):
            raise EditError(f"{option} {value!r} is unknown: choose one of {', '.join(known)}")
    if batch is not None and batch < 0:
        raise EditError(f"--batch is {batch}: batches are counted from 0")
    if last is not None and last < 1:
        raise EditError(f"--last is {last}: ask for at least one entry")
    ledger, register = _open(run)
    kinds = (event,) if event else EVENTS[:5]
    chosen = []
    for entry in ledger.read():
        now = _state(entry, register)
        text = " ".join(str(entry.get(name) or "") for name in ("id", "prompt", "subject", "target")).lower()
        if (
            entry["event"] in kinds
            and batch in (None, entry.get("batch"))
            and (find or "").lower() in text
            and state in (None, now)
            and not (failed and entry.get("success_just_after", entry.get("accurate_just_after")) is not False)
        ):
            chosen.append((entry, now))
    chosen = chosen[-last:] if last else chosen
    if as_json:
        for entry, _ in chosen:
            print(json.dumps(entry, ensure_ascii=False))
        return
    table = Table(title=f"{len(chosen)} entries of {ledger.path}", title_justify="left")
    for name in ("event", "id", "batch", "what", "steps", "stopped by", "success", "state"):
        table.add_column(name, justify="right" if name in ("batch", "steps") else "left", no_wrap=name != "what")
    for entry, now in chosen:
        table.add_row(*(escape(printable(cell)) for cell in (*_row(entry), now)))
    Console(width=None if sys.stdout.isatty() else FILE_WIDTH).print(table)


def show(run: str, edit: str) -> None:
    """Print all that a run's ledger says of one edit.

    Args:
        run: the run's folder.
        edit: the edit's id.

    Raises:
        EditError: there is no such edit.
    """
    ledger, register = _open(run)
    found = [entry for entry in ledger.read() if edit in (entry.get("id"), entry.get("other"))]
    if not found:
        raise EditError(f"the ledger of {run} has no edit {edit!r}; `log {run}` lists them")
    console = Console()
    for entry in found:
        title = escape(printable(f"{entry['event']} {entry.get('id', '')}"))
        table = Table(show_header=False, title=title, title_justify="left")
        for name, value in entry.items():
            if name not in ("event", "id"):
                table.add_row(*(escape(printable(str(cell))) for cell in (name, value)))
        now = _state(entry, register)
        if now:
            table.add_row("state", now)
        console.print(table)


def _open(run: str) -> tuple[Ledger, Register]:
    """Return the ledger, and the register of the newest checkpoint; warn where entries that it knows of are gone."""
    ledger, register = Ledger(Path(run)), Register()
    if not ledger.path.is_file():
        raise EditError(f"{run!r} is not the folder of a run: it has no ledger")
    path = checkpoints.newest(run)
    if path is not None:
        saved = checkpoints.peek(path)
        register.load_state_dict(saved["editing"]["register"])
        known = saved["callbacks"]["Recorder"]["size"]
        if ledger.size < known:
            print(
                f"warning: {ledger.path} has {ledger.size} bytes and had {known} when {path.name} was written: "
                "entries are missing",
                file=sys.stderr,
            )
    return ledger, register


def _state(entry: Entry, register: Register) -> str:
    """Say what became of the edit of an entry; nothing of entries of other kinds."""
    if entry["event"] != "edit":
        return ""
    number = entry.get("number")
    if isinstance(number, int) and 0 <= number < len(register) and register.ids[number] == entry.get("id"):
        return register.states[number]
    return NOT_SAVED


def _row(entry: Entry) -> list[str]:
    what = f"{entry['prompt'].replace('{}', entry['subject'] or '{}')} → {entry['target']}" if "prompt" in entry else ""
    other: Any = entry.get("other") or entry.get("reason")
    if entry["event"] == "guard":
        what = f"{entry['action']}: " + ", ".join(f"{name} {value:.3g}" for name, value in entry["measured"].items())
    elif other:
        what = f"{what}  ({other})".strip()
    success = entry.get("success_just_after", entry.get("accurate_just_after"))
    succeeded = "" if success is None else "yes" if success else "no"
    cells = (entry["event"], entry.get("id", ""), entry.get("batch", ""), what, entry.get("steps", ""))
    return [*map(str, cells), str(entry.get("stopped_by", "")), succeeded]
