"""Say before a run what memory, disk and time it will take: `python -m lke_lightning plan`, then arguments of `fit`."""

from lke_lightning.commands.plan.command import Plan, plan, prepare

__all__ = ["Plan", "plan", "prepare"]
