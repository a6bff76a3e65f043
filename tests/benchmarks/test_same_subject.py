"""What shares a batch, and what does not, is as the benchmark says."""

from benchmarks.same_subject import apart, groups_from_templates, groups_of, together
from lke_lightning.edits import EditRequest


def request(subject, relation):
    return EditRequest(id=f"{subject} {relation}", prompt="{} " + relation, subject=subject, target="x",
                       relation=relation, paraphrases=(subject,))  # fmt: skip


STREAM = [request(*pair.split()) for pair in ("a r1", "b r1", "a r2", "c r1", "b r2", "b r3", "a r2")]


def test_groups_are_subjects_with_enough_relations():
    groups = groups_of(STREAM, 2, 10)
    assert [[r.id for r in group] for group in groups] == [["a r1", "a r2"], ["b r1", "b r2"]]
    assert groups_of(STREAM, 2, 1) == groups[:1]
    assert [[r.id for r in group] for group in groups_of(STREAM, 3, 10)] == [["b r1", "b r2", "b r3"]]


def test_made_groups_are_one_subject_with_other_relations():
    groups = groups_from_templates(STREAM, 3, 4)
    for group, own in zip(groups, STREAM, strict=False):
        assert {r.subject for r in group} == {own.subject}
        assert len({r.relation for r in group}) == 3
        assert group[0].prompt == own.prompt
        assert not any(r.paraphrases for r in group)
    assert len({r.id for group in groups for r in group}) == 12


def test_a_batch_holds_all_of_a_subject_or_one():
    groups = groups_of(STREAM, 2, 10)
    assert [r.subject for r in together(groups)] == ["a", "a", "b", "b"]
    assert [r.subject for r in apart(groups)] == ["a", "b", "a", "b"]
