"""Re-run a publication's measurements: the runs of a plan, then a page that holds its claims against them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from lke_lightning import studies
from lke_lightning.configuration import configs, read
from lke_lightning.edits import EditError
from lke_lightning.results import made_folder, replace, write
from lke_lightning.studies.page import page, picture
from lke_lightning.sweeps.compare import Comparison
from lke_lightning.sweeps.report import circumstances
from lke_lightning.sweeps.runs import LOG, Outcome, carry_out_all


def study(
    name: str, output: str | None = None, options: list[str] | None = None, rows: list[str] | None = None
) -> None:
    """Measure again what a publication about editing has measured, and hold its claims against the figures.

    Finished runs are not repeated and interrupted ones go on. After every run the page, its figure and the result file
    are written anew.

    Args:
        name: a file of configs/study, without its ending, or the path of a file like them.
        output: folder of the page and of each run; default: `runs/study-` and the name.
        options: NAME=VALUE for all runs, behind the plan's own: another model, fewer edits.
        rows: names of the runs to make; default: all.

    Raises:
        EditError: there is no such study, its plan is invalid, or runs failed, and the others are on the page.
    """
    path = Path(name) if name.endswith(".yaml") else configs() / "study" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in (configs() / "study").glob("*.yaml")))
        raise EditError(f"there is no study {name!r}: there are {known}")
    given = read(path)
    kind = getattr(studies, str(given.pop("study", None)), None)
    if not (isinstance(kind, type) and issubclass(kind, studies.Study)):
        raise EditError(f"{path} needs `study`, the name of a class of lke_lightning.studies")
    about = str(given.pop("about", ""))
    made, folder = kind(), made_folder(output or Path("runs") / f"study-{path.stem}")
    plan = Comparison.of(given, f"the plan {str(path)!r}", [f"--{option}" for option in options or []], rows, folder)
    command = f"python -m lke_lightning study {name}"
    for word, words in (("output", [output] if output else None), ("options", options), ("rows", rows)):
        command += f" --{word} {shlex.join(words)}" if words else ""
    print(f"{made.title} {made.source}\n{len(plan.jobs)} runs. {about}")

    def report(outcomes: list[Outcome]) -> None:
        result = {"study": path.stem, "about": about, **circumstances(command), "rows": [entry(o) for o in outcomes]}
        write(folder / "study.json", json.dumps(result, indent=1) + "\n")
        write(folder / f"{path.stem}.md", page(made, result, f"{path.stem}.svg", "study.json"))
        replace(folder / f"{path.stem}.svg", lambda file: file.write(picture(made, result)))

    def entry(outcome: Outcome) -> dict[str, Any]:
        told: dict[str, Any] = {"name": outcome.job.name, "status": outcome.status, "command": outcome.job.command}
        told["arguments"] = list(outcome.job.arguments)
        if outcome.card:
            told["facts"] = made.facts(outcome.card)
        return told | ({"error": outcome.error} if outcome.error else {})

    outcomes = carry_out_all(plan.jobs, folder, report)
    for claim in made.claims({o.job.name: made.facts(o.card) for o in outcomes if o.card}):
        print(f"{claim.verdict}: {claim.says}")
    print(f"Page  {folder / path.stem}.md")
    failed = [outcome.job.name for outcome in outcomes if outcome.error]
    if failed:
        logs = ", ".join(str(folder / failure / LOG) for failure in failed)
        raise EditError(f"{len(failed)} of {len(outcomes)} runs failed; see {logs}")
