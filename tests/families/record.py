"""Write what every family did in the matrix of tests: `python -m tests.families.record`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from lke_lightning.results import versions, write
from tests.families.families import FAMILIES
from tests.families.test_editing import run

FILE = Path(__file__).parents[2] / "results" / "families.json"


def main() -> None:
    """Run families that are not in the file yet, and add each as it is done."""
    found = json.loads(FILE.read_text())["families"] if FILE.is_file() else {}
    for name, family in FAMILIES.items():
        if name in found:
            continue
        said = {}
        for length in ("single", "multi"):
            with tempfile.TemporaryDirectory() as folder:
                before, after = run(family, length, Path(folder))
            said[length] = {"edits": len(after), "said before": sum(before), "said after": sum(after)}
        found[name] = said
        command = "python -m tests.families.record"
        write(FILE, json.dumps({"command": command, "versions": versions(), "families": found}, indent=1) + "\n")
        print(name, said, flush=True)


if __name__ == "__main__":
    main()
