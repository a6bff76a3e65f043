"""The command `report`: one page of figures and tables of runs."""

from __future__ import annotations

import os
from pathlib import Path

from lke_lightning.edits import EditError
from lke_lightning.report.page import page
from lke_lightning.report.reading import RunRecord, read_all
from lke_lightning.results import write

NAME = "report.html"


def report(runs: list[str], output: str | None = None) -> None:
    """Make one page of figures and tables of runs.

    The page is self-contained, so it can be sent by mail. Runs may be unfinished; missing measurements are left out.

    Args:
        runs: folders of runs, or folders that hold such folders, as `compare` makes them. Several are shown side by
            side, in the given order.
        output: the page's file, which ends in .html; default: `report.html` in the run's folder, or in the common
            parent of all runs.

    Raises:
        EditError: there is no such run, one of its files is damaged, or the page cannot be written.
    """
    asked = None if output is None else _checked(output)
    read = read_all(runs)
    path = asked or _shared_folder(read) / NAME
    write(path, page(read))
    print(f"Report  {path}")


def _checked(output: str) -> Path:
    """Refuse an invalid output path, before anything is drawn."""
    path = Path(output)
    if path.suffix not in (".html", ".htm"):
        raise EditError(f"output is {output!r}: name the page's file, such as {path / NAME}")
    try:
        if path.is_dir():
            raise EditError(f"output is {output!r}, which is a folder: name a file, such as {path / NAME}")
        taken = [place for place in path.parents if place.exists() and not place.is_dir()]
    except OSError as error:
        raise EditError(f"output is {output!r} ({error.strerror}): name another file") from error
    if taken:
        raise EditError(f"output is {output!r}, but {taken[0]} is not a folder: name another file")
    return path


def _shared_folder(runs: list[RunRecord]) -> Path:
    if len(runs) == 1:
        return runs[0].folder
    return Path(os.path.commonpath([run.folder.parent for run in runs]))
