"""Compare several methods on the same edits in one table."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lke_lightning.configuration import read
from lke_lightning.edits import EditError
from lke_lightning.results import made_folder, write
from lke_lightning.sweeps.report import CAPTION, circumstances, entry, markdown, show, table, together
from lke_lightning.sweeps.runs import CARDS, FILE_OPTIONS, LOG, Job, Outcome, carry_out_all


@dataclass(frozen=True)
class Comparison:
    """What to compare."""

    given: dict[str, Any]
    """The file's content."""
    rows: dict[str, list[Job]]
    """By name: one run, or one for each order of the edits."""

    @classmethod
    def read(cls, path: str, arguments: list[str] | None = None, only: list[str] | None = None) -> Comparison:
        """Read the plan of a file; arguments and errors are those of `of`."""
        return cls.of(read(path), f"the plan {path!r}", arguments, only)

    @classmethod
    def of(
        cls,
        given: dict[str, Any],
        what: str,
        arguments: list[str] | None = None,
        only: list[str] | None = None,
        folder: Path | None = None,
    ) -> Comparison:
        """Make out a plan: `rows`, each with a `name` and `arguments` of `fit`, and optionally common `arguments`.

        Each row gets the common YAML files, its own, the common options, and its own, in this order; `without` lists
        common options, given as `--NAME=VALUE`, that it does not get, by their names or beginnings of these. A row with
        `orders`, a list of seeds, is a run for each order of its edits (`data.shuffle_seed`); one with `command:
        singly` is a run of that command.

        Args:
            given: the plan.
            what: its name in errors.
            arguments: follow the common ones.
            only: names of the rows to take.
            folder: stands where an argument says $OUTPUT, so that a run can use what an earlier one has written.

        Raises:
            EditError: it is not a plan, or has no such row.
        """
        if not isinstance(given.get("rows"), list) or not given["rows"]:
            raise EditError(f"{what} has no rows: it needs a list `rows`, each with a name and arguments")
        _check_keys(given, {"arguments", "rows"}, what)
        if arguments:
            given = {**given, "arguments": [*given.get("arguments", []), *arguments]}
        common = _arguments(given, what)
        rows = [_row(row, i, common) for i, row in enumerate(given["rows"], 1)]
        names = [name for row, jobs in rows for name in {row, *(job.name for job in jobs)}]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise EditError(f"several rows of the plan are named {min(twice)!r}: names must differ")
        found = dict(rows)
        missing = [name for name in only or [] if name not in found]
        if missing:
            raise EditError(f"{what} has no row {missing[0]!r}: it has {', '.join(found)}")
        if folder is not None:
            found = {name: [_placed(job, folder) for job in jobs] for name, jobs in found.items()}
        return cls(given, {name: found[name] for name in only or found})

    @property
    def jobs(self) -> list[Job]:
        """All runs, in order."""
        return [job for jobs in self.rows.values() for job in jobs]

    def in_rows(self, entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Join the entries of all runs, in order, to one for each row."""
        each = iter(entries)
        parts = {name: [next(each) for _ in jobs] for name, jobs in self.rows.items()}
        return [part[0] if len(part) == 1 else together(part, name) for name, part in parts.items()]


def compare(
    plan: str, output: str | None = None, options: list[str] | None = None, rows: list[str] | None = None
) -> None:
    """Run several methods on the same edits and write one table of them.

    Finished runs are not repeated and interrupted ones are continued, unless their arguments or configuration files
    have changed. A row with `orders` is the mean of its runs, with their standard deviation.

    Args:
        plan: a YAML file with `rows`, each a `name` and `arguments` of `fit`, and optionally `orders`, seeds of
            `data.shuffle_seed`; and optionally `arguments` of all rows.
        output: folder of the table and of each row's run; default: `runs/` and the name of the plan.
        options: NAME=VALUE for all rows, behind the plan's common arguments: data=ZsRE data.path=zsre.json, say, for
            the same methods on other data.
        rows: names of the rows to run, which the table then has alone; default: all.

    Raises:
        EditError: the plan is invalid, and nothing was run; or rows failed, and the others are in the table.
    """
    read = Comparison.read(plan, [f"--{option}" for option in options or []], rows)
    others = [job.name for job in read.jobs if job.command != "fit"]
    if others:
        raise EditError(f"{others[0]} is no run of fit: `study` takes such plans")
    folder = made_folder(output or Path("runs") / Path(plan).stem)
    command = f"python -m lke_lightning compare --plan {plan} --output {folder}"
    for name, words in (("options", options), ("rows", rows)):
        command += f" --{name} {shlex.join(words)}" if words else ""

    def report(outcomes: list[Outcome]) -> None:
        entries = [entry(outcome) for outcome in outcomes]
        found = {"plan": read.given, **circumstances(command), "rows": entries}
        write(folder / "comparison.json", json.dumps(found, indent=1) + "\n")
        joined = read.in_rows(entries)
        header, lines = table(joined)
        named = [[row["name"], *cells] for row, cells in zip(joined, lines, strict=True)]
        shown = markdown(["method", *header], named)
        write(folder / "comparison.md", f"{shown}\n{CAPTION[0].upper()}{CAPTION[1:]}.\n")

    outcomes = carry_out_all(read.jobs, folder, report)
    show(Path(plan).stem, [(row["name"], row) for row in read.in_rows([entry(outcome) for outcome in outcomes])])
    print(f"Table  {folder / 'comparison.md'}, {folder / 'comparison.json'}")
    failed = [outcome.job.name for outcome in outcomes if outcome.error]
    if failed:
        logs = ", ".join(str(folder / name / LOG) for name in failed)
        raise EditError(f"{len(failed)} of {len(outcomes)} rows failed; see {logs}")


def _row(row: Any, place: int, common: list[str]) -> tuple[str, list[Job]]:
    what = f"row {place} of the plan"
    if not isinstance(row, dict):
        raise EditError(f"{what} is {row!r}: it needs a name and arguments")
    _check_keys(row, {"name", "arguments", "command", "orders", "without"}, what)
    name, orders, command = row.get("name"), row.get("orders"), row.get("command", "fit")
    if command not in CARDS:
        raise EditError(f"{what} has the command {command!r}: it may be {' or '.join(CARDS)}")
    if not isinstance(name, str) or not re.fullmatch(r"[^\W_][^/\\\n]*", name):
        raise EditError(
            f"{what} has the name {name!r}: it names a folder, so start with a letter or digit and use no slash"
        )
    lacks = tuple(f"{name}{end}" for name in _lacks(row, what) for end in "=.")
    arguments = _files_first([*(part for part in common if not part.startswith(lacks)), *_arguments(row, what)])
    if orders is None:
        return name, [Job(name, tuple(arguments), command)]
    if not isinstance(orders, list) or len({*map(str, orders)}) < 2 or not all(type(seed) is int for seed in orders):
        raise EditError(f"{what}: orders is {orders!r}: it must be a list of two or more different seeds")
    return name, [
        Job(f"{name}, order {seed}", (*arguments, "--data.shuffle_seed", str(seed)), command) for seed in orders
    ]


def _placed(job: Job, folder: Path) -> Job:
    return replace(job, arguments=tuple(part.replace("$OUTPUT", str(folder)) for part in job.arguments))


def _lacks(row: dict[str, Any], what: str) -> list[str]:
    names = row.get("without", [])
    if not isinstance(names, list) or not all(isinstance(name, str) and name.startswith("--") for name in names):
        raise EditError(f"{what}: without is {names!r}: it must be a list of options such as [--stage_two.norm_limit]")
    return names


def _files_first(arguments: list[str]) -> list[str]:
    """Move YAML files before all options, so that a common option overrides the files of a row."""
    files: list[str] = []
    options: list[str] = []
    for i, part in enumerate(arguments):
        is_value = i > 0 and arguments[i - 1] in FILE_OPTIONS
        (files if is_value or part in FILE_OPTIONS or part.startswith("--config=") else options).append(part)
    return files + options


def _check_keys(given: dict[str, Any], known: set[str], what: str) -> None:
    unknown = sorted(map(str, set(given) - known))
    if unknown:
        raise EditError(f"{what} has an unknown {unknown[0]!r}: it may have {' and '.join(sorted(known))}")


def _arguments(given: dict[str, Any], what: str) -> list[str]:
    """Return the arguments as the command line takes them: numbers, lists and null are written as JSON."""
    arguments = given.get("arguments", [])
    if not isinstance(arguments, list):
        raise EditError(f"{what}: arguments must be a list such as [-c, configs/method/encore.yaml, --data.limit, 50]")
    return [part if isinstance(part, str) else json.dumps(part) for part in arguments]
