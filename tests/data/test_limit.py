"""A limit that cuts a stream is said; what lies beyond it need not be readable."""

import json
import logging

import pytest

from lke_lightning.data import DemoWorld, JsonLines


@pytest.fixture
def facts(tmp_path):
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i} is", "target": "x"}) + "\n" for i in range(5)))
    return path


def said(stream, caplog):
    with caplog.at_level(logging.INFO, "lightning.pytorch"):
        stream.setup("fit")
    return [record.message for record in caplog.records if "data.limit" in record.message]


@pytest.mark.parametrize(
    ("limit", "seed", "message"),
    [
        (3, None, ["3 of all the edits of JsonLines: data.limit excludes the rest"]),
        (3, 0, ["3 of 5 edits of JsonLines: data.limit excludes the rest"]),
        (5, None, []),
        (5, 0, []),
        (None, None, []),
        (None, 0, []),
    ],
)
def test_it_is_said_where_it_cuts(facts, caplog, limit, seed, message):
    stream = JsonLines(str(facts), limit=limit, shuffle_seed=seed)
    assert said(stream, caplog) == message
    assert len(stream.requests) == (limit or 5)


def test_what_is_beyond_it_may_be_wrong(facts, caplog):
    lines = facts.read_text().splitlines()
    facts.write_text("\n".join([*lines[:3], '{"prompt": "no target"}', lines[4]]))
    stream = JsonLines(str(facts), limit=3)
    assert said(stream, caplog)
    assert len(stream.requests) == 3


def test_the_demo_run_is_two_hundred_facts_in_batches_of_twenty(caplog):
    stream = DemoWorld()
    assert said(stream, caplog)
    assert (len(stream.requests), len(stream.batches)) == (200, 10)
