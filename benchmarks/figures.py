"""Puts what the paper's figures show of runs that `compare` made into one file.

`python -m benchmarks.figures FOLDER`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import harness
from lke_lightning.ledger import Ledger
from lke_lightning.results import versions, write


def row(run: Path) -> dict[str, Any]:
    """Read one run: scores over edits, perplexity, norms, how sure the model is of its edits, who fills the stream."""
    card, drift = (json.loads((run / name).read_text()) for name in ("scorecard.json", "drift.json"))
    entries = list(Ledger(run).read())
    growth = [max(entry["norm_growth"].values()) for entry in entries if entry["event"] == "batch"]
    evaluations = [entry for entry in entries if entry["event"] == "evaluation"]
    layers = list(card["weight_norms"])
    shares = {
        moment: dict(zip(found["submodules"], found["share"], strict=True))
        for moment, found in drift["contributions"].items()
    }
    return {
        "edits": card["edits"],
        "steps": card["steps"],
        "final": {kind: card["final"][kind]["success"] for kind in ("efficacy", "paraphrase", "neighborhood")},
        "S": card["final"]["score"],
        "S_interval": card["final"]["intervals"]["score"],
        "S_just_after": card["just_after"]["score"],
        "perplexity": card["perplexity"],
        "norm_growth_by_batch": growth,
        "evaluations": [{name: e[name] for name in e if name not in ("event", "time", "batch")} for e in evaluations],
        "probability_per_token": {
            name: part["per_token"]["mean"] for name, part in card["probability"].items() if isinstance(part, dict)
        },
        "share_of_edited_mlps": {
            moment: sum(found[f"mlp {layer}"] for layer in layers) for moment, found in shares.items()
        },
        "key_drift": drift["snapshots"][-1]["key_drift"],
        "seconds": card["seconds"],
    }


def main(folder: str) -> None:
    """Gather all finished runs of a folder into results/NAME.json, NAME being the folder's."""
    runs = sorted(path.parent for path in Path(folder).glob("*/drift.json") if (path.parent / "done.json").is_file())
    result = {
        "command": f"python -m benchmarks.figures {folder}",
        "runs": {run.name: row(run) for run in runs},
        "machine": harness.machine(),
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
    }
    write(harness.RESULTS / f"{Path(folder).name}.json", json.dumps(result, indent=1) + "\n")
    print("| method | S | just after | perplexity | norm growth | edited | known | share of edited MLPs |")
    for name, r in result["runs"].items():
        low, high = r["S_interval"]
        known = r["probability_per_token"].get("known_originals") or float("nan")
        share = r["share_of_edited_mlps"]
        print(
            f"| {name} | {r['S']:.3f} ({low:.3f} to {high:.3f}) | {r['S_just_after']:.3f} | "
            f"{r['perplexity']['before']:.4g} > {r['perplexity']['final']:.4g} | {r['norm_growth_by_batch'][-1]:.2f} | "
            f"{r['probability_per_token']['edited_just_after']:.3f} | {known:.3f} | "
            f"{share['before']:.3f} > {share['after']:.3f} |"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
