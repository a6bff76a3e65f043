"""What is read out of the folders of runs: finished, unfinished, older, damaged."""

import pytest

from lke_lightning.edits import EditError
from lke_lightning.report.reading import read_all

EDIT = {"event": "edit", "prompt": "A is", "subject": "A", "target": "b", "weight": 1.0}
KINDS = ("efficacy", "paraphrase", "neighborhood")


def read(folder):
    return read_all([str(folder)])[0]


def section(success, **more):
    return {**{kind: {"success": success, "magnitude": 0.1, "accuracy": success / 2} for kind in KINDS}, **more}


def edit(number, batch, success, **more):
    return {**EDIT, "number": number, "id": str(number), "batch": batch, "steps": 3, "stopped_by": "MaxSteps",
            "success_just_after": success, **more}  # fmt: skip


def batch(number, edits, growth, **more):
    return {"event": "batch", "batch": number, "edits": edits, "norm_growth": {"3": growth}, **more}


def evaluation(edits, *successes, **more):
    measured = {f"{kind}_success": value for kind, value in zip(KINDS, successes, strict=True)}
    return {"event": "evaluation", "edits": edits, **measured, **more}


def test_an_unfinished_run_without_a_scorecard_is_read_from_its_ledger(written):
    entries = [edit(0, 0, True), edit(1, 0, False), batch(0, 2, 1.5), edit(2, 1, True, steps=5), batch(1, 1, 2.0)]
    folder = written("run", entries=entries)
    with (folder / "ledger.jsonl").open("a") as file:
        file.write('{"event": "edit", "id"')  # being written
    run = read(folder)
    assert run.made == 3
    assert not run.is_finished
    assert run.curves["just after"]["efficacy"] == [(2, 0.5), (3, 1.0)]
    assert run.curves["norm growth"] == {"layer 3": [(0, 1.0), (2, 1.5), (3, 2.0)]}
    assert run.curves["steps"]["all"] == [(0, 0.0), (3, pytest.approx(2 / 3)), (5, 1.0)]
    assert run.last("norm growth") == 2.0
    assert run.score("S") is None


def test_fulfilment_and_what_arrived_make_curves_where_a_ledger_has_them(written):
    entries = [
        edit(0, 0, True, written=0.9, first_choice_just_after=True),
        edit(1, 0, True, written=0.5, first_choice_just_after=False),
        batch(0, 2, 1.5, fulfilment={"3": 0.8, "4": 0.6}),
        edit(2, 1, True, written=0.4, first_choice_just_after=False),
        batch(1, 1, 2.0, fulfilment={"3": 0.5, "4": 0.2}),
        batch(2, 0, 2.0, fulfilment={}),
    ]  # fmt: skip
    assert read(written("run", entries=entries)).curves["arrival"] == {
        "fulfilment (median of layers)": [(2, pytest.approx(0.7)), (3, pytest.approx(0.35))],
        "fulfilment (lowest layer)": [(2, 0.6), (3, 0.2)],
        "first choice": [(2, 0.5), (3, 0.0)],
        "written (median)": [(2, pytest.approx(0.7)), (3, 0.4)],
    }
    assert read(written("older", entries=[edit(0, 0, True), batch(0, 1, 1.5)])).curves["arrival"] == {}


def test_edits_without_a_score_do_not_count_against_their_batch(written):
    entries = [
        edit(0, 0, True),
        edit(1, 0, None),
        edit(2, 0, False),
        batch(0, 3, 1.5),
        edit(3, 1, None),
        batch(1, 1, 2),
    ]
    assert read(written("run", entries=entries)).curves["just after"]["efficacy"] == [(3, 0.5)]


def test_evaluations_during_the_run_make_curves(written):
    entries = [edit(0, 0, True), evaluation(1, 1.0, 0.5, 0.5, perplexity=4.0), edit(1, 1, True),
               evaluation(2, 0.5, 0.0, 1.0, perplexity=5.0)]  # fmt: skip
    card = {"method": "M", "edits": 2, "final": section(0.5), "perplexity": {"before": 3.0, "final": 5.0}}
    run = read(written("run", card, entries))
    assert run.is_finished
    assert run.curves["so far"]["S"] == [(1, pytest.approx(0.6)), (2, 0.0)]
    assert run.curves["perplexity"]["perplexity"] == [(0, 3.0), (1, 4.0), (2, 5.0)]
    assert not read(written("going on", {**card, "edits": 3}, entries)).is_finished


def test_a_scorecard_alone_is_enough(written):
    card = {"method": "M", "edits": 4, "batch_size": 2, "final": section(0.5, score=0.5),
            "weight_norms": {"7": {"before": 2.0, "after": 3.0}}, "perplexity": {"before": 3.0, "final": 5.0},
            "retention": [{"batch": 0, "success": 1.0}, {"batch": 1, "success": None, "accuracy": 0.5}]}  # fmt: skip
    run = read(written("run", card))
    assert run.curves["norm growth"] == {"layer 7": [(0, 1.0), (4, 1.5)]}
    assert run.curves["perplexity"]["perplexity"] == [(0, 3.0), (4, 5.0)]
    assert run.curves["retention"]["at the end"] == [(2, 1.0), (4, 0.5)]


def test_intervals_the_retention_matrix_and_probabilities_are_read_where_they_are(written):
    final = section(0.5, score=0.5, generated={"efficacy": {"exact": 0.25}},
                    intervals={"efficacy": {"success": [0.4, 0.6]}, "score": [0.3, 0.7]})  # fmt: skip
    card = {
        "edits": 2, "final": final, "retention_matrix": {"evaluated_after": [1, 2], "success": [[1.0], [0.5, None]]},
        "probability": {"known_originals": {"facts": 4, "per_token": {"mean": 0.5, "histogram": [1, 3]}}},
    }  # fmt: skip
    run = read(written("run", card))
    assert run.score("efficacy").bounds == (0.4, 0.6)
    assert run.score("S").bounds == (0.3, 0.7)
    assert run.score("paraphrase").bounds is None
    assert run.card.scores["final"]["generated / efficacy / exact"].value == 0.25
    assert run.card.evaluated_after == [1, 2]
    assert run.card.matrix[1][0] == 0.5
    assert run.card.matrix[1][1] != run.card.matrix[1][1]
    [points] = run.curves["probability"].values()
    assert points == [(0.25, 0.25), (0.75, 0.75)]


def test_downstream_tasks_and_their_mean(written):
    measured = [{"edits": 0, "results": {"CoLA": {"f1": 0.5, "items": 10}, "RTE": {"f1": 0.7}, "PPL": {"nll": 9.0}}},
                {"edits": 5, "results": {"CoLA": {"f1": 0.4}, "Agreement": {"accuracy": 0.8}}}]  # fmt: skip
    run = read(written("run", {}, downstream={"measurements": measured}))
    assert run.curves["downstream"] == {
        "CoLA": [(0, 0.5), (5, 0.4)], "RTE": [(0, 0.7)], "Agreement": [(5, 0.8)],
        "mean": [(0, pytest.approx(0.6)), (5, pytest.approx(0.6))],
    }  # fmt: skip
    assert run.curves["task PPL"] == {"nll": [(0, 9.0)]}


def test_logs_of_all_parts_of_a_run_are_joined(written):
    folder = written("run", {"edits": 6, "batch_size": 2})
    for number, rows in ((0, "0.5,0\n0.5,1\n0.1,2"), (2, "0.75,1\n1.0,2\nx,")):
        place = folder / "lightning_logs" / f"version_{number}"
        place.mkdir(parents=True)
        (place / "metrics.csv").write_text(f"just_after/efficacy,step\n{rows}\n")
    assert read(folder).curves["just after"]["efficacy"] == [(2, 0.5), (4, 0.75), (6, 1.0)]


def test_a_folder_of_runs_stands_for_all_of_them_and_names_differ(written, tmp_path):
    for name in ("a/one", "a/two", "b/one"):
        written(name, {"edits": 1})
    runs = read_all([str(tmp_path / "a"), str(tmp_path / "b" / "one"), str(tmp_path / "a" / "one")])
    assert [run.name for run in runs] == ["a/one", "two", "b/one"]


def test_no_run_at_all_is_refused():
    with pytest.raises(EditError, match="at least one"):
        read_all([])
