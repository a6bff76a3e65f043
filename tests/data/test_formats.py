"""Reading records, in the published form and in your own, and saying which one is wrong."""

import json
from pathlib import Path

import pytest

from lke_lightning.data import CounterFact, DemoWorld, JsonLines, ZsRE
from lke_lightning.edits import EditBatch, EditError, EditRequest, Probe

SHARED = Path(__file__).parents[3] / "shared" / "data"
GOOD = {"prompt": "The mother tongue of Ana is", "target": "French", "subject": "Ana"}


def requests(stream):
    stream.setup("fit")
    return stream.requests


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(path)


def test_own_records(tmp_path):
    full = GOOD | {
        "original": "Dutch",
        "paraphrases": ["Ana speaks"],
        "neighborhood": ["Bo speaks", {"prompt": "Cy speaks", "answer": "Thai"}],
    }
    found = requests(JsonLines(write(tmp_path / "facts.jsonl", full, {"prompt": "It is", "target": " so "})))
    assert found[0] == EditRequest(
        id="0", prompt="The mother tongue of {} is", target="French", subject="Ana", original="Dutch",
        paraphrases=("Ana speaks",), neighborhood=(Probe("Bo speaks", "Dutch"), Probe("Cy speaks", "Thai")),
    )  # fmt: skip
    assert found[1] == EditRequest(id="1", prompt="It is", target="so")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"target": "x"}, "record 1: field 'prompt' is missing"),
        (GOOD | {"target": " "}, "record 1: field 'target' is empty"),
        (GOOD | {"subject": "Bo"}, "record 1: the subject 'Bo' is not in the prompt"),
        (GOOD | {"prompt": "Ana and Ana are"}, "record 1: the subject 'Ana' occurs 2 times"),
        (GOOD | {"prompt": "{} and {} are"}, "record 1: the prompt .* needs exactly one"),
        (GOOD | {"prompt": "{} is {a}"}, "record 1: the prompt .* has braces"),
        ({"prompt": "It is {}", "target": "x"}, "record 1: the prompt .* has braces but no subject"),
        (
            GOOD | {"neighborhood": ["Bo speaks"]},
            r"record 1: field 'neighborhood\[0\]' is a prompt that needs its answer",
        ),
        (GOOD | {"id": "0"}, "several records with the id '0'"),
    ],
)
def test_a_wrong_record_is_named(tmp_path, record, message):
    with pytest.raises(EditError, match=message):
        requests(JsonLines(write(tmp_path / "facts.jsonl", GOOD | {"id": "0"}, record)))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{not json"], "line 1"),
        ([GOOD, '{"prompt": "x", '], "line 2"),
        ([], "empty"),
    ],
)
def test_a_malformed_file_is_named_with_its_line(tmp_path, lines, message):
    with pytest.raises(EditError, match=message):
        requests(JsonLines(write(tmp_path / "facts.jsonl", *lines)))


def test_a_missing_file_is_named():
    with pytest.raises(EditError, match=r"no file 'nowhere\.jsonl'"):
        requests(JsonLines("nowhere.jsonl"))


def test_order_is_data_and_shuffling_is_seeded(tmp_path):
    path = write(tmp_path / "facts.jsonl", *(GOOD | {"id": str(i)} for i in range(20)))
    assert [r.id for r in requests(JsonLines(path, limit=5))] == ["0", "1", "2", "3", "4"]
    shuffled = [r.id for r in requests(JsonLines(path, shuffle_seed=1))]
    assert shuffled != sorted(shuffled, key=int)
    assert shuffled == [r.id for r in requests(JsonLines(path, shuffle_seed=1))]
    assert shuffled[:5] == [r.id for r in requests(JsonLines(path, shuffle_seed=1, limit=5))]


def test_impossible_sizes_are_refused():
    with pytest.raises(EditError, match="batch_size"):
        DemoWorld(batch_size=0)
    with pytest.raises(EditError, match="limit"):
        DemoWorld(limit=0)


def test_in_a_batch_the_later_of_two_edits_of_one_fact_wins():
    first = EditRequest(id="a", prompt="{} speaks", subject="Ana", target="French")
    later = EditRequest(id="b", prompt="{} speaks", subject="Ana", target="Thai")
    other = EditRequest(id="c", prompt="{} eats", subject="Ana", target="rice")
    batch = EditBatch.of([first, other, later])
    assert [r.id for r in batch.requests] == ["c", "b"]
    assert batch.superseded == (first,)


def test_demo_world_keeps_its_promise():
    found = requests(DemoWorld(limit=1800))
    assert len(found) >= 1500
    assert len({r.relation for r in found}) >= 12
    assert all(len(r.paraphrases) >= 2 and len(r.neighborhood) >= 5 for r in found)
    assert any(r.two_hop for r in found)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}")
def test_counterfact_as_published():
    found = requests(CounterFact(str(SHARED / "counterfact/multi_counterfact.json"), limit=2000))
    assert len(found) == 2000
    assert found[0].text == "The mother tongue of Danielle Darrieux is"
    assert (found[0].target, found[0].original, found[0].relation) == ("English", "French", "P103")
    assert all(len(r.paraphrases) == 2 and r.neighborhood for r in found)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}")
def test_zsre_as_published():
    found = requests(ZsRE(str(SHARED / "zsre/zsre_mend_eval.json")))
    assert len(found) == 15000
    assert found[1].text == "During which historic war was Pierre Jadart Dumerbion an officer?"
    assert found[1].target == "Seven Years' War"
    assert found[1].original is None
    assert found[1].neighborhood[0].prompt.endswith("iphone 5s screen?")


def test_neighbours_are_held_out_of_what_is_scored(tmp_path):
    """Of the prompts in the words of the edited one, as many as are asked for; the others are scored as before."""
    prompts = ["Bo speaks", "The mother tongue of Cy is", "The mother tongue of Di is", "The mother tongue of Ed is"]
    rewrite = {
        "prompt": "The mother tongue of {} is", "subject": "Ana", "relation_id": "P1",
        "target_new": {"str": "French"}, "target_true": {"str": "Dutch"},
    }  # fmt: skip
    record = {"case_id": 3, "requested_rewrite": rewrite, "paraphrase_prompts": [], "neighborhood_prompts": prompts}
    path = tmp_path / "records.json"
    path.write_text(json.dumps([record | {"attribute_prompts": [], "generation_prompts": []}]))
    [whole], [held] = (requests(CounterFact(str(path), hold_out=count)) for count in (0, 2))
    assert (len(whole.neighborhood), whole.neighbours) == (4, ())
    assert [probe.prompt for probe in held.neighbours] == prompts[1:3]
    assert [probe.prompt for probe in held.neighborhood] == [prompts[0], prompts[3]]
    assert held.upto_subject(prompts[1]) == "The mother tongue of Cy"
    streams = [CounterFact(str(path), hold_out=count) for count in (0, 2)]
    for stream in streams:
        stream.setup("fit")
    with pytest.raises(EditError, match="differs from the one"):
        streams[1].check_continues(streams[0].consumed(1))
    own = GOOD | {"neighbours": [{"prompt": "The mother tongue of Cy is", "answer": "Thai"}]}
    [request] = requests(JsonLines(write(tmp_path / "facts.jsonl", own)))
    assert request.neighbours == (Probe("The mother tongue of Cy is", "Thai"),)
