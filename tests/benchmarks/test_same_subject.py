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


def test_made_groups_are_one_subject_with_other_relations_and_targets():
    """Prompts that begin with the subject have one key; the others are alike nowhere before it."""
    prompts = ["{} r1", "The r2 of {} is", "{} r3", "{} r3", "The r4 of {} is", "In {}", "The r2 of {} was", "{} r7"]
    stream = [
        EditRequest(id=str(i), prompt=prompt, subject=name, target=f"t{i % 7}", relation=prompt.replace("was", "is"),
                    paraphrases=(f"So {name} is", "it"))
        for i, (prompt, name) in enumerate(zip(prompts, "abcdefgh", strict=True))
    ]  # fmt: skip
    alike = groups_from_templates(stream, 2, 2, one_key=True)
    assert [[r.id for r in group] for group in alike] == [["0/0", "0/2"], ["2/2", "2/7"]]
    other = groups_from_templates(stream, 3, 9, one_key=False)
    assert [[r.id for r in group] for group in other] == [
        ["1/1", "1/4", "1/5"], ["4/4", "4/5", "4/6"], ["5/5", "5/6", "5/4"], ["6/6", "6/4", "6/5"],
    ]  # fmt: skip
    assert {(r.subject, r.paraphrases) for r in other[0]} == {("b", ("So b is",))}


def test_a_batch_holds_all_of_a_subject_or_one():
    groups = groups_of(STREAM, 2, 10)
    assert [r.subject for r in together(groups)] == ["a", "a", "b", "b"]
    assert [r.subject for r in apart(groups)] == ["a", "b", "a", "b"]
