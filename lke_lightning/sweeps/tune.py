"""Strengths for a new model: a search on a slice of the edits, what it trades, and a proposal."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from lke_lightning.edits import EditError
from lke_lightning.results import made_folder, replace, write
from lke_lightning.sweeps import grid
from lke_lightning.sweeps.layers import best_window, candidates
from lke_lightning.sweeps.report import CAPTION, HEADER, cells, circumstances, entry, markdown, number, show
from lke_lightning.sweeps.runs import Job, call, carry_out, carry_out_all

if TYPE_CHECKING:
    from optuna import Study, Trial

NO_CHECKPOINTS = {"checkpoint": {"keep": 0}}
"""Points are looked at and not gone on with; their checkpoints would fill the disk."""
STUDY = "study.journal"
"""Optuna's journal of the search, for its dashboard and for plots of one's own."""


class NoScore(Exception):
    """A point has failed, or its S is undefined."""


def tune(
    arguments: list[str] | None = None,
    sweep: dict[str, list[Any]] | None = None,
    trials: int | None = None,
    edits: int = 50,
    layers: Literal["configured", "depth", "probe"] = "configured",
    output: str = "runs/tune",
) -> None:
    """Search for strengths on a slice of the edits and propose those with the best S.

    Points that are done are not run again.

    Args:
        arguments: after `--`, arguments of `fit`: model, method and data; the model's strengths are where the search
            starts.
        sweep: values by name, such as `{"BaseStatistics.weight": [10, 40], "stage_one.lr": [0.1, 0.5]}`; default:
            what is configured times 1/4, 1 and 4, and 0, 2 and 6 extra steps.
        trials: try so many points, chosen by the tree-structured Parzen estimator (TPE) between the least and the
            largest value of each name; default: every combination of the values.
        edits: how many edits to try, from the start of the data; more of them make the choice surer and slower.
        layers: keep those configured, propose some by the model's `depth`, or `probe` single layers with one batch.
        output: folder of the tables, the pictures, the study, `proposed.yaml` and each point's run.

    Raises:
        EditError: Optuna is not installed; the arguments or the sweep are wrong; or no point could be scored.
    """
    _check(edits=edits, trials=trials)
    folder = made_folder(output)
    config = _merged(arguments or [])
    chosen = sweep or grid.default_sweep(config)
    grid.check_sweep(config, chosen)
    task = _Slice(arguments or [], config, edits, folder)
    probed = task.choose_layers(layers)
    options = f"--layers {layers} --edits {edits}" + (f" --trials {trials}" if trials else "")
    command = (
        f"python -m lke_lightning tune {options} --output {shlex.quote(output)} "
        f"--sweep {shlex.quote(json.dumps(chosen))} -- {shlex.join(arguments or [])}"
    )
    about = {**circumstances(command), "sweep": chosen, "layers": config["model"]["layers"], "probed_layers": probed}

    said = _search(task, chosen, trials, about)
    named = [("* " * point["front"] + _describe(point["settings"]).replace(", ", "\n"), point) for point in said]
    show(f"{len(said)} points, {edits} edits (*: on the Pareto front)", named)
    print(f"Table     {folder / 'tuning.md'}, {folder / 'tuning.json'}")
    best = propose(said)
    task.write_proposal(best)
    print(f"Pictures  {folder}/tuning-*.png; study {folder / STUDY}")
    print(f"Proposal  {folder / 'proposed.yaml'}: {_describe(best['settings'])}, S {best['final']['S']:.3f}")
    for name in _at_the_edge(best["settings"], [point["settings"] for point in said]):
        print(f"{name} is best at the edge of what was tried: search further that way")


def propose(said: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the entry with the best S; of equal ones that which drifts least.

    Raises:
        EditError: none has an S.
    """
    scored = [point for point in said if point["drift"]]
    if not scored:
        raise EditError(
            "no point could be scored: either all runs failed (see the table), or S is undefined, because it needs "
            "edits with paraphrases, neighborhoods and original answers"
        )
    return max(scored, key=lambda point: (point["final"]["S"], [-drift for drift in point["drift"].values()]))


def _search(
    task: _Slice, sweep: dict[str, list[Any]], trials: int | None, about: dict[str, Any]
) -> list[dict[str, Any]]:
    """Try points, and write the tables after each and the pictures at the end.

    The study is made anew each time: what is done before is not run again but told to the seeded sampler, which then
    goes on where it was interrupted.

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
    said: list[dict[str, Any]] = []

    def attempt(trial: Trial) -> tuple[float, ...]:
        settings = {name: _value(trial, name, values, trials is not None) for name, values in sweep.items()}
        job = task.job("points", grid.name(settings), grid.configured(task.config, settings))
        outcome = carry_out(job, task.folder / "points" / job.name, f"{trial.number + 1}/{total}")
        found = entry(outcome)
        said.append({**found, "settings": settings, "drift": _drift(found, task.drifts), "front": False})
        if said[-1]["drift"] is None:
            raise NoScore
        return found["final"]["S"], *said[-1]["drift"].values()

    def tell(study: Study, _: Any) -> None:
        front = {trial.number for trial in study.best_trials}
        for i, point in enumerate(said):
            point["front"] = i in front
        write(task.folder / "tuning.json", json.dumps({**about, "points": said}, indent=1) + "\n")
        lines = [["*" if p["front"] else "", *map(str, p["settings"].values()), *cells(p)] for p in said]
        table = markdown(["", *sweep, *HEADER], lines)
        write(task.folder / "tuning.md", f"{table}\n*: on the Pareto front. {CAPTION}.\n")

    study.optimize(attempt, n_trials=trials, catch=NoScore, callbacks=[tell])
    if study.best_trials:
        _draw(study, task)
    return said


def _choices(values: Sequence[Any]) -> dict[str, Any]:
    """Return the values by how JSON writes them: Optuna's choices are plain, and a value may be a list."""
    return {json.dumps(value): value for value in values}


def _value(trial: Trial, name: str, values: Sequence[Any], is_range: bool) -> Any:
    """Take one of the values, or, of numbers, what lies between the least and the largest."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if not is_range or len(numbers) < len(values) or min(numbers) == max(numbers):
        choices = _choices(values)
        return choices[trial.suggest_categorical(name, list(choices))]
    low, high = min(numbers), max(numbers)
    if all(isinstance(value, int) for value in values):
        return trial.suggest_int(name, low, high, log=low > 0)
    return float(f"{trial.suggest_float(name, low, high, log=low > 0):.4g}")


def _draw(study: Study, task: _Slice) -> None:
    """Draw S against each drift, and the front of all objectives."""
    from matplotlib import pyplot
    from optuna.exceptions import ExperimentalWarning
    from optuna.visualization.matplotlib import plot_pareto_front

    for i, name in enumerate(task.drifts, 1):
        with pyplot.style.context({}), warnings.catch_warnings():  # it sets a style for all that comes after
            warnings.simplefilter("ignore", ExperimentalWarning)
            axes = plot_pareto_front(
                study, targets=lambda trial, i=i: (trial.values[i], trial.values[0]), target_names=[name, "S"]
            )
            path = task.folder / f"tuning-{name.replace(' ', '-')}.png"
            replace(path, lambda file, figure=axes.figure: figure.savefig(file, format="png", dpi=120))
            pyplot.close(axes.figure)


@dataclass
class _Slice:
    """Arguments of `fit`, the configuration they lead to, how many edits are tried, and where things are written."""

    arguments: list[str]
    config: grid.Config
    edits: int
    folder: Path

    @property
    def drifts(self) -> list[str]:
        """By what it is measured how far a model moved."""
        with_text = (self.config.get("scorecard") or {}).get("text")
        return ["largest norm growth", *(["perplexity ratio"] if with_text else [])]

    def job(self, group: str, name: str, config: grid.Config, edits: int | None = None) -> Job:
        """Write the YAML file of one run, to be read after all arguments."""
        path = self.folder / group / f"{name}.yaml"
        layers = {"model": {"layers": config["model"]["layers"]}}
        stages = {stage: config[stage] for stage in grid.STAGES}
        write(path, yaml.safe_dump({**layers, **stages, **NO_CHECKPOINTS}, sort_keys=False))
        limit = min(edits or self.edits, self.data("limit") or self.edits)
        return Job(name, (*self.arguments, "-c", str(path), "--data.limit", str(limit)))

    def data(self, argument: str) -> Any:
        """Return what is configured of the data."""
        return (self.config["data"].get("init_args") or {}).get(argument)

    def choose_layers(self, how: str) -> dict[str, float | None]:
        """Set the layers, and return what was measured of single ones."""
        if how == "configured":
            return {}
        count = _depth(self.config["model"])
        if how == "depth":
            from lke_lightning.model.architecture import layers_by_depth

            self.config["model"]["layers"] = layers_by_depth(count)
            return {}
        batch = min(self.edits, self.data("batch_size") or self.edits)
        jobs = []
        for layer in candidates(count):
            single = {**self.config, "model": {**self.config["model"], "layers": [layer]}}
            jobs.append(self.job("layers", f"layer-{layer}", single, batch))
        outcomes = carry_out_all(jobs, self.folder / "layers", lambda _: None)
        scores = [((outcome.card or {}).get("final") or {}).get("score") for outcome in outcomes]
        found = dict(zip(candidates(count), scores, strict=True))
        proposal = best_window({layer: score for layer, score in found.items() if score is not None}, count)
        said = ", ".join(f"{layer}: {number(score)}" for layer, score in found.items())
        print(f"S of one batch by single layer  {said}\nLayers from here on  {proposal}")
        self.config["model"]["layers"] = proposal
        return {str(layer): score for layer, score in found.items()}

    def write_proposal(self, best: dict[str, Any]) -> None:
        """Write the configuration of the best point, to be named after `-c`."""
        config = grid.configured(self.config, best["settings"])
        drift = ", ".join(f"{name} {value:.3f}" for name, value in best["drift"].items())
        header = (
            f"# Proposed by `python -m lke_lightning tune`: of all points tried, S was best with these strengths.\n"
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
        raise EditError(f"`fit` does not take these arguments: {done.stderr.strip()[-2000:]}")
    return config


def _depth(model: dict[str, Any]) -> int:
    from transformers import AutoConfig

    from lke_lightning.model.language_model import located

    where, file = located(model["pretrained"])
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=bool(model["trust_remote_code"]), **file)
    except (OSError, ValueError) as error:
        raise EditError(f"cannot read the configuration of {model['pretrained']!r}: {error}") from error
    return config.get_text_config().num_hidden_layers


def _drift(said: dict[str, Any], names: Sequence[str]) -> dict[str, float] | None:
    """Return how far the model moved, by `names`; `None` where that or S is not known."""
    if said["status"] != "done" or not said["final"] or said["final"]["S"] is None:
        return None
    measured = said["perplexity"] or {}
    ratio = measured["final"] / measured["before"] if measured.get("before") and measured.get("final") else math.nan
    drift = {"largest norm growth": max(said["norm_growth"].values()), "perplexity ratio": round(ratio, 4)}
    return {name: drift[name] for name in names} if all(math.isfinite(drift[name]) for name in names) else None


def _describe(settings: grid.Settings) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _at_the_edge(settings: grid.Settings, tried: Sequence[grid.Settings]) -> list[str]:
    """Name what is best at its least or largest value, where less or more could be better still."""
    edges = []
    for name, value in settings.items():
        values = [point[name] for point in tried]
        if all(isinstance(v, int | float) for v in values) and min(values) < max(values):
            edges += [name] * (value == max(values) or (value == min(values) and value > 0))
    return edges


def _check(edits: int, trials: int | None) -> None:
    """Raise `EditError` where there is nothing to do or nothing to do it with."""
    if edits < 1:
        raise EditError(f"--edits is {edits}: at least one is needed")
    if trials is not None and trials < 1:
        raise EditError(f"--trials is {trials}: at least one is needed, or none for every combination")
    if find_spec("optuna") is None:
        raise EditError("tune searches with Optuna, which is not installed: pip install 'lke-lightning[tune]'")
