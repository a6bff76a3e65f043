"""Sections of the scorecard against loops over edits and prompts."""

import math
import random

import pytest
import torch

from lke_lightning.evaluation.summary import by_batch, probability, section, summarize
from lke_lightning.metrics import interval, resampled_means

KINDS = {"efficacy": 1, "paraphrase": 2, "neighborhood": 3}


def scored(chance, answers=True, rival=True):
    """Make up what an edit scored."""
    scores = {}
    for kind, prompts in {**KINDS, "two_hop": chance.choice([0, 2])}.items():
        if kind == "two_hop" and not prompts:
            continue
        tokens = [chance.randint(1, 3) for _ in range(prompts)]
        right = [chance.randint(0, count) for count in tokens]
        other = [(chance.random() * 3, chance.randint(0, 1), 1) if rival else (math.nan,) * 3 for _ in range(prompts)]
        nll = [[chance.random() * 3, o[0], r == t] for o, r, t in zip(other, right, tokens, strict=True)]
        scores[kind] = torch.tensor(nll, dtype=torch.float64)
        counts = [[r, t, *o[1:]] for r, t, o in zip(right, tokens, other, strict=True)]
        scores[kind + "/tokens"] = torch.tensor(counts, dtype=torch.float64)
        if answers:
            said = [[float(chance.random() < 0.4), 1.0, math.nan] for _ in range(prompts)]
            scores[kind + "/generated"] = torch.tensor(said, dtype=torch.float64)
        if kind == "neighborhood":
            scores["neighborhood/says"] = torch.tensor(
                [chance.randint(0, 1) for _ in range(sum(tokens))], dtype=torch.int32
            )
    return scores


@pytest.fixture
def stream():
    chance = random.Random(0)
    after = {str(i): scored(chance) for i in range(30)}
    before = {name: {key: value.clone() for key, value in scores.items()} for name, scores in after.items()}
    for scores in before.values():
        says = scores["neighborhood/says"]
        says[:] = torch.tensor([chance.randint(0, 1) for _ in says])
    return before, after


def means(records):
    """Average lists of numbers, a list each record: in the record first, then over records; those without count not."""
    of_records = [sum(values) / len(values) for values in records if values]
    return pytest.approx(sum(of_records) / len(of_records), abs=1e-6)


def test_figures_against_loops_over_edits_and_prompts(stream):
    before, after = stream
    found = section(after, list(after), before)
    for kind in KINDS:
        asked = [scores[kind].tolist() for scores in after.values()]
        assert found[kind] == {
            "success": means([[float(wanted < other) for wanted, other, _ in rows] for rows in asked]),
            "magnitude": means([[math.exp(-wanted) - math.exp(-other) for wanted, other, _ in rows] for rows in asked]),
            "accuracy": means([[correct for _, _, correct in rows] for rows in asked]),
        }
        counts = [scores[kind + "/tokens"].tolist() for scores in after.values()]
        assert found["teacher_forced"][kind] == {
            "token_accuracy": means([[row[0] / row[1] for row in rows] for rows in counts]),
            "whole_answer": means([[float(row[0] == row[1]) for row in rows] for rows in counts]),
        }
    assert {name: found[name] for name in (*KINDS, "score")} == summarize(after.values())


def test_locality_against_loops_over_positions(stream):
    before, after = stream
    same, whole = [], []
    for name, scores in after.items():
        pairs = list(zip(*(part["neighborhood/says"].tolist() for part in (scores, before[name])), strict=True))
        same.append([])
        whole.append([])
        for count in scores["neighborhood/tokens"][:, 1].int().tolist():
            answer, pairs = pairs[:count], pairs[count:]
            same[-1].append(sum(says == said for says, said in answer) / count)
            whole[-1].append(float(all(says == said for says, said in answer)))
    found = section(after, list(after), before)["teacher_forced"]["locality"]
    assert found == {"token_accuracy": means(same), "whole_answer": means(whole)}


def test_records_without_a_kind_of_question_do_not_count_for_it(stream):
    _, after = stream
    having = [scores["two_hop/generated"][:, 0].mean().item() for scores in after.values() if "two_hop" in scores]
    assert 0 < len(having) < len(after)
    found = section(after, list(after))
    assert found["generated"]["two_hop"]["exact"] == pytest.approx(sum(having) / len(having), abs=1e-6)
    assert "judged" not in found["generated"]["two_hop"]
    assert "portability" not in found["teacher_forced"]
    assert "locality" not in found["teacher_forced"]


def test_bounds_of_every_figure_and_of_the_score(stream):
    before, after = stream
    found = section(after, list(after), before)
    successes = torch.stack(
        [torch.stack([(s[kind][:, 0] < s[kind][:, 1]).double().mean() for kind in KINDS]) for s in after.values()]
    )
    draws = resampled_means(successes)
    for column, kind in zip(draws.T, KINDS, strict=True):
        assert found["intervals"][kind]["success"] == pytest.approx(interval(column), abs=1e-5)
    harmonic = torch.tensor([3 / sum(1 / value for value in draw) for draw in draws.tolist()], dtype=torch.float64)
    assert found["intervals"]["score"] == pytest.approx(interval(harmonic), abs=1e-5)
    figures = {key: set(part) for key, part in found.items() if isinstance(part, dict) and key != "intervals"}
    assert {key: set(found["intervals"][key]) for key in figures} == figures


def test_one_edit_has_figures_but_no_bounds(stream):
    _, after = stream
    found = section(after, ["3"])
    assert found["efficacy"]["success"] in (0, 1)
    assert found["intervals"]["efficacy"]["success"] is None
    assert found["intervals"]["score"] is None
    assert section(after, ["unknown"]) is None


def test_without_originals_there_is_accuracy_and_no_score():
    chance = random.Random(1)
    after = {str(i): scored(chance, answers=False, rival=False) for i in range(5)}
    found = section(after, list(after))
    assert found["efficacy"]["success"] is found["score"] is found["intervals"]["score"] is None
    assert found["efficacy"]["accuracy"] is not None
    assert "generated" not in found


def test_what_was_not_measured_is_left_out(stream):
    before, after = stream
    old = {name: {kind: scores[kind] for kind in KINDS} for name, scores in after.items()}
    assert section(old, list(old), before)["efficacy"] == section(after, list(after))["efficacy"]
    assert probability(old, old, old, list(old)) == {"protocol": "teacher-forced"}


def test_generated_figures_are_means_of_means():
    exact = {"0": [[1, 1], [0, 0]], "1": [[0, 1]]}
    scores = {
        name: {"paraphrase/generated": torch.tensor([[*row, math.nan] for row in rows], dtype=torch.float64)}
        for name, rows in exact.items()
    }
    assert section(scores, ["0", "1"])["generated"]["paraphrase"] == {"exact": 0.25, "prefix": 0.75}


def test_batches_tell_what_still_stands(stream):
    _, after = stream
    final = {name: scores for name, scores in after.items() if name not in ("0", "1", "4")}
    found = by_batch(final, [["0", "1"], ["2", "3", "4"], ["5"]])
    assert found[0] is None
    assert [part["edits"] for part in found[1:]] == [2, 1]
    assert found[1]["success"] == summarize([after["2"], after["3"]])["efficacy"]["success"]
    exact = [after[name]["efficacy/generated"][0, 0].item() for name in ("2", "3")]
    assert found[1]["generated"]["exact"] == sum(exact) / 2


def test_probabilities_are_of_targets_and_of_what_the_model_knew(stream):
    before, after = stream
    names = list(after)[:20]
    found = probability(before, after, {}, names)
    targets = [after[name]["efficacy"][0, 0].item() for name in names]
    assert found["edited_just_after"]["facts"] == 20
    assert found["edited_just_after"]["per_token"]["mean"] == pytest.approx(
        sum(math.exp(-nll) for nll in targets) / 20, abs=1e-6
    )
    known, joint = [], []
    for name in names:
        rows = zip(before[name]["neighborhood"].tolist(), before[name]["neighborhood/tokens"].tolist(), strict=True)
        joint += [math.exp(-row[0] * counts[1]) for row, counts in rows if counts[0] == counts[1]]
        counts = before[name]["efficacy/tokens"][0].tolist()
        known += [before[name]["efficacy"][0, 1].item()] if counts[2] == counts[3] else []
    assert found["known_originals"]["facts"] == len(known) < 20
    assert found["known_originals"]["per_token"]["mean"] == pytest.approx(
        sum(math.exp(-nll) for nll in known) / len(known), abs=1e-6
    )
    assert found["known_neighborhood"]["joint"]["mean"] == pytest.approx(sum(joint) / len(joint), abs=1e-6)
    assert sum(found["known_neighborhood"]["joint"]["histogram"]) == len(joint)
    assert "edited_final" not in found
