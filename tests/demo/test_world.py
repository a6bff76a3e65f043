"""The demo world: sizes, schema of the records, and text that states every fact."""

import re

import pytest

from lke_lightning.demo.world import RELATIONS, TWO_HOP, World, make_world


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(0)


def test_the_same_seed_gives_the_same_world(world):
    again = make_world(0)
    assert again.facts == world.facts
    assert again.records() == world.records()
    assert list(again.training_documents(3)) == list(world.training_documents(3))
    assert make_world(1).facts != world.facts


def test_there_are_enough_facts_and_each_pair_occurs_once(world):
    pairs = [(fact.subject, fact.relation) for fact in world.facts]
    assert len(pairs) == len(set(pairs)) >= 1500
    assert len({relation for _, relation in pairs}) == len(RELATIONS) >= 12


@pytest.mark.parametrize("relation", RELATIONS.values(), ids=RELATIONS)
def test_every_relation_has_distinct_wordings_with_one_place_for_the_subject(relation):
    assert len(set(relation.wordings)) >= 8
    assert all(wording.count("{}") == 1 and wording == wording.strip() for wording in relation.wordings)


def test_records_follow_the_schema(world):
    records = world.records()
    assert [record["case_id"] for record in records] == list(range(len(records)))
    assert len(records) == len(world.facts)
    for record in records:
        rewrite = record["requested_rewrite"]
        prompt = rewrite["prompt"].format(rewrite["subject"])
        new, true = rewrite["target_new"]["str"], rewrite["target_true"]["str"]
        assert new != true
        assert (new, true) == (new.strip(), true.strip())
        assert prompt.count(rewrite["subject"]) == 1
        assert min(len(record["paraphrase_prompts"]), len(record["generation_prompts"])) >= 2
        assert all(text.count(rewrite["subject"]) == 1 for text in record["paraphrase_prompts"])
        assert len(set(record["neighborhood_prompts"])) >= 5
        assert prompt not in record["neighborhood_prompts"] + record["attribute_prompts"]


def test_neighbours_share_the_true_object_and_attribute_prompts_the_new_one(world):
    objects = {(RELATIONS[fact.relation].wordings[0].format(fact.subject)): fact.object for fact in world.facts}
    for record in world.records():
        rewrite = record["requested_rewrite"]
        assert {objects[prompt] for prompt in record["neighborhood_prompts"]} == {rewrite["target_true"]["str"]}
        assert {objects[prompt] for prompt in record["attribute_prompts"]} == {rewrite["target_new"]["str"]}


def test_answers_of_two_hops_follow_from_the_facts(world):
    known = {(fact.subject, fact.relation): fact.object for fact in world.facts}
    asked = [record for record in world.records() if record["two_hop"]]
    assert len(asked) > 300
    for record in asked:
        rewrite = record["requested_rewrite"]
        for hop in record["two_hop"]:
            second = next(
                second
                for (first, second), question in TWO_HOP.items()
                if first == rewrite["relation_id"] and question.format(rewrite["subject"]) == hop["question"]
            )
            assert hop["answer_true"] == known[rewrite["target_true"]["str"], second]
            assert hop["answer_new"] == known[rewrite["target_new"]["str"], second]


def test_consecutive_edits_mix_relations(world):
    first = [record["requested_rewrite"]["relation_id"] for record in world.records()[:100]]
    assert len(set(first)) > 10


def test_training_text_states_every_fact_at_varying_positions(world):
    documents = list(world.training_documents(0))
    text = "\n".join(documents)
    for fact in world.facts:
        wordings = [wording.format(fact.subject) for wording in RELATIONS[fact.relation].wordings]
        endings = [f"{wording[1:]} {fact.object}." for wording in wordings]
        assert any(ending in text for ending in endings)
    subjects = {fact.subject for fact in world.facts}
    openings = ({" ".join(document.split()[:words]) for words in (1, 2, 3)} for document in documents)
    leading = sum(not subjects.isdisjoint(opening) for opening in openings)
    assert 0.1 < leading / len(documents) < 0.6


def test_sentences_are_clean(world):
    for document in [*world.corpus(), *world.heldout_documents()]:
        assert document[0].isupper()
        assert document.endswith(".")
        assert not re.search("[{}]|  ", document)
        assert not re.search(r"\b[Aa] [aeio]|\b[Aa]n [^aeio]", document)


def test_heldout_passages_are_not_training_documents(world):
    assert not set(world.heldout_documents(0)) & set(world.training_documents(0, passes=3))
