"""Writes the tables of the README and of pages of docs: `python docs/tables.py`."""

from __future__ import annotations

import itertools
import json
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]


def methods() -> str:
    """Return a row for each method file."""
    rows = [_method(path) for path in sorted((ROOT / "configs" / "method").glob("*.yaml"))]
    return _table(["method", "paper", "stage one stops at; its own parts", "stage two solves"], rows)


def headlines() -> str:
    """Return the results that the README has, each with its file."""
    rows = [
        [what, says(json.loads((ROOT / "results" / f"{name}.json").read_text())), f"[file](results/{name}.json)"]
        for name, (what, says) in HEADLINES.items()
    ]
    return _table(["what", "result", ""], rows)


def _real(result: dict[str, Any]) -> str:
    shown = [f"{kind} {_fraction(result['final'][kind]['success'])}" for kind in KINDS]
    before = _fraction(result["before"]["neighborhood"]["success"])
    return f"{', '.join(shown)} (before: {before}), S {_fraction(result['final']['score'])}"


def _thousand(result: dict[str, Any]) -> str:
    return "; ".join(
        f"{row['name']}: S {_fraction(row['final']['S'])}, perplexity "
        f"{row['perplexity']['before']:.0f} > {row['perplexity']['final']:.0f}"
        for row in result["rows"]
        if row["status"] == "done"
    )


def _best(result: dict[str, Any]) -> str:
    found = {row["name"]: row["final"]["S"] for row in result["rows"] if row["status"] == "done"}
    best = ", ".join(f"{_fraction(found[name])} ({name})" for name in ("NeuralDB", "NAS", "ENCORE"))
    return f"S {best}, each ± 0.04; {len(found)} methods"


def _faster(result: dict[str, Any]) -> str:
    runs = [run for run in result["runs"] if run["dtype"] == "float32" and not run["early_stop"]]
    ratios = [f"{run['ratio']:.1f} ({run['shape']})" for run in runs]
    return f"{' and '.join(ratios)} times as fast as the published way"


def _undone(result: dict[str, Any]) -> str:
    [run] = [run for run in result["runs"] if (run["undone"], run["edits"]) == (100, 200)]
    return f"{run['undo_seconds']:.1f} s; {run['error_after']:.0e} from never having made them"


HEADLINES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "real-smollm2-100": ("100 facts of the real world, SmolLM2-135M-Instruct, ENCORE", _real),
    "compare-smollm2-1000": ("1,000 facts of CounterFact, the same model", _thousand),
    "compare-cf-llama-9m-200": ("200 facts of CounterFact, a Llama of 9M parameters", _best),
    "benchmark-stage_one-cpu": ("stage one, 32 edits together, random weights", _faster),
    "benchmark-undo-cpu": ("100 of 200 edits undone, demo model", _undone),
}
"""The files of the README's results: what was done, and what came of it."""


def performance() -> str:
    """Return a row for each run of each benchmark; half precision on a CPU and small solves stay in the files."""
    rows = []
    for path in sorted((ROOT / "results").glob("benchmark-*.json")):
        result = json.loads(path.read_text())
        describe = MEASURED.get(result["benchmark"])  # what is no matter of speed stands elsewhere
        shown = [run for run in result.get("runs", ()) if run.get("dtype") != "bfloat16" or "cpu" not in path.name]
        for run in [run for run in shown if run.get("d_key", 6400) >= 6400] if describe else ():
            what, ours, theirs = describe(run)
            rows.append(
                [what, result["machine"], ours, theirs, f"**{run['ratio']}**", f"[file](../results/{path.name})"]
            )
    return _table(["what", "machine", "ours", "plain or published", "ratio", ""], rows)


MEASURED: dict[str, Callable[[dict[str, Any]], tuple[str, str, str]]] = {
    "stage_one": lambda run: (
        f"stage one, {run['shape']} {run['dtype']}, {run['requests']} edits together, "
        + (f"early stop after {run['mean_steps']:.1f} steps" if run["early_stop"] else f"{run['max_steps']} steps"),
        f"{run['ours_seconds_per_edit']:.3g} s per edit",
        f"{run['published_seconds_per_edit']:.3g} s per edit",
    ),
    "evaluation": lambda run: (
        f"evaluation, {run['shape']} {run['dtype']}, records of 13 prompts",
        f"{run['ours_records_per_second']} per s",
        f"{run['plain_records_per_second']} per s",
    ),
    "statistics": lambda run: (
        f"key statistics, {run['shape']} {run['dtype']}, {run['layers']} layers",
        f"{run['ours_tokens_per_second']} tokens per s",
        f"{run['published_tokens_per_second']} tokens per s",
    ),
    "solver": lambda run: (
        f"solve, {run['edits']} edits, d_key {run['d_key']}, {run['dtype']}, error {run['max_relative_error']:.0e}",
        f"{run['ours_seconds']:.3g} s per layer",
        f"{run['published_seconds']:.3g} s per layer",
    ),
}


KINDS = ("efficacy", "paraphrase", "neighborhood")


def survival() -> str:
    """Return what each rounding leaves of the edits, a row for each model and rounding."""
    rows = [
        [model, row["weights"], *_scores(row["edits"]), _fraction(row["edits"]["score"])] for model, row in _rounded()
    ]
    return _table(["model", "weights", *KINDS, "S"], rows)


def control() -> str:
    """Return what each rounding leaves of facts that were never edited, in the edited and the unedited model."""
    models = ("edited model", "unedited model")
    rows = [
        [model, row["weights"], *itertools.chain(*(_scores(row[f"control, {of}"]) for of in models))]
        for model, row in _rounded()
    ]
    return _table(["model", "weights", *(f"{of}: {kind}" for of in models for kind in KINDS)], rows)


def ranks() -> str:
    """Return what is left where the change is cut to a rank."""
    rows = [
        [
            *(model, row["weights"].removeprefix("change of rank "), f"{row['size']:.0%}"),
            ", ".join(f"{error:.3f}" for error in row["relative_errors"]),
            *_scores(row["edits"]),
            *(_fraction(row[part]["score"]) for part in ("edits", "control, edited model")),
        ]
        for model, row in _survival_rows()
        if "size" in row
    ]
    head = ["model", "rank", "size", "relative error by layer", *KINDS, "S", "S of facts never edited"]
    return _table(head, rows)


def families() -> str:
    """Return a row for each family of models that is tested, with what the matrix of tests did to it."""
    described = runpy.run_path(str(ROOT / "tests" / "families" / "families.py"))["FAMILIES"]
    rows = []
    for name, said in json.loads((ROOT / "results" / "families.json").read_text())["families"].items():
        family = described[name]
        edits = [f"{said[length]['said after']} of {said[length]['edits']}" for length in ("single", "multi")]
        rows.append([family.models, f"`{family.kind}`", family.special, *edits])
    return _table(["models", "`model_type`", "what is special", "one-token targets", "longer targets"], rows)


OUTCOME = (
    "method", *(f"{kind} (just after)" for kind in (*KINDS, "S")), "first choice", "retention", "perplexity", "norms",
)  # fmt: skip
"""What `_outcome` returns of a method that was compared."""


def small() -> str:
    """Return a row for each method that was run on 200 facts that the small model knows, the best first."""
    rows = sorted(_compared("compare-cf-llama-9m-200.json"), key=lambda row: -row["final"]["S"])
    return _table([*OUTCOME, "steps"], [[*_outcome(row), _number(row["steps"]["median"], ".0f")] for row in rows])


def kinds() -> str:
    """Return a row for each kind of editor that was run on 200 facts on a real model."""
    rows = _compared("compare-smollm2-kinds.json")
    return _table([*OUTCOME, "generated"], [[*_outcome(row), _number(_said(row))] for row in rows])


def costs() -> str:
    """Return what an edit costs by each kind of editor: to make, to keep, and wherever the model answers."""
    head = [
        "method",
        "seconds an edit",
        "KiB an edit in the checkpoint",
        "KiB an edit beside the model",
        "an answer takes",
    ]
    path = ROOT / "results" / "benchmark-inference-cpu.json"
    rows = []
    for run in json.loads(path.read_text())["runs"]:
        sizes = (run[f"{where}_per_edit"] / 1024 for where in ("checkpoint_bytes", "bytes_beside"))
        seconds = f"{run['editing_seconds_per_edit']:.3f}"
        rows.append([run["method"], seconds, *(f"{size:,.1f}" for size in sizes), f"{run['ratio']:.2f} times as long"])
    return _table(head, rows)


def _said(row: dict[str, Any]) -> float | None:
    return (row["generated"] or {}).get("efficacy")


def _compared(name: str) -> list[dict[str, Any]]:
    return [row for row in json.loads((ROOT / "results" / name).read_text())["rows"] if row["status"] == "done"]


def _outcome(row: dict[str, Any]) -> list[str]:
    """Return the cells that all comparisons have; what was not scored is a dash."""
    scores = [f"{_number(row['final'][kind])} ({_number(row['just_after'][kind])})" for kind in (*KINDS, "S")]
    kept = ", ".join(_number(part, ".2f") for part in row["retention"].values())
    before, final = (_number(row["perplexity"][when], ".0f") for when in ("before", "final"))
    growth = f"{row['largest_norm_growth']:.2f}"
    return [row["name"], *scores, _number(row["accuracy"]["efficacy"]), kept, f"{before} > {final}", growth]


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def rewritten(page: str) -> str:
    """Return a page with the present tables in the place of those it has."""
    for table in (headlines, methods, performance, survival, control, ranks, families, small, kinds, costs):
        begin, end = markers(table.__name__)
        page = re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{table()}\n{end}", page, flags=re.DOTALL)  # noqa: B023
    return page


def markers(name: str) -> tuple[str, str]:
    """Return the comments between which a table stands."""
    return f"<!-- {name}: written by docs/tables.py -->", f"<!-- end of {name} -->"


def _survival_rows() -> Iterator[tuple[str, dict[str, Any]]]:
    for run in json.loads((ROOT / "results" / "benchmark-survival-cpu.json").read_text())["runs"]:
        for row in run["rows"]:
            yield run["model"], row


def _rounded() -> Iterator[tuple[str, dict[str, Any]]]:
    return (found for found in _survival_rows() if "size" not in found[1])


def _scores(summary: dict[str, Any]) -> list[str]:
    return [f"{_fraction(summary[kind]['success'])} ({_fraction(summary[kind]['accuracy'])})" for kind in KINDS]


def _fraction(value: float) -> str:
    return f"{value:.3f}"


USUAL = ("NormBall", "NegativeLogLikelihood", "EssenceKL", "TargetNorm")
"""What stage one of a method is made of, beside its stop rules, if nothing is said of it."""


def _method(path: Path) -> list[str]:
    text = path.read_text()
    config = yaml.safe_load(text)
    paper = re.search(r"arXiv (\d{4}\.\d{5})", text).group(1)
    one, two = config["stage_one"], config["stage_two"]
    return [
        f"[{config['model']['method']}](../configs/method/{path.name})",
        f"[{paper}](https://arxiv.org/abs/{paper})",
        _part(one) if "class_path" in one else _optimization(one),
        _other(two) if "class_path" in two else _solve(two),
    ]


def _other(two: dict[str, Any]) -> str:
    """Name a stage two that solves for nothing, and its parts."""
    own = [value for value in two["init_args"].values() if isinstance(value, dict)]
    return f"`{two['class_path']}`: " + ", ".join(map(_part, own)) if own else _part(two)


def _solve(two: dict[str, Any]) -> str:
    parts = two["solver"]["init_args"].copy()
    terms = [_part(term) for term in parts.pop("preservation")]
    named = {name: value for name, value in parts.items() if value is not None}
    terms += [f"`{name}({_arguments(value) if isinstance(value, dict) else value})`" for name, value in named.items()]
    terms += [_part(two[name]) for name in ("transform", "readout") if name in two]
    terms += [f"`{two['keys']['class_path']}`"] if "keys" in two else []
    terms += [f"`{two['placement']['class_path']}`"] if "placement" in two else []
    terms += [f"`key_filter({_arguments(two['key_filter'])})`"] if "key_filter" in two else []
    terms += [f"`{name}={two[name]}`" for name in ("spread", "compensate", "rest_weight") if name in two]
    terms += [f"`repeat({_arguments(two['repeat'])})`"] if "repeat" in two else []
    return f"`{two['solver']['class_path']}`: " + ", ".join(terms)


def _optimization(one: dict[str, Any]) -> str:
    names = [part["class_path"] for part in (one["space"], *one["objectives"])]
    own = [f"`{name}`" for name in names if name not in USUAL]
    own += [_part(one[name]) for name in ("transform", "expansion") if name in one]
    own += [f"`{name}={one[name]}`" for name in ("beside",) if name in one]
    return "; ".join([", ".join(map(_part, one["stopping"])), *own])


def _part(config: dict[str, Any]) -> str:
    return f"`{_call(config)}`"


def _call(config: dict[str, Any]) -> str:
    return f"{config['class_path']}({_arguments(config.get('init_args', {}))})"


def _arguments(values: dict[str, Any]) -> str:
    shown = {name: _call(value) if isinstance(value, dict) else value for name, value in values.items()}
    return ", ".join(f"{name}={value}" for name, value in shown.items())


def _table(head: list[str], rows: list[list[str]]) -> str:
    def lines() -> Iterator[str]:
        for cells in (head, ["---"] * len(head), *rows):
            yield f"| {' | '.join(cells)} |"

    return "\n".join(lines())


if __name__ == "__main__":
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        file.write_text(rewritten(file.read_text()))
