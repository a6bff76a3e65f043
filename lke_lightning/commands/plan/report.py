"""What is printed of a plan, and what is written."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lke_lightning.commands.plan.estimate import Stage


def show(stages: list[Stage], whole: Stage, assumptions: list[str], warnings: list[str]) -> None:
    """Print a table, then what was assumed, then what will not fit."""
    console = Console()
    table = Table(title="What this run is expected to take")
    table.add_column("stage")
    table.add_column("time", justify="right")
    table.add_column("memory", justify="right")
    if whole.device:
        table.add_column("GPU memory", justify="right")
    table.add_column("disk", justify="right")
    for stage in [*stages, whole]:
        if stage is whole:
            table.add_section()
        memory = [size(stage.host), *([size(stage.device)] if whole.device else [])]
        table.add_row(stage.name, _time(stage), *memory, size(stage.disk) if stage.disk else "-")
    console.print(table)
    for assumption in assumptions:
        console.print("- " + escape(assumption), soft_wrap=True)
    for warning in warnings:
        console.print(f"[bold red]Warning:[/] {escape(warning)}", soft_wrap=True)


def as_json(stages: list[Stage], whole: Stage, assumptions: list[str]) -> dict[str, Any]:
    """Return the figures, seconds and bytes, with what was assumed."""
    rounded = [{k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(s).items()} for s in (*stages, whole)]
    return {"stages": rounded[:-1], "total": rounded[-1], "assumptions": assumptions}


def size(count: float) -> str:
    """Write bytes with a unit."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if count >= factor:
            return f"{count / factor:.{1 if unit != 'MiB' else 0}f} {unit}"
    return f"{count / 1024:.0f} KiB"


def duration(seconds: float) -> str:
    """Write seconds with a unit."""
    if seconds < 120:
        return f"{seconds:.{1 if seconds < 10 else 0}f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _time(stage: Stage) -> str:
    if not stage.seconds_all:
        return "-"
    if stage.seconds_few == stage.seconds_all:
        return duration(stage.seconds)
    return f"{duration(stage.seconds)} ({duration(stage.seconds_few)} to {duration(stage.seconds_all)})"
