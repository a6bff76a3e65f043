"""Sources of edits."""

from lke_lightning.data.formats import CounterFact, DemoWorld, ZsRE
from lke_lightning.data.knowedit import KnowEdit, WikiBio
from lke_lightning.data.long_form import AKEW, EditEverything, UnKE
from lke_lightning.data.mquake import MQuAKE
from lke_lightning.data.own_facts import JsonLines, as_fact, own_request
from lke_lightning.data.questions import QAEdit, WikiBigEdit
from lke_lightning.data.records import RecordFile
from lke_lightning.data.stream import EditStream, RequestList
from lke_lightning.data.time_steps import TimeSteps

__all__ = [
    "AKEW",
    "CounterFact",
    "DemoWorld",
    "EditEverything",
    "EditStream",
    "JsonLines",
    "KnowEdit",
    "MQuAKE",
    "QAEdit",
    "RecordFile",
    "RequestList",
    "TimeSteps",
    "UnKE",
    "WikiBigEdit",
    "WikiBio",
    "ZsRE",
    "as_fact",
    "own_request",
]
