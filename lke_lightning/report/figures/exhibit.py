"""What a figure is to a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lke_lightning.report.canvas import Draw
from lke_lightning.report.reading import RunRecord


@dataclass(frozen=True)
class Exhibit:
    """A figure with what is said beside it."""

    slug: str
    """Its name as a file and as an address in the page."""
    section: str
    """The heading under which it stands."""
    title: str
    caption: str
    """How to read it."""
    prepare: Callable[[Sequence[RunRecord]], Draw | None]
    """Takes what it needs from some runs; `None` if they do not have it."""
    is_wide: bool = False
    """Whether it takes the page's whole width."""
    is_wide_of_several: bool = False
    """Whether it does so when there are several runs."""
