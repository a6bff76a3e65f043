"""Writes the tables of the README from configs/method and results: `python docs/tables.py`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]


def methods() -> str:
    """Return a row for each method file."""
    rows = [_method(path) for path in sorted((ROOT / "configs" / "method").glob("*.yaml"))]
    return _table(["method", "paper", "stage one stops at", "stage two solves"], rows)


def performance() -> str:
    """Return a row for each run of each benchmark; half precision on a CPU and small solves stay in the files."""
    rows = []
    for path in sorted((ROOT / "results").glob("benchmark-*.json")):
        result = json.loads(path.read_text())
        describe = MEASURED.get(result["benchmark"])  # what is no matter of speed stands elsewhere
        shown = [run for run in result["runs"] if run.get("dtype") != "bfloat16" or "cpu" not in path.name]
        for run in [run for run in shown if run.get("d_key", 6400) >= 6400] if describe else ():
            what, ours, theirs = describe(run)
            rows.append([what, result["machine"], ours, theirs, f"**{run['ratio']}**", f"[file](results/{path.name})"])
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


def rewritten(readme: str) -> str:
    """Return the README with the present tables."""
    for table in (methods, performance):
        begin, end = markers(table.__name__)
        readme = re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{table()}\n{end}", readme, flags=re.DOTALL)  # noqa: B023
    return readme


def markers(name: str) -> tuple[str, str]:
    """Return the comments between which a table stands."""
    return f"<!-- {name}: written by docs/tables.py -->", f"<!-- end of {name} -->"


def _method(path: Path) -> list[str]:
    text = path.read_text()
    config = yaml.safe_load(text)
    paper = re.search(r"arXiv (\d{4}\.\d{5})", text).group(1)
    one, two = config["stage_one"], config["stage_two"]
    parts = two["solver"]["init_args"].copy()
    terms = [_part(term) for term in parts.pop("preservation")]
    named = {name: value for name, value in parts.items() if value is not None}
    terms += [f"`{name}({_arguments(value) if isinstance(value, dict) else value})`" for name, value in named.items()]
    terms += [_part(two[name]) for name in ("transform", "readout") if name in two]
    terms += [f"`{two['keys']['class_path']}`"] * (two["keys"]["class_path"] != "ContextMean")
    terms += [f"`{name}={two[name]}`" for name in ("spread",) if name in two]
    return [
        f"[{config['model']['method']}](configs/method/{path.name})",
        f"[{paper}](https://arxiv.org/abs/{paper})",
        ", ".join(map(_part, one["stopping"])),
        f"`{two['solver']['class_path']}`: " + ", ".join(terms),
    ]


def _part(config: dict[str, Any]) -> str:
    return f"`{config['class_path']}({_arguments(config.get('init_args', {}))})`"


def _arguments(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _table(head: list[str], rows: list[list[str]]) -> str:
    def lines() -> Iterator[str]:
        for cells in (head, ["---"] * len(head), *rows):
            yield f"| {' | '.join(cells)} |"

    return "\n".join(lines())


if __name__ == "__main__":
    file = ROOT / "README.md"
    file.write_text(rewritten(file.read_text()))
