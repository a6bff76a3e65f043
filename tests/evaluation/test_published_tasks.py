"""The published validation sets as they are: how many questions, and where their labels point."""

from pathlib import Path

import pytest

from lke_lightning.evaluation.tasks import MMLU, MRPC, NLI, RTE, SST2, CoLA

SHARED = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}")


@pytest.mark.parametrize(
    ("kind", "name", "options", "items"),
    [
        (SST2, "glue/sst2.jsonl", {}, 846),
        (MRPC, "glue/mrpc.jsonl", {}, 248),
        (CoLA, "glue/cola.jsonl", {}, 634),
        (RTE, "glue/rte.jsonl", {}, 252),
        (NLI, "glue/nli.jsonl", {"reference_quirks": True}, 2479),
        (MMLU, "mmlu", {}, 14042),
    ],
)
def test_whole_sets(kind, name, options, items):
    examples, asked = kind(str(SHARED / name), **options).read()
    assert len(asked) == items
    assert all(len(shown) == 4 for shown in examples.values())
    assert len(examples) == (57 if kind is MMLU else 1)


def test_what_follows_is_true_in_rte():
    """Its record 91 confuses a number of people with a year, so nothing follows."""
    task = RTE(str(SHARED / "glue/rte.jsonl"))
    shown = task.read()[0][""][0]
    assert "has been living in exile since 10,000." in shown.question
    assert task.words[shown.label] == "False"
