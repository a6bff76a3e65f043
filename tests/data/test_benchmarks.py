"""Published formats in records of our own words: what each field becomes, and what is irregular."""

import json

import pytest

from lke_lightning.data import (
    AKEW,
    EditEverything,
    JsonLines,
    KnowEdit,
    MQuAKE,
    QAEdit,
    UnKE,
    WikiBigEdit,
    WikiBio,
    ZsRE,
)
from lke_lightning.edits import EditError, Probe


def read(kind, folder, *records, **options):
    path = folder / "records.json"
    path.write_text(json.dumps(list(records)))
    stream = kind(str(path), **options)
    stream.setup("fit")
    return stream


def rewrite(subject, relation, new, true="Old"):
    return {
        "prompt": "{} " + relation, "relation_id": relation, "subject": subject, "target_new": {"str": new},
        "target_true": {"str": true}, "question": f"What {relation} {subject}?",
    }  # fmt: skip


def case(number, edits, chain, answer="Far"):
    return {
        "case_id": number, "requested_rewrite": [rewrite(*edit) for edit in edits],
        "questions": [f"Question {number}?", f"Again {number}?"], "new_answer": answer, "new_answer_alias": ["Afar"],
        "new_single_hops": [{"question": f"What {r} {s}?", "answer_alias": [new + "!"]} for s, r, new in edits],
        "orig": {"edit_triples": [list(edit) for edit in edits], "new_triples": [list(link) for link in chain]},
    }  # fmt: skip


def test_mquake_makes_every_edit_once_and_asks_when_all_are_made(tmp_path):
    first, second, third = ("Ana", "loves", "Bo"), ("Bo", "lives", "Oslo"), ("Cy", "leads", "Ana")
    stream = read(MQuAKE, tmp_path, case(7, [first, second], [first, second]), case(8, [third, first], [third, first]))
    assert [request.id for request in stream.requests] == ["7.0", "7.1", "8.0"]
    assert [len(request.two_hop) for request in stream.requests] == [0, 2, 2]
    assert stream.requests[1].two_hop[0] == Probe("Question 7?", "Far", ("Afar",))
    assert stream.requests[0].aliases == ("Bo!",)
    assert stream.requests[0].paraphrases == ("What loves Ana?",)
    assert sum(stream.irregular.values()) == 1


def test_mquake_case_by_case_keeps_all_cases_whole(tmp_path):
    first, second, other = ("Ana", "loves", "Bo"), ("Bo", "lives", "Oslo"), ("Ana", "loves", "Cy")
    cases = case(7, [first, second], [first, second]), case(8, [other], [other])
    stream = read(MQuAKE, tmp_path, *cases, by_case=True)
    assert [len(batch) for batch in stream.batches] == [2, 1]
    assert [len(request.two_hop) for request in stream.requests] == [0, 2, 2]
    with pytest.raises(EditError, match=r"a data\.batch_size of that at least"):
        read(MQuAKE, tmp_path, *cases, by_case=True, batch_size=1)
    with pytest.raises(EditError, match="keeps all cases"):
        MQuAKE("x", by_case=True, shuffle_seed=1)


def test_mquake_leaves_out_what_contradicts_an_earlier_case(tmp_path, capsys):
    stream = read(
        MQuAKE, tmp_path,
        case(1, [("Ana", "loves", "Bo")], [("Ana", "loves", "Bo"), ("Bo", "lives", "Rome")]),
        case(2, [("Ana", "loves", "Cy"), ("Cy", "lives", "Bonn")], [("Ana", "loves", "Cy"), ("Cy", "lives", "Bonn")]),
        case(3, [("Bo", "lives", "Oslo")], [("Bo", "lives", "Oslo")]),
    )  # fmt: skip
    assert [request.id for request in stream.requests] == ["1.0", "3.0"]
    assert [len(request.two_hop) for request in stream.requests] == [0, 2]  # Bo does not live in Rome any more
    assert sorted(stream.irregular.values()) == [1, 1]


def test_mquake_keeps_the_cases_alone_that_no_other_contradicts(tmp_path):
    cases = [
        case(1, [("Ana", "loves", "Bo")], [("Ana", "loves", "Bo"), ("Bo", "lives", "Rome")]),
        case(2, [("Ana", "loves", "Cy")], [("Ana", "loves", "Cy")]),
        case(3, [("Bo", "lives", "Oslo")], [("Bo", "lives", "Oslo")]),
    ]
    stream = read(MQuAKE, tmp_path, *cases, consistent=True)
    assert [request.id for request in stream.requests] == ["3.0"]
    with pytest.raises(EditError, match=r"does not say which facts its cases use .*leave data\.consistent out"):
        read(MQuAKE, tmp_path, *[{**one, "orig": {}} for one in cases], consistent=True)


def test_zsre_with_the_invented_answer(tmp_path):
    base = {"src": "Who is Ana?", "subject": "Ana", "rephrase": "Ana is?", "loc": "nq question: who", "loc_ans": "me"}
    hop = {"Recalled Relation": "", "New Question": "Who is Ana's twin?", "New Answer": "Bo"}
    records = [
        base | {"answers": ["A", "B"], "alt": "C", "portability": hop},
        base | {"src": "Is Ana?", "answers": ["A"], "alt": ""},
    ]
    true = read(ZsRE, tmp_path, *records).requests
    assert [(r.target, r.aliases, r.original) for r in true] == [("A", ("B",), None), ("A", (), None)]
    assert true[0].neighborhood == (Probe("nq question: who?", "me"),)
    assert not true[0].portability
    stream = read(ZsRE, tmp_path, *records, counterfactual=True)
    assert [(r.target, r.original, r.portability) for r in stream.requests] == [
        ("C", "A", (Probe("Who is Ana's twin?", "Bo"),))
    ]
    assert sum(stream.irregular.values()) == 1


@pytest.mark.parametrize("form", [str, lambda answer: [answer], lambda answer: [[answer, "also"]]])
def test_knowedit_reads_answers_in_every_form(tmp_path, form):
    record = {
        "subject": "Ana", "prompt": "Ana lives in", "target_new": "Oslo",
        "portability": {"Reasoning": [{"prompt": "Ana's land is", "ground_truth": form("Norway")}]},
        "locality": {"Forgetfulness": [
            {"prompt": "Ana, not in Oslo, lives in", "ground_truth": form("Oslo")},
            {"prompt": "Ana likes", "ground_truth": form("tea")},
        ]},
    }  # fmt: skip
    [request] = (stream := read(KnowEdit, tmp_path, record)).requests
    assert [probe.answer for probe in request.portability] == ["Norway"]
    assert [(probe.prompt, probe.answer) for probe in request.neighborhood] == [("Ana likes", "tea")]
    assert request.original is None
    assert sum(stream.irregular.values()) == 1


def test_knowedit_takes_other_right_answers_for_aliases(tmp_path):
    locality = {"Relation_Specificity": [{"prompt": "Ana speaks", "ground_truth": [["Thai"], [], ["Lao", "Laotian"]]}]}
    record = {"subject": "Ana", "prompt": "Ana is", "target_new": "x", "ground_truth": "x", "locality": locality}
    [request] = (stream := read(KnowEdit, tmp_path, record)).requests
    assert request.neighborhood == (Probe("Ana speaks", "Thai", ("Lao", "Laotian")),)
    assert request.original is None
    assert list(stream.irregular) == ["the original answer equals the target: no comparison"]


def test_wikibio_edits_at_the_end_of_the_passage(tmp_path):
    locality = {"Relation_Specificity": [{"prompt": "Ana works as", "ground_truth": ["smith"]}]}
    record = {
        "text": "A passage about ana. Ana was born.",
        "labels": "She died.",
        "concept": "ana",
        "locality": locality,
    }
    [request] = read(WikiBio, tmp_path, record).requests
    assert (request.subject, request.target) == (None, "She died.")
    assert request.neighborhood == (Probe("Ana works as", "smith"),)


def test_qaedit_marks_the_last_of_several_subjects(tmp_path):
    record = {
        "id": 5, "source": "NQ", "prompt": "is i in i want it?", "subject": "i", "target": "no", "rephrase": "i?",
        "locality": [{"loc": "who", "loc_ans": "me"}],
    }  # fmt: skip
    stream = read(
        QAEdit, tmp_path, record, record | {"source": "TQA", "prompt": "where is it said", "subject": "where"}
    )
    assert [(r.id, r.prompt) for r in stream.requests] == [("NQ-5", "is i in {} want it?"), ("TQA-5", "{} is it said")]
    assert sum(stream.irregular.values()) == 1


def test_wikibigedit(tmp_path):
    record = {
        "tag": "new", "subject": "Ana", "update": "Where does Ana live?", "ans": "Oslo", "rephrase": "Ana's home?",
        "personas": "Me hearties, where be Ana?", "loc": "Where does Bo live?", "loc_ans": "Bonn",
        "mhop": "Which land has Ana?", "mhop_ans": "Norway",
    }  # fmt: skip
    bare = {"update": "Who leads?", "ans": "Cy", "subject": "Dee", "mhop": None, "personas": None}
    stream = read(WikiBigEdit, tmp_path, record, bare, {"update": "What?", "ans": None, "subject": "x"})
    full, short = stream.requests
    assert (full.prompt, full.target) == ("Where does {} live?", "Oslo")
    assert full.paraphrases == ("Ana's home?", "Me hearties, where be Ana?")
    assert full.neighborhood == (Probe("Where does Bo live?", "Bonn"),)
    assert full.two_hop == (Probe("Which land has Ana?", "Norway"),)
    assert (short.subject, short.paraphrases, short.two_hop) == (None, (), ())
    assert sorted(stream.irregular.values()) == [1, 1]


def test_long_forms(tmp_path):
    unke = {"id": 3, "question": "Why?", "para_question": "How come?", "answer": "Because. So.",
            "sub_question": ["When?"], "sub_answer": ["Now."]}  # fmt: skip
    [request] = read(UnKE, tmp_path, unke).requests
    assert (request.id, request.text, request.target) == ("3", "Why?", "Because. So.")
    assert request.portability == (Probe("When?", "Now."),)
    told = [{"subject": "Ana", "prompt": "{} has", "target": "a cat"}, {"subject": "Ana", "prompt": "", "target": "x"}]
    fact = rewrite("Ana", "leads", "Bo") | {"fact_new_uns": "Ana leads Bo.", "unsfact_triplets_GPT": told}
    stream = read(AKEW, tmp_path, *({"case_id": i, "requested_rewrite": [fact]} for i in range(2)))
    [request] = stream.requests
    assert (request.id, request.prompt, request.target) == ("0.0", "What leads {}?", "Ana leads Bo.")
    assert request.portability == (Probe("Ana has", "a cat"),)
    odd = {"id": 1, "question": "What is V_{cd}?", "answer": "0.2"}
    stream = read(EditEverything, tmp_path, odd, {"id": 2, "question": "Sum?", "answer": "5"})
    assert [r.id for r in stream.requests] == ["2"]
    assert sum(stream.irregular.values()) == 1


@pytest.mark.parametrize(
    ("kind", "record", "message"),
    [
        (KnowEdit, {"subject": "Ana", "prompt": "Ana is"}, "record 0: field 'target_new' is missing"),
        (MQuAKE, {"case_id": 1, "requested_rewrite": [{"prompt": "{} is"}]}, "record 0: .*subject' is missing"),
        (QAEdit, {"id": 1, "source": "x", "prompt": "a", "subject": "b"}, "record 0: field 'target' is missing"),
        (UnKE, {"id": 1, "question": "Why?", "answer": ""}, "record 0: field 'sub_question' is missing"),
        (ZsRE, {"src": "x", "subject": "x", "answers": []}, "record 0: field 'answers' is an empty list"),
    ],
)  # fmt: skip
def test_a_record_of_another_form_is_named(tmp_path, kind, record, message):
    with pytest.raises(EditError, match=message):
        read(kind, tmp_path, record)


def test_own_records_with_everything(tmp_path):
    record = {
        "prompt": "Ana lives in", "subject": "Ana", "target": "Oslo", "aliases": ["Christiania"],
        "portability": [{"prompt": "Ana's land is", "answer": "Norway", "aliases": ["Norge"]}],
        "two_hop": [{"prompt": "Ana's king is", "answer": "Harald"}], "generation": ["Ana says"],
        "references": ["Oslo is cold."],
    }  # fmt: skip
    [request] = read(JsonLines, tmp_path, record).requests
    assert request.aliases == ("Christiania",)
    assert request.portability == (Probe("Ana's land is", "Norway", ("Norge",)),)
    assert request.two_hop == (Probe("Ana's king is", "Harald"),)
    assert (request.generation, request.references) == (("Ana says",), ("Oslo is cold.",))
