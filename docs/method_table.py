"""Writes the method table of the README from the files in configs/method: `python docs/method_table.py`."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- methods: written by docs/method_table.py -->", "<!-- end of methods -->"


def part(config: dict | None) -> str:
    """Name a part of a configuration with its numbers."""
    if not config:
        return "-"
    numbers = ", ".join(f"{name}={value}" for name, value in config.get("init_args", {}).items())
    return f"`{config['class_path']}{f'({numbers})' if numbers else ''}`"


def row(path: Path) -> str:
    """Describe one method file."""
    text = path.read_text()
    config = yaml.safe_load(text)
    paper = re.search(r"arXiv (\d{4}\.\d{5})", text).group(1)
    one, solver = config["stage_one"], config["stage_two"]["solver"]
    parts = solver["init_args"].copy()
    terms = [part(term) for term in parts.pop("preservation")]
    terms += [f"`{name}`" for name, value in parts.items() if value is not None]
    cells = [
        f"[{config['model']['method']}](configs/method/{path.name})",
        f"[{paper}](https://arxiv.org/abs/{paper})",
        ", ".join(map(part, one["stopping"])),
        f"`{solver['class_path']}`: " + ", ".join(terms),
    ]
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """Return the table, in Markdown."""
    rows = [row(path) for path in sorted((ROOT / "configs" / "method").glob("*.yaml"))]
    return "\n".join(["| method | paper | stage one stops at | stage two solves |", "|---|---|---|---|", *rows])


def rewritten(readme: str) -> str:
    """Return the README with the present table."""
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{table()}\n{END}", readme, flags=re.DOTALL)


if __name__ == "__main__":
    file = ROOT / "README.md"
    file.write_text(rewritten(file.read_text()))
