"""Strengths for a new model: a sweep on a slice of the edits, what it trades, and a proposal."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from lke_lightning.edits import EditError
from lke_lightning.results import write
from lke_lightning.sweeps import grid
from lke_lightning.sweeps.layers import best_window, candidates
from lke_lightning.sweeps.report import CAPTION, HEADER, cells, circumstances, entry, markdown, number, show
from lke_lightning.sweeps.runs import Outcome, Run, call, carry_out

NO_CHECKPOINTS = {"checkpoint": {"keep": 0}}
"""Points are looked at and not gone on with; their checkpoints would fill the disk."""


def tune(
    arguments: list[str] | None = None,
    sweep: dict[str, list[Any]] | None = None,
    edits: int = 50,
    layers: Literal["configured", "depth", "probe"] = "configured",
    output: str = "runs/tune",
) -> None:
    """Sweep strengths on a slice of the edits and propose those with the best S.

    Points that are done are not run again. The arguments of `fit` may follow after `--`.

    Args:
        arguments: arguments of `fit`: model, method and data; the model's strengths are where the sweep starts.
        sweep: values by name, such as `{"BaseStatistics.weight": [10, 40], "stage_one.lr": [0.1, 0.5]}`; default:
            what is configured times 1/4, 1 and 4, and 0, 2 and 6 extra steps.
        edits: how many edits to try, from the start of the data; more of them make the choice surer and slower.
        layers: keep those configured, propose some by the model's `depth`, or `probe` single layers with one batch.
        output: folder of the table, the picture, `proposed.yaml` and each point's run.

    Raises:
        EditError: the arguments or the sweep are wrong; or no point could be scored.
    """
    given, folder = list(arguments or []), Path(output)
    if edits < 1:
        raise EditError(f"edits is {edits}: at least one is needed")
    config = _merged(given)
    chosen = sweep or grid.default_sweep(config)
    grid.check_sweep(config, chosen)
    folder.mkdir(parents=True, exist_ok=True)
    study = _Study(given, config, edits, folder)
    probed = study.choose_layers(layers)
    settings = grid.points(chosen)
    configs = {grid.name(point): grid.configured(study.config, point) for point in settings}
    runs = [study.run("points", name, config) for name, config in configs.items()]
    command = (
        f"python -m lke_lightning tune --layers {layers} --edits {edits} --output {output} "
        f"--sweep {shlex.quote(json.dumps(chosen))} -- {shlex.join(given)}"
    )

    def report(outcomes: list[Outcome]) -> None:
        said = _entries(outcomes, settings)
        table = {**circumstances(command), "sweep": chosen, "layers": study.config["model"]["layers"]}
        if probed:
            table["probed_layers"] = probed
        write(folder / "tuning.json", json.dumps({**table, "points": said}, indent=1) + "\n")
        lines = [_row(point) for point in said]
        write(folder / "tuning.md", markdown(_header(chosen), lines) + f"\n*: on the Pareto front. {CAPTION}.\n")

    said = _entries(carry_out(runs, folder / "points", report), settings)
    named = [("* " * point["front"] + _describe(point["settings"]).replace(", ", "\n"), point) for point in said]
    show(f"{len(said)} points, {edits} edits (*: on the Pareto front)", named)
    print(f"Table     {folder / 'tuning.md'}, {folder / 'tuning.json'}")
    best = propose(said)
    draw(said, best, folder / "tuning.png")
    print(f"Picture   {folder / 'tuning.png'}")
    study.write_proposal(configs[best["name"]], best)
    print(f"Proposal  {folder / 'proposed.yaml'}: {_describe(best['settings'])}, S {best['final']['S']:.3f}")
    for name in _at_the_edge(best["settings"], chosen):
        print(f"{name} is best at the edge of what was tried: sweep further that way")


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


def mark_front(said: Sequence[dict[str, Any]]) -> None:
    """Set `front` on the entries that no other beats: as good in S and every drift, and better in one."""
    scored = [point for point in said if point["drift"]]
    costs = {point["name"]: (-point["final"]["S"], *point["drift"].values()) for point in scored}
    for point in said:
        own = costs.get(point["name"])
        point["front"] = own is not None and not any(
            other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in costs.values()
        )


def draw(said: Sequence[dict[str, Any]], best: dict[str, Any], path: Path) -> None:
    """Draw S against each drift: all points, the front, and the proposal."""
    from matplotlib.figure import Figure

    scored = [point for point in said if point["drift"]]
    names = list(best["drift"])
    figure = Figure(figsize=(5.5 * len(names), 4.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for points, style, label in (
            ([p for p in scored if not p["front"]], {"color": "0.6"}, "tried"),
            ([p for p in scored if p["front"]], {"color": "tab:orange"}, "Pareto front"),
            ([best], {"color": "tab:red", "marker": "*", "s": 160}, "proposed"),
        ):
            across, up = [p["drift"][name] for p in points], [p["final"]["S"] for p in points]
            axes.scatter(across, up, label=label, **style)
        axes.set(xlabel=name, ylabel="S at the end")
        axes.grid(alpha=0.3)
    figure.get_axes()[0].legend()
    figure.suptitle(_describe(best["settings"]), fontsize="small")
    unfinished = path.with_name("unfinished-" + path.name)
    figure.savefig(unfinished, dpi=120)
    unfinished.replace(path)


@dataclass
class _Study:
    """The arguments, the configuration they lead to, and where things are written."""

    arguments: list[str]
    config: grid.Config
    edits: int
    folder: Path

    def run(self, group: str, name: str, config: grid.Config, edits: int | None = None) -> Run:
        """Write the YAML file of one run, to be read after all arguments."""
        path = self.folder / group / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        layers = {"model": {"layers": config["model"]["layers"]}}
        stages = {stage: config[stage] for stage in grid.STAGES}
        write(path, yaml.safe_dump({**layers, **stages, **NO_CHECKPOINTS}, sort_keys=False))
        limit = min(edits or self.edits, self.data("limit") or self.edits)
        return Run(name, (*self.arguments, "-c", str(path), "--data.limit", str(limit)))

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
        runs = []
        for layer in candidates(count):
            single = {**self.config, "model": {**self.config["model"], "layers": [layer]}}
            runs.append(self.run("layers", f"layer-{layer}", single, batch))
        outcomes = carry_out(runs, self.folder / "layers", lambda _: None)
        scores = [((outcome.card or {}).get("final") or {}).get("score") for outcome in outcomes]
        found = dict(zip(candidates(count), scores, strict=True))
        proposal = best_window({layer: score for layer, score in found.items() if score is not None}, count)
        said = ", ".join(f"{layer}: {number(score)}" for layer, score in found.items())
        print(f"S of one batch by single layer  {said}\nLayers from here on  {proposal}")
        self.config["model"]["layers"] = proposal
        return {str(layer): score for layer, score in found.items()}

    def write_proposal(self, config: grid.Config, best: dict[str, Any]) -> None:
        """Write the configuration of the best point, to be named after `-c`."""
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

    from lke_lightning.model.language_model import resolve

    try:
        config = AutoConfig.from_pretrained(
            resolve(model["pretrained"]), trust_remote_code=bool(model["trust_remote_code"])
        )
    except (OSError, ValueError) as error:
        raise EditError(f"cannot read the configuration of {model['pretrained']!r}: {error}") from error
    return config.get_text_config().num_hidden_layers


def _entries(outcomes: Sequence[Outcome], settings: Sequence[grid.Settings]) -> list[dict[str, Any]]:
    said = []
    for outcome, point in zip(outcomes, settings, strict=True):
        found = entry(outcome)
        said.append({**found, "settings": point, "drift": _drift(found)})
    mark_front(said)
    return said


def _drift(said: dict[str, Any]) -> dict[str, float] | None:
    """Return how far the model moved: the largest norm growth of a layer, and the ratio of perplexities if measured."""
    if said["status"] != "done" or not said["final"] or said["final"]["S"] is None:
        return None
    drift = {"largest norm growth": max(said["norm_growth"].values())}
    measured = said["perplexity"]
    if measured and measured["before"] and measured["final"]:
        drift["perplexity ratio"] = round(measured["final"] / measured["before"], 4)
    return drift if all(map(math.isfinite, drift.values())) else None


def _header(sweep: dict[str, list[Any]]) -> list[str]:
    return ["", *sweep, *HEADER]


def _row(said: dict[str, Any]) -> list[str]:
    return ["*" if said["front"] else "", *map(str, said["settings"].values()), *cells(said)]


def _describe(settings: grid.Settings) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _at_the_edge(settings: grid.Settings, sweep: dict[str, list[Any]]) -> list[str]:
    """Name what is best at its least or largest value, where less or more could be better still."""
    return [
        name
        for name, value in settings.items()
        if len(sweep[name]) > 1 and all(isinstance(v, int | float) for v in sweep[name])
        if value == max(sweep[name]) or (value == min(sweep[name]) and value > 0)
    ]
