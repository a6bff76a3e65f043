"""What `plan` says of a run beside what the run then takes: time of its stages, peak memory, disk.

`python -m benchmarks.plan --model .../cf-llama-9m --data counterfact.json` runs, one after the other, the demo and 200
edits of CounterFact, with the key statistics computed and with them cached.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness
from lke_lightning.results import versions, write

EVALUATIONS = ("evaluation before", "evaluation just after", "evaluation final")
START = ("start and load", "key statistics", "solvers, first inverse")
"""What happens before the scorecard's own clock starts."""


def run(name: str, arguments: Sequence[str], cache: Path, folder: Path, hidden: Sequence[str] = ()) -> dict[str, Any]:
    """Plan a run, then make it; `hidden` are folders of which the record keeps the last part only."""
    arguments = [*arguments, "--stage_two.statistics.cache_dir", str(cache)]
    figures = folder / f"{name}.json"
    load = os.getloadavg()[0]
    planned = _process(["plan", *arguments, "--json", str(figures)])
    plan = json.loads(figures.read_text())
    before = _size(cache)
    made = _process(["fit", *arguments, "--trainer.default_root_dir", str(folder / name)])
    card = json.loads((folder / name / "scorecard.json").read_text())
    stages = {stage["name"]: stage for stage in plan["stages"]}
    seconds = card["seconds"]

    def planned_seconds(*names: str) -> float:
        return sum(stages[name]["seconds"] for name in names)

    pairs = {
        "start, statistics, first inverse, s": (planned_seconds(*START), made["seconds"] - seconds["total"]),
        "stage one, s": (planned_seconds("stage one"), seconds["stage_one"]),
        "stage two, s": (planned_seconds("stage two"), seconds["stage_two"]),
        "evaluation, s": (planned_seconds(*EVALUATIONS), seconds["evaluation"]),
        "total, s": (plan["total"]["seconds"], made["seconds"]),
        "peak memory, MiB": (plan["total"]["host"] / 2**20, made["peak_mib"]),
        "statistics on disk, MiB": (stages["key statistics"]["disk"] / 2**20, (_size(cache) - before) / 2**20),
        "checkpoints on disk, MiB": (stages["checkpoints"]["disk"] / 2**20, _checkpoints(folder / name) / 2**20),
    }
    command = " ".join(arguments)
    for place in hidden:
        command = command.replace(place, ".../" + Path(place).name)
    return {
        "run": name,
        "arguments": command.replace(str(cache), ".../cache"),
        "load_average_before": round(load, 1),
        "planning_seconds": round(planned["seconds"], 1),
        "assumed_steps": next(words for words in plan["assumptions"] if words.startswith("Steps"))
        .split(":")[1]
        .split()[0],
        "measured_steps": card.get("steps"),
        "compared": {
            what: {
                "planned": round(expected, 1),
                "measured": round(found, 1),
                "ratio": round(expected / found, 2) if found else None,
            }
            for what, (expected, found) in pairs.items()
        },
    }


def _process(arguments: Sequence[str]) -> dict[str, float]:
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "lke_lightning", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(said.decode()[-2000:])
    return {"seconds": time.perf_counter() - start, "peak_mib": usage.ru_maxrss / 1024}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _checkpoints(folder: Path) -> int:
    """Sum the checkpoints; `last.ckpt` is one of the others, by a link or as a copy, where there are others."""
    files = list((folder / "checkpoints").glob("*.ckpt"))
    others = [file for file in files if file.name != "last.ckpt"]
    return sum(file.stat().st_size for file in others or files)


def main(model: str, data: str, limit: int = 200) -> None:
    """Compare plans with runs.

    Args:
        model: folder of a model that knows the facts.
        data: records in the form of CounterFact.
        limit: how many are edited, in batches of 100.
    """
    counterfact = [
        "-c", "configs/method/encore.yaml", "-c", f"tests/conf/{Path(model).name}/encore.yaml",
        "--model.pretrained", model, "--data", "CounterFact", "--data.path", data,
        "--data.limit", str(limit), "--data.batch_size", "100",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        runs = [
            run("demo, nothing cached", [], folder / "demo-cache", folder),
            run("CounterFact, nothing cached", counterfact, folder / "cache", folder, [model, data]),
            run("CounterFact, statistics cached", counterfact, folder / "cache", folder, [model, data]),
        ]
    found = {
        "command": f"python -m benchmarks.plan --model .../{Path(model).name} --data .../{Path(data).name}",
        "edits": limit,
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "cores": os.cpu_count(),
        "runs": runs,
        "machine": harness.machine(),
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
    }
    where = harness.device().type.replace("cuda", "gpu")
    write(harness.RESULTS / f"plan-{where}.json", json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
