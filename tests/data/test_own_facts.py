"""Your own facts: what is read exactly, what a dict takes, and what is odd but right."""

import bz2
import gzip
import json
import lzma
import re
import unicodedata

import pytest

from lke_lightning.data import JsonLines, own_request
from lke_lightning.edits import EditError, EditRequest, Probe

GOOD = {"prompt": "Ana lives in", "target": "Oslo", "subject": "Ana"}


def read(path, *records):
    path.write_text("\n".join(map(json.dumps, records)))
    stream = JsonLines(str(path))
    stream.setup("fit")
    return stream


def test_ids_are_read_exactly_whatever_the_others_are(tmp_path):
    given = [10**30, "x", 7, None, "007", 2**63, "1e+30"]
    found = read(tmp_path / "facts.jsonl", *(GOOD | {"id": one} for one in given)).requests
    assert [request.id for request in found] == [str(10**30), "x", "7", "3", "007", str(2**63), "1e+30"]


def test_fields_may_have_other_forms_in_other_records(tmp_path):
    asked = {"prompt": "Bo lives in", "answer": "Rome", "aliases": ["Roma"]}
    first, second, third = read(
        tmp_path / "facts.jsonl",
        GOOD | {"original": "Bonn", "neighborhood": ["Bo lives in"]},
        GOOD | {"neighborhood": [asked], "paraphrases": None, "weight": 2},
        GOOD,
    ).requests
    assert first.neighborhood == (Probe("Bo lives in", "Bonn"),)
    assert second.neighborhood == (Probe("Bo lives in", "Rome", ("Roma",)),)
    assert (second.paraphrases, second.weight, third.neighborhood) == ((), 2.0, ())


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("form", ["{}\n\n{}\n", "[{},\n {}]", "\ufeff{}\n{}", " \n[{},{}]"])
def test_files_of_every_form(tmp_path, pack, form):
    line = json.dumps(GOOD, ensure_ascii=False)
    (tmp_path / "facts[1]*.jsonl").write_bytes(pack(form.replace("{}", line).encode()))
    stream = JsonLines(str(tmp_path / "facts[1]*.jsonl"))
    stream.setup("fit")
    assert [request.target for request in stream.requests] == ["Oslo", "Oslo"]


def test_a_limit_stops_the_reading(tmp_path):
    (tmp_path / "facts.jsonl").write_text(json.dumps(GOOD) + "\nnot read")
    stream = JsonLines(str(tmp_path / "facts.jsonl"), limit=1)
    stream.setup("fit")
    assert len(stream.requests) == 1


def test_what_is_odd_is_taken_and_counted(tmp_path):
    stream = read(tmp_path / "a.jsonl", GOOD | {"target": " Oslo", "prompt": "Ana lives in ", "original": "Oslo"}, GOOD)
    assert [(request.prompt, request.target) for request in stream.requests] == [("{} lives in", "Oslo")] * 2
    assert len(stream.irregular) == 3
    assert set(stream.irregular.values()) == {1}


def test_facts_stated_anew_are_said(tmp_path, caplog):
    with caplog.at_level("INFO"):
        read(tmp_path / "a.jsonl", GOOD, GOOD | {"target": "Bonn"}, GOOD | {"prompt": "Ana likes"})
    assert "1 edits restate a fact" in caplog.text


def test_a_dict_takes_what_a_line_takes():
    probe = Probe("Bo lives in", "Rome")
    fields = {
        "relation": 17, "weight": 3, "paraphrases": ("Ana's home is",), "aliases": ["Kristiania"],
        "neighborhood": [probe, {"prompt": "Cy lives in", "answer": "Bonn"}, "Di lives in"], "original": "Kiev",
    }  # fmt: skip
    assert own_request(GOOD | fields, 4) == EditRequest(
        id="4", prompt="{} lives in", target="Oslo", subject="Ana", original="Kiev", relation="17", weight=3.0,
        paraphrases=("Ana's home is",), aliases=("Kristiania",),
        neighborhood=(probe, Probe("Cy lives in", "Bonn"), Probe("Di lives in", "Kiev")),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"paraphrases": "a text"}, "paraphrases is a text, not a list"),
        ({"paraphrases": ["a", ""]}, "paraphrases[1] is empty"),
        ({"neighborhood": ({"prompt": "a"},)}, "neighborhood[0] is an object, not a Probe"),
        ({"weight": float("nan")}, "the weight nan"),
        ({"weight": "2"}, "the weight '2'"),
        ({"target": None}, "the target is null"),
        ({"id": 3}, "the id 3 is a number"),
        ({"subject": " "}, "the subject is empty"),
    ],
)
def test_a_request_checks_its_fields(fields, message):
    with pytest.raises(EditError, match=re.escape(message)):
        EditRequest(**({"id": "0", "prompt": "{} is", "subject": "Ana", "target": "x"} | fields))


def test_lists_become_tuples():
    request = EditRequest(id="0", prompt="It is", target="x", paraphrases=["a"], neighborhood=[Probe("b", "c", ["d"])])
    assert hash(request) == hash(EditRequest("0", "It is", "x", paraphrases=("a",), neighborhood=request.neighborhood))


def test_a_question_without_an_answer_is_refused():
    with pytest.raises(EditError, match="the answer to 'Bo is' is empty"):
        Probe("Bo is", " ")


def test_a_subject_in_another_normalisation_form_is_explained():
    with pytest.raises(EditError, match="look alike, but are other characters"):
        EditRequest.about("Zoë is", unicodedata.normalize("NFD", "Zoë"), id="0", target="x")
