"""The files in a run's folder, as they lie there: whole, missing, or cut off in the middle of a line."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lke_lightning.edits import EditError
from lke_lightning.ledger import NAME as LEDGER

SCORECARD, DRIFT, DOWNSTREAM = "scorecard.json", "drift.json", "downstream.json"


def is_run(folder: Path) -> bool:
    """Tell whether something of a run is in a folder."""
    return (folder / SCORECARD).is_file() or (folder / LEDGER).is_file()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is no file.

    Raises:
        EditError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EditError(f"{path} is damaged: {error}") from error


def parts_of(folder: Path) -> list[Path]:
    """Return the folders of Lightning's logs, one for each part of a run, the oldest first."""
    found = [path for path in (folder / "lightning_logs").glob("version_*") if path.name.split("_")[-1].isdigit()]
    return sorted(found, key=lambda path: int(path.name.split("_")[-1]))


def logged(versions: Sequence[Path]) -> list[dict[str, float]]:
    """Join what each part of a run logged; a batch that was edited again counts as it was the last time."""
    rows: dict[int, dict[str, float]] = {}
    for row in itertools.chain.from_iterable(_rows(version / "metrics.csv") for version in versions):
        rows.setdefault(int(row["step"]), {}).update(row)
    return [rows[step] for step in sorted(rows)]


def _rows(path: Path) -> Iterator[dict[str, float]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            try:
                found = {name: float(value) for name, value in row.items() if name and value}
            except (ValueError, TypeError):  # the last line of a run that was killed
                continue
            if "step" in found and any(name.startswith(("just_after/", "norm_growth/")) for name in found):
                yield found
