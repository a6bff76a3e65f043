"""`report`: one page, figures and tables of some runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lke_lightning.report.canvas import files_of, inline_svg
from lke_lightning.report.figures import EXHIBITS
from lke_lightning.report.page import Shown, page
from lke_lightning.report.reading import RunRecord, read_all
from lke_lightning.report.tables import latex, markdown
from lke_lightning.results import replace, write

PAGE, FIGURES, FOLDER = "index.html", "figures", "report"


def report(runs: list[str], output: str | None = None) -> None:
    """Make one page that shows what runs did, with its figures and tables as files.

    The page needs nothing but itself: it can be sent by mail. Runs may be unfinished; what was not measured is left
    out. Beside `index.html`: `figures/` with a PNG and a PDF of each figure, `table.tex` and `table.md`.

    Args:
        runs: folders of runs, or folders that hold such folders, as `compare` makes them. Several are shown side by
            side, in this order.
        output: folder to write into; default: `report` in the run's folder, or in the folder that all runs share.

    Raises:
        EditError: there is no such run, one of its files is damaged, or the page cannot be written.
    """
    read = read_all(runs)
    folder = Path(output) if output else _shared_folder(read) / FOLDER
    shown = []
    for exhibit in EXHIBITS:
        draw = exhibit.prepare(read)
        if draw is None:
            continue
        is_wide = exhibit.is_wide or (exhibit.is_wide_of_several and len(read) > 1)
        shown.append(Shown(exhibit, inline_svg(draw, f"{exhibit.title}: {exhibit.caption}"), is_wide))
        for kind, data in files_of(draw).items():
            replace(folder / FIGURES / f"{exhibit.slug}.{kind}", lambda file, data=data: file.write(data))
    write(folder / "table.tex", latex(read))
    write(folder / "table.md", markdown(read))
    write(folder / PAGE, page(read, shown))
    left = [exhibit.title for exhibit in EXHIBITS if exhibit not in [part.exhibit for part in shown]]
    print(f"Report   {folder / PAGE}")
    print(f"Figures  {len(shown)} in {folder / FIGURES}" + (f"; not measured: {', '.join(left)}" if left else ""))
    print(f"Tables   {folder / 'table.tex'}, {folder / 'table.md'}")


def _shared_folder(runs: Sequence[RunRecord]) -> Path:
    if len(runs) == 1:
        return runs[0].folder
    return Path(os.path.commonpath([run.folder.parent for run in runs]))
