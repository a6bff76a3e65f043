"""The published files as they are, whole: how many edits, what became of some fields, what was irregular."""

import pytest

from lke_lightning.data import (
    AKEW,
    CounterFact,
    EditEverything,
    KnowEdit,
    MQuAKE,
    QAEdit,
    UnKE,
    WikiBio,
    ZsRE,
)
from lke_lightning.edits import Probe

FIELDS = ("paraphrases", "neighborhood", "aliases", "portability", "two_hop", "generation")


def read(stream):
    stream.setup("fit")
    return {request.id: request for request in stream.requests}


@pytest.mark.parametrize(
    ("kind", "path", "options", "edits", "facts", "fields"),
    [
        (CounterFact, "counterfact/multi_counterfact.json", {}, 15000, 15000, (30000, 150000, 0, 0, 0, 150000)),
        (ZsRE, "zsre/zsre_mend_eval.json", {}, 15000, 14999, (15000, 15000, 522, 0, 0, 0)),
        (ZsRE, "zsre/zsre_mend_eval.json", {"counterfactual": True}, 14943, 14942, (14943, 14943, 0, 0, 0, 0)),
        (
            ZsRE,
            "zsre/zsre_mend_eval_portability_gpt4.json",
            {"counterfactual": True},
            1037,
            1037,
            (1037, 1037, 0, 1037, 0, 0),
        ),
        (MQuAKE, "mquake/MQuAKE-hard.json", {}, 767, 767, (767, 0, 3256, 0, 1281, 0)),
        (MQuAKE, "akew/MQuAKE-CF.json", {}, 337, 337, (337, 0, 1389, 0, 879, 0)),
        (QAEdit, "qaedit/QAEdit_inter_1k.json", {}, 1000, 1000, (1000, 5000, 0, 0, 0, 0)),
        (WikiBio, "knowedit/WikiBio/wikibio-test-all.json", {}, 306, 306, (0, 612, 0, 0, 0, 0)),
        (KnowEdit, "knowedit/ZsRE/ZsRE-test-all.json", {}, 1304, 1286, (1304, 2590, 0, 1304, 0, 0)),
        (KnowEdit, "knowedit/wiki_counterfact/train_cf.json", {}, 1428, 1417, (0, 2034, 0, 2219, 0, 0)),
        (KnowEdit, "knowedit/wiki_recent/recent_train.json", {}, 570, 570, (0, 1783, 0, 751, 0, 0)),
        (UnKE, "unke/final_data_v2.json", {}, 1000, 1000, (1000, 0, 0, 4729, 0, 0)),
        (AKEW, "akew/MQuAKE-CF.json", {}, 337, 337, (0, 0, 0, 2100, 0, 0)),
        (EditEverything, "editeverything/editevery.json", {}, 551, 541, (0, 0, 0, 0, 0, 0)),
    ],
)
def test_whole_files(shared, kind, path, options, edits, facts, fields):
    found = read(kind(str(shared / path), **options)).values()
    assert len(found) == edits
    assert len({request.fact for request in found}) == facts
    assert tuple(sum(len(getattr(request, name)) for request in found) for name in FIELDS) == fields
    probes = [probe for r in found for probe in (*r.neighborhood, *r.portability, *r.two_hop)]
    assert all(probe.prompt.strip() and probe.answer.strip() and all(probe.aliases) for probe in probes)


def test_the_invented_answers_of_zsre(shared):
    found = read(ZsRE(str(shared / "zsre/zsre_mend_eval_portability_gpt4.json"), counterfactual=True))["1"]
    assert found.text == "Which family does Ramalinaceae belong to?"
    assert (found.target, found.original) == ("Lamiinae", "Lecanorales")
    [question] = found.portability
    assert question.answer == "Cerambycidae"
    true = read(ZsRE(str(shared / "zsre/zsre_mend_eval_portability_gpt4.json")))["1"]
    assert (true.target, true.portability) == ("Lecanorales", ())


def test_the_questions_of_mquake_come_with_the_last_of_their_edits(shared):
    stream = MQuAKE(str(shared / "mquake/MQuAKE-hard.json"))
    found = read(stream)
    assert [found[f"7417.{i}"].target for i in range(4)] == ["Madonna", "Narendra Modi", "Australia", "Arabic"]
    assert [len(found[f"7417.{i}"].two_hop) for i in range(3)] == [0, 0, 0]
    question = found["7417.3"].two_hop[0]
    assert (question.answer, question.aliases) == ("Arabic", ("ar", "Arabian language", "Arabic language"))
    assert found["7417.0"].relation == "P175"
    assert sorted(stream.irregular.values()) == [2, 941]


def test_a_case_of_mquake_whose_reasoning_another_case_changes(shared):
    stream = MQuAKE(str(shared / "akew/MQuAKE-CF.json"))
    read(stream)
    assert sorted(stream.irregular.values()) == [61, 99]


def test_knowedit_drops_what_tells_nothing(shared):
    stream = KnowEdit(str(shared / "knowedit/wiki_recent/recent_train.json"))
    found = read(stream)
    assert found["0"].text == "The gender of Ingrīda Amantova is"
    assert found["0"].neighborhood[2] == Probe(
        "The name of the alma mater of Ingrīda Amantova is", "University of Latvia", ("Latvijas Universitāte",)
    )
    assert all(r.target not in (p.answer, *p.aliases) for r in found.values() for p in r.neighborhood)
    assert sorted(stream.irregular.values()) == [7, 156]
    counterfact = read(KnowEdit(str(shared / "knowedit/wiki_counterfact/train_cf.json")))
    assert (counterfact["0"].target, counterfact["0"].original) == ("Franche-Comté", "France")
    assert {probe.answer for probe in counterfact["0"].portability} == {"Besançon", "Franche-Comté"}
    assert not [r for r in counterfact.values() if r.original == r.target]


def test_qaedit_and_the_long_forms(shared):
    found = read(QAEdit(str(shared / "qaedit/QAEdit_inter_1k.json")))
    assert found["NQ-1104"].subject == "most 70 point games in nba history"
    wants = found["NQ-1667"]
    assert wants.prompt == "who discovered cells divide to make new {}?"
    bio = read(WikiBio(str(shared / "knowedit/WikiBio/wikibio-test-all.json")))["0"]
    assert bio.subject is None
    assert bio.target.startswith("He received general education")
    unke = read(UnKE(str(shared / "unke/final_data_v2.json")))["0"]
    assert unke.portability[0].answer == "They are called cone cells."
    akew = read(AKEW(str(shared / "akew/MQuAKE-CF.json")))["1.0"]
    assert akew.text == "What is the country of citizenship of Ellie Kemper?"
    assert akew.portability[1] == Probe("Ellie Kemper was born in", "Kansas City, Missouri")
    everything = EditEverything(str(shared / "editeverything/editevery.json"))
    assert "465" not in read(everything)
    assert sum(everything.irregular.values()) == 1
