"""The figures of a report, in the order of the page."""

from lke_lightning.report.figures import change, effort, scores
from lke_lightning.report.figures.exhibit import Exhibit

EXHIBITS: tuple[Exhibit, ...] = (*scores.EXHIBITS, *change.EXHIBITS, *effort.EXHIBITS)

__all__ = ["EXHIBITS", "Exhibit"]
