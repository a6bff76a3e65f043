"""Reports of runs on one page: figures, tables and everything needed to reproduce them."""

from lke_lightning.report.command import report

__all__ = ["report"]
