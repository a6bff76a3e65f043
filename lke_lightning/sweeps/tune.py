"""Hyperparameter search for a new model, on a slice of the edits: trade-offs and a proposal."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lke_lightning.edits import EditError
from lke_lightning.results import made_folder, replace, write
from lke_lightning.sweeps import grid
from lke_lightning.sweeps.report import CAPTION, circumstances, entry, markdown, show, table
from lke_lightning.sweeps.runs import Job, call, carry_out

if TYPE_CHECKING:
    from optuna import Study, Trial

NO_CHECKPOINTS = {"checkpoint": {"keep": 0}}
"""Points are never resumed; their checkpoints would fill the disk."""
STUDY = "study.journal"
"""Optuna's journal of the search, for its dashboard and for your own plots."""


class NoScore(Exception):
    """A point failed, or its S is undefined."""


def tune(
    arguments: list[str] | None = None,
    sweep: dict[str, list[Any]] | None = None,
    trials: int | None = None,
    edits: int = 50,
    output: str = "runs/tune",
) -> None:
    """Search for hyperparameters on a slice of the edits and propose those with the best S.

    Finished points are not run again.

    Args:
        arguments: after `--`, arguments of `fit`: model, method and data; the search starts from the configured
            hyperparameters.
        sweep: values by name, such as `{"BaseStatistics.fulfilment": [0.7, 0.9]}`; default: fulfilments of 0.6 to
            0.93, the configured proportion times 1/4, 1 and 4, and 0, 2 and 6 extra steps; where weights are
            configured, these times 1/4, 1 and 4.
        trials: number of points, chosen by the tree-structured Parzen estimator (TPE) between the smallest and the
            largest value of each name; default: every combination of the values.
        edits: edits of each point, from the start of the data; more make the choice more reliable and slower.
        output: folder of the tables, the plots, the study, `proposed.yaml` and each point's run.

    Raises:
        EditError: Optuna is not installed; the arguments or the sweep are wrong; or no point could be scored.
    """
    _check(edits=edits, trials=trials)
    folder = made_folder(output)
    config = _merged(arguments or [])
    chosen = sweep or grid.default_sweep(config)
    grid.check_sweep(config, chosen)
    task = _Slice(arguments or [], config, edits, folder)
    options = f"--edits {edits}" + (f" --trials {trials}" if trials else "")
    command = (
        f"python -m lke_lightning tune {options} --output {shlex.quote(output)} "
        f"--sweep {shlex.quote(json.dumps(chosen))} -- {shlex.join(arguments or [])}"
    )
    about = {**circumstances(command), "sweep": chosen, "layers": config["model"]["layers"]}

    points = _search(task, chosen, trials, about)
    named = [("* " * point["front"] + _describe(point["settings"]).replace(", ", "\n"), point) for point in points]
    show(f"{len(points)} points, {edits} edits (*: on the Pareto front)", named)
    print(f"Table     {folder / 'tuning.md'}, {folder / 'tuning.json'}")
    best = propose(points)
    task.write_proposal(best)
    print(f"Plots     {folder}/tuning-*.png; study {folder / STUDY}")
    print(f"Proposal  {folder / 'proposed.yaml'}: {_describe(best['settings'])}, S {best['final']['S']:.3f}")
    for name in _at_the_edge(best["settings"], [point["settings"] for point in points]):
        print(f"{name} is best at the edge of the searched range: extend the range in that direction")


def propose(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the entry with the best S; of equal ones, the one with the least drift.

    Raises:
        EditError: no entry has an S.
    """
    scored = [point for point in points if point["drift"]]
    if not scored:
        raise EditError(
            "no point could be scored: either all runs failed (see the table), or S is undefined, because it needs "
            "edits with paraphrases, neighborhoods and original answers"
        )
    return max(scored, key=lambda point: (point["final"]["S"], [-drift for drift in point["drift"].values()]))


def _search(
    task: _Slice, sweep: dict[str, list[Any]], trials: int | None, about: dict[str, Any]
) -> list[dict[str, Any]]:
    """Run the points, and write the tables after each and the plots at the end.

    The study is rebuilt at each start: finished points are not run again but reported to the seeded sampler, which then
    continues where it was interrupted.

    Returns:
        An entry for each point.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    total = trials or math.prod(len(set(_choices(values))) for values in sweep.values())
    space = {name: list(_choices(values)) for name, values in sweep.items()}
    sampler = optuna.samplers.TPESampler(seed=0) if trials else optuna.samplers.GridSampler(space, seed=0)
    (task.folder / STUDY).unlink(missing_ok=True)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(task.folder / STUDY))),
        sampler=sampler,
        study_name="tune",
        directions=["maximize", *("minimize" for _ in task.drifts)],
    )
    points: list[dict[str, Any]] = []

    def attempt(trial: Trial) -> tuple[float, ...]:
        settings = {name: _value(trial, name, values, trials is not None) for name, values in sweep.items()}
        job = task.job(settings)
        outcome = carry_out(job, task.folder / "points" / job.name, f"{trial.number + 1}/{total}")
        found = entry(outcome)
        points.append({**found, "settings": settings, "drift": _drift(found, task.drifts), "front": False})
        if points[-1]["drift"] is None:
            raise NoScore
        return found["final"]["S"], *points[-1]["drift"].values()

    def report(study: Study, _: Any) -> None:
        front = {trial.number for trial in study.best_trials}
        for i, point in enumerate(points):
            point["front"] = i in front
        write(task.folder / "tuning.json", json.dumps({**about, "points": points}, indent=1) + "\n")
        header, rows = table(points)
        lines = [
            ["*" if point["front"] else "", *map(str, point["settings"].values()), *cells]
            for point, cells in zip(points, rows, strict=True)
        ]
        shown = markdown(["", *sweep, *header], lines)
        write(task.folder / "tuning.md", f"{shown}\n*: on the Pareto front. {CAPTION}.\n")

    study.optimize(attempt, n_trials=trials, catch=NoScore, callbacks=[report])
    if study.best_trials:
        _draw(study, task)
    return points


def _choices(values: Sequence[Any]) -> dict[str, Any]:
    """Return the values by their JSON text: Optuna's choices are plain, and a value may be a list."""
    return {json.dumps(value): value for value in values}


def _value(trial: Trial, name: str, values: Sequence[Any], is_range: bool) -> Any:
    """Suggest one of the values, or, for a range, a number between the smallest and the largest."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if not is_range or len(numbers) < len(values) or min(numbers) == max(numbers):
        choices = _choices(values)
        return choices[trial.suggest_categorical(name, list(choices))]
    low, high = min(numbers), max(numbers)
    if all(isinstance(value, int) for value in values):
        return trial.suggest_int(name, int(low), int(high), log=low > 0)
    return float(f"{trial.suggest_float(name, low, high, log=low > 0):.4g}")


def _draw(study: Study, task: _Slice) -> None:
    """Draw S against each drift, and the front of all objectives."""
    from matplotlib import pyplot
    from optuna.exceptions import ExperimentalWarning
    from optuna.visualization.matplotlib import plot_pareto_front

    for i, name in enumerate(task.drifts, 1):
        with pyplot.style.context({}), warnings.catch_warnings():  # it sets a global style
            warnings.simplefilter("ignore", ExperimentalWarning)
            axes: Any = plot_pareto_front(
                study,
                targets=lambda trial, i=i: (trial.values[i], trial.values[0]),  # type: ignore[misc]  # `i` is no argument
                target_names=[name, "S"],
            )
            path = task.folder / f"tuning-{name.replace(' ', '-')}.png"
            replace(path, partial(axes.figure.savefig, format="png", dpi=120))
            pyplot.close(axes.figure)


@dataclass
class _Slice:
    """Arguments of `fit`, the configuration they lead to, the number of edits, and the output folder."""

    arguments: list[str]
    config: grid.Config
    edits: int
    folder: Path

    @property
    def drifts(self) -> list[str]:
        """Names of the drift measures."""
        with_text = (self.config.get("scorecard") or {}).get("text")
        return ["largest norm growth", *(["perplexity ratio"] if with_text else [])]

    def job(self, settings: grid.Settings) -> Job:
        """Write the YAML file of one run, to be read after all arguments."""
        name, config = grid.name(settings), grid.configured(self.config, settings)
        path = self.folder / "points" / f"{name}.yaml"
        stages = {stage: config[stage] for stage in grid.STAGES}
        write(path, yaml.safe_dump({**stages, **NO_CHECKPOINTS}, sort_keys=False))
        limit = min(self.edits, (self.config["data"].get("init_args") or {}).get("limit") or self.edits)
        return Job(name, (*self.arguments, "-c", str(path), "--data.limit", str(limit)))

    def write_proposal(self, best: dict[str, Any]) -> None:
        """Write the configuration of the best point, for `-c`."""
        config = grid.configured(self.config, best["settings"])
        drift = ", ".join(f"{name} {value:.3f}" for name, value in best["drift"].items())
        header = (
            f"# Proposed by `python -m lke_lightning tune`: the best S of all points tried.\n"
            f"# Measured on {best['edits']} edits of {best['data']}: S {best['final']['S']:.3f}, {drift}.\n"
        )
        sections = {name: config[name] for name in ("model", *grid.STAGES)}
        write(self.folder / "proposed.yaml", header + yaml.safe_dump(sections, sort_keys=False))


def _merged(arguments: Sequence[str]) -> grid.Config:
    """Return the configuration that `fit` makes of its arguments.

    Raises:
        EditError: `fit` refuses them.
    """
    done = subprocess.run(call("fit", *arguments, "--print_config"), capture_output=True, text=True, check=False)
    config = yaml.safe_load(done.stdout) if done.returncode == 0 else None
    if not isinstance(config, dict):
        raise EditError(f"`fit` refuses these arguments: {done.stderr.strip()[-2000:]}")
    return config


def _drift(point: dict[str, Any], names: Sequence[str]) -> dict[str, float] | None:
    """Return the drift measures in `names`; `None` if one of them or S is unknown."""
    if point["status"] != "done" or not point["final"] or point["final"]["S"] is None:
        return None
    measured = point["perplexity"] or {}
    ratio = measured["final"] / measured["before"] if measured.get("before") and measured.get("final") else math.nan
    drift = {"largest norm growth": max(point["norm_growth"].values()), "perplexity ratio": round(ratio, 4)}
    return {name: drift[name] for name in names} if all(math.isfinite(drift[name]) for name in names) else None


def _describe(settings: grid.Settings) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _at_the_edge(settings: grid.Settings, tried: Sequence[grid.Settings]) -> list[str]:
    """Name the settings whose best value is the smallest or largest tried, so that the range may be too narrow."""
    edges = []
    for name, value in settings.items():
        values = [point[name] for point in tried]
        if all(isinstance(v, int | float) for v in values) and min(values) < max(values):
            edges += [name] * (value == max(values) or (value == min(values) and value > 0))
    return edges


def _check(edits: int, trials: int | None) -> None:
    """Raise `EditError` for counts below 1 and if Optuna is missing."""
    if edits < 1:
        raise EditError(f"--edits is {edits}: at least one is needed")
    if trials is not None and trials < 1:
        raise EditError(f"--trials is {trials}: at least one is needed, or none for every combination")
    if find_spec("optuna") is None:
        raise EditError("tune searches with Optuna, which is not installed: pip install 'lke-lightning[tune]'")
