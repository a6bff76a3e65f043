"""The files in a run's folder; a damaged one is an error that names it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lke_lightning.edits import EditError
from lke_lightning.ledger import NAME as LEDGER

SCORECARD, DRIFT, DOWNSTREAM = "scorecard.json", "drift.json", "downstream.json"

JUST_AFTER = "just_after/"
"""Prefix of the columns of `metrics.csv` with the success of a batch right after its edit."""

DAMAGE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, csv.Error)
"""Exceptions raised when a file is not what a run writes."""


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Report every failure to read and parse a file as damage to that file.

    Raises:
        EditError: the file is damaged, or cannot be read.
    """
    try:
        yield
    except EditError:
        raise
    except DAMAGE as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise EditError(
            f"{path} is damaged ({reason}): restore an intact copy, or move the file away to report without it"
        ) from error
    except OSError as error:
        raise EditError(f"cannot read {path} ({error.strerror})") from error


def find_runs(places: Sequence[str]) -> list[Path]:
    """Return the folders of runs, each once.

    Args:
        places: folders of runs, or folders that hold such folders, as `compare` makes them.

    Raises:
        EditError: one of them is neither, or none is given.
    """
    if not places:
        raise EditError("name at least one run: report RUN [RUN ...]")
    found: list[Path] = []
    for place in places:
        folder = Path(place)
        with whole(folder):
            if not folder.is_dir():
                raise EditError(f"no folder {place!r}: a report takes folders of runs, such as runs/20260101-120000")
            inside = [folder] if _is_run(folder) else sorted(filter(_is_run, folder.iterdir()))
        if not inside:
            raise EditError(
                f"{place!r} is neither the folder of a run nor one that holds such folders: there is no {SCORECARD} "
                f"and no {LEDGER} in it"
            )
        found += [path.resolve() for path in inside]
    return list(dict.fromkeys(found))


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one if there is no file."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(found, dict):
        raise TypeError("it is not a JSON object")
    return found


def log_folders(folder: Path) -> list[Path]:
    """Return the folders of Lightning's logs, one for each part of a run, the oldest first."""
    found = [path for path in (folder / "lightning_logs").glob("version_*") if path.name.split("_")[-1].isdecimal()]
    return sorted(found, key=lambda path: int(path.name.split("_")[-1]))


def read_metrics(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield batches and their success just after by kind, from Lightning's `metrics.csv`, if it is there."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            try:
                found = {name: float(value) for name, value in row.items() if name and value}
            except (TypeError, ValueError):  # the last line of a run that was killed
                continue
            kinds = {name.removeprefix(JUST_AFTER): value for name, value in found.items() if JUST_AFTER in name}
            if kinds and "step" in found:
                yield int(found["step"]), kinds


def _is_run(folder: Path) -> bool:
    return (folder / SCORECARD).is_file() or (folder / LEDGER).is_file()
