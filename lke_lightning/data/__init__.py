"""Where edits come from."""

from lke_lightning.data.formats import CounterFact, DemoWorld, JsonLines, ZsRE
from lke_lightning.data.stream import EditStream, RequestList

__all__ = ["CounterFact", "DemoWorld", "EditStream", "JsonLines", "RequestList", "ZsRE"]
