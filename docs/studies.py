"""Writes the pages of the studies from their result files: `python docs/studies.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from lke_lightning import studies
from lke_lightning.studies.page import answer, page, picture

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "studies"

INTRODUCTION = """\
# Studies

What publications say of editing, measured again with one command each ([how](../tuning.md#studies)). Each page has the
command, the figures and, for every claim, whether it holds here, by a rule that it states.
"""


def results() -> dict[str, dict[str, Any]]:
    """Return the result files by name."""
    paths = sorted((ROOT / "results").glob("study-*.json"))
    return {path.stem.removeprefix("study-"): json.loads(path.read_text()) for path in paths}


def of(name: str) -> studies.Study:
    """Make the study of a file of configs/study."""
    return getattr(studies, yaml.safe_load((ROOT / "configs" / "study" / f"{name}.yaml").read_text())["study"])()


def written() -> dict[str, bytes]:
    """Return the files of docs/studies by name."""
    found, told = {}, [INTRODUCTION]
    for name, result in results().items():
        study = of(name)
        found[f"{name}.md"] = page(study, result, f"{name}.svg", f"../../results/study-{name}.json").encode()
        found[f"{name}.svg"] = picture(study, result)
        told.append(f"**[{study.title}]({name}.md)** {answer(study, result)}\n")
    return {**found, "README.md": "\n".join(told).encode()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, content in written().items():
        (FOLDER / name).write_bytes(content)
