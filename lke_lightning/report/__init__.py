"""One page that shows what runs did: figures, tables and everything needed to do them again."""

from lke_lightning.report.command import report

__all__ = ["report"]
