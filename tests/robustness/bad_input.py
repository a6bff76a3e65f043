"""What a bad input is, and what the command line must do with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Place = Callable[[Path, Path], Sequence[str]]
"""From an empty folder and the small world's folder, in which `run` is a finished run, to the arguments of a command
line; makes what they name."""


@dataclass(frozen=True)
class Bad:
    """One bad input.

    Args:
        name: says what is bad; the test's id.
        arguments: the command line, or what makes it from (folder, world); see `Place`. `fit` and
            `validate` without a model, data and statistics take those of the small world: give only what is bad.
        says: a regular expression that the message must match; it should hold the bad value and what to do.
        loads_model: whether only the loaded model can tell; otherwise loading one fails the test.
    """

    name: str
    arguments: Sequence[str] | Place
    says: str
    loads_model: bool = False
