"""What `plan` says of a run beside what the run then takes: time, peak memory, disk.

`python -m benchmarks.plan` plans the demo and runs it, once with the key statistics computed and once with them cached;
arguments of `fit` go to all of them.
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

STAGES = ("stage one", "stage two", "evaluation")


def compare(arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    """Plan a run, then make it; `planned / measured` of each figure, seconds and MiB."""
    figures, load = folder / "plan.json", os.getloadavg()[0]
    planning = process(["plan", *arguments, "--json", str(figures)])
    plan = json.loads(figures.read_text())
    made = process(["fit", *arguments, "--trainer.default_root_dir", str(folder / "run")])
    seconds = json.loads((folder / "run" / "scorecard.json").read_text())["seconds"]
    spaces = {space["what"].split(":")[0]: space for space in plan["spaces"]}
    added = next(space["host"] for what, space in spaces.items() if what.endswith(" add"))
    durations = {duration["what"]: duration["measured"] * duration["times"] for duration in plan["durations"]}
    written = sum(file.stat().st_size for file in (folder / "run" / "checkpoints").glob("batch-*.ckpt"))
    kept = int(next(s["what"] for s in plan["spaces"] if s["what"].startswith("checkpoints")).split()[1].strip(","))
    pairs = {
        **{f"{name}, s": (durations[name], seconds[name.replace(" ", "_")]) for name in STAGES},
        "whole process, s": (plan["seconds"], made["seconds"]),
        "peak memory, MiB": ((plan["peak"]["host"] + added) / 2**20, made["peak_mib"]),
        "checkpoints that stay, MiB": (spaces["checkpoints"]["disk"] / 2**20 * kept / (kept + 1), written / 2**20),
    }
    return {
        "load_average_before": round(load, 1),
        "planning_seconds": round(planning["seconds"], 1),
        "notes": plan["notes"],
        **{
            what: {"planned": round(planned, 1), "measured": round(found, 1), "ratio": round(planned / found, 2)}
            for what, (planned, found) in pairs.items()
        },
    }


def process(arguments: Sequence[str]) -> dict[str, float]:
    """Run a command by itself; return its seconds and peak memory, which on Linux are in KiB."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "lke_lightning", *arguments]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(said.decode()[-2000:])
    return {"seconds": time.perf_counter() - start, "peak_mib": usage.ru_maxrss / 1024}


def main(arguments: Sequence[str]) -> None:
    """Compare both plans with their runs and keep the result."""
    with tempfile.TemporaryDirectory() as temporary:
        given = [*arguments, "--stage_two.statistics.cache_dir", str(Path(temporary) / "cache")]
        found = {}
        for name in ("statistics computed", "statistics cached"):
            folder = Path(temporary) / name.replace(" ", "-")
            folder.mkdir()
            found[name] = compare(given, folder)
    harness.report("plan", {"threads": os.environ.get("OMP_NUM_THREADS", "default"), "runs": found})


if __name__ == "__main__":
    main(sys.argv[1:])
