"""What a study is: runs, what each tells, a table, a figure, and the claims of a publication held against them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from matplotlib.axes import Axes

Verdict = Literal["holds", "partly", "does not hold", "not measured"]

Facts = dict[str, Any]
"""What a run tells a study: plain values by name."""


@dataclass(frozen=True)
class Claim:
    """A claim of the publication, and what was found here."""

    says: str
    verdict: Verdict
    found: str
    """The figures behind the verdict, and its rule."""


class Study(ABC):
    """Measurements of a publication, made again on another model.

    A subclass is named by `study` in a file of `configs/study`, whose rows are its runs.
    """

    title: ClassVar[str]
    source: ClassVar[str]
    """The publication, with its number on arXiv."""
    asks: ClassVar[str]
    """What is measured and why, in a few sentences."""

    @abstractmethod
    def facts(self, card: Mapping[str, Any]) -> Facts:
        """Take from what a run has found (`scorecard.json` or `singly.json`) what the study uses."""

    @abstractmethod
    def table(self, rows: Mapping[str, Facts]) -> tuple[list[str], list[list[str]]]:
        """Return header and lines; `rows` are those that are done, by name."""

    @abstractmethod
    def claims(self, rows: Mapping[str, Facts]) -> list[Claim]:
        """Hold the publication's claims against the rows that are done."""

    @abstractmethod
    def draw(self, rows: Mapping[str, Facts], axes: Axes) -> None:
        """Draw the one figure."""


def verdict(holds: bool, partly: bool = False, is_measured: bool = True) -> Verdict:
    """Name the first of these that is so."""
    return "not measured" if not is_measured else "holds" if holds else "partly" if partly else "does not hold"


def figure(value: float | None, form: str = ".3f") -> str:
    """Write a number that may be missing."""
    return "-" if value is None else format(value, form)


def listed(values: Sequence[str]) -> str:
    """Join with commas; "none" if there is nothing."""
    return ", ".join(values) or "none"
