"""What is read out of the folders of runs: finished, unfinished, older, damaged."""

import pytest

from lke_lightning.edits import EditError
from lke_lightning.report.reading import RunRecord, read_all


def section(success, **more):
    kinds = ("efficacy", "paraphrase", "neighborhood")
    return {**{kind: {"success": success, "magnitude": 0.1, "accuracy": success / 2} for kind in kinds}, **more}


def edit(number, batch, success, **more):
    return {
        "event": "edit", "id": str(number), "batch": batch, "prompt": "{} is", "subject": "A<b>", "target": "x",
        "original": "y", "steps": 3, "stopped_by": "MaxSteps", "nll_just_after": 0.0, "success_just_after": success,
        **more,
    }  # fmt: skip


def batch(number, edits, growth, second):
    time = f"2026-01-01T00:00:{second:02}.000+00:00"
    return {"event": "batch", "batch": number, "edits": edits, "norm_growth": {"3": growth}, "time": time}


def evaluation(edits, *successes, **more):
    kinds = ("efficacy", "paraphrase", "neighborhood")
    measured = {f"{kind}_success": value for kind, value in zip(kinds, successes, strict=True)}
    return {"event": "evaluation", "edits": edits, **measured, **more}


def test_an_unfinished_run_without_a_scorecard_is_read_from_its_ledger(written):
    entries = [edit(0, 0, True), edit(1, 0, False), batch(0, 2, 1.5, 0), edit(2, 1, True), batch(1, 1, 2.0, 4)]
    run = RunRecord.read(written("run", entries=entries), "run")
    assert run.made == 3
    assert not run.is_evaluated
    assert run.just_after("efficacy") == [(2, 0.5), (3, 1.0)]
    assert run.norm_growth() == {"3": [(0, 1.0), (2, 1.5), (3, 2.0)]}
    assert run.seconds_per_edit() == [(3, 4.0)]
    assert [entry["id"] for entry in run.failed()] == ["1"]
    counts, mean = run.probabilities()["edited_just_after"]
    assert (counts[-1], mean) == (3, 1.0)
    assert run.score("final", "S") is None


def test_evaluations_during_the_run_make_curves(written):
    entries = [edit(0, 0, True), evaluation(1, 1.0, 0.5, 0.5, perplexity=4.0), edit(1, 1, True),
               evaluation(2, 0.5, 0.0, 1.0, perplexity=5.0)]  # fmt: skip
    card = {"method": "M", "edits": 2, "batch_size": 1, "final": section(0.5),
            "perplexity": {"before": 3.0, "final": 5.0}}  # fmt: skip
    run = RunRecord.read(written("run", card, entries), "run")
    assert run.is_evaluated
    assert run.evaluated("S") == [(1, pytest.approx(0.6)), (2, 0.0)]
    assert run.evaluated("perplexity") == [(0, 3.0), (1, 4.0), (2, 5.0)]


def test_a_scorecard_alone_is_enough(written):
    card = {"method": "M", "edits": 4, "batch_size": 2, "before": section(0.0, score=0.0),
            "final": section(0.5, score=0.5), "weight_norms": {"7": {"before": 2.0, "after": 3.0}},
            "seconds": {"stage_one": 6.0, "guard": 0.0, "total": 10.0}}  # fmt: skip
    run = RunRecord.read(written("run", card), "run")
    assert run.evaluated("S") == [(0, 0.0), (4, 0.5)]
    assert run.norm_growth() == {"7": [(0, 1.0), (4, 1.5)]}
    assert run.time_spent() == {"stage_one": 6.0, "other": 4.0}
    assert run.failed() == []


def test_intervals_generated_answers_and_the_retention_matrix_are_read_where_they_are(written):
    bounds = {"efficacy": {"success": [0.4, 0.6]}, "score": [0.3, 0.7]}
    final = section(0.5, score=0.5, generated={"efficacy": {"exact": 0.25}}, intervals=bounds)
    card = {
        "edits": 2, "final": final,
        "retention_matrix": {"evaluated_after": [1, 2], "success": [[1.0], [0.5, None]]},
        "probability": {"known_originals": {"facts": 4, "per_token": {"mean": 0.5, "histogram": [1, 3]}}},
        "generated": {"examples": [{"id": "0", "said": "z"}]},
    }  # fmt: skip
    run = RunRecord.read(written("run", card, [edit(0, 0, True)]), "run")
    assert run.score("final", "efficacy").bounds == (0.4, 0.6)
    assert run.score("final", "S").bounds == (0.3, 0.7)
    assert run.score("final", "paraphrase").bounds is None
    [(path, scores)] = run.further().items()
    assert path == ("generated", "efficacy", "exact")
    assert {moment: score.value for moment, score in scores.items()} == {"final": 0.25}
    assert run.retention_matrix() == ([1, 2], [[1.0], [0.5, None]])
    assert run.probabilities()["known_originals"] == ([1, 3], 0.5)
    assert run.said() == {"0": "z"}


def test_downstream_tasks_from_their_file_or_from_the_ledger(written):
    tasks = {"CoLA": {"f1": 0.5, "items": 10}, "RTE": {"f1": 0.7}, "MEPPL": {"perplexity": 9.0}}
    measured = {"measurements": [{"edits": 0, "results": tasks}, {"edits": 5, "results": {"CoLA": {"f1": 0.4}}}]}
    entries = [{"event": "downstream", "edits": 0, "tasks": tasks},
               {"event": "downstream", "edits": 5, "tasks": {"CoLA": {"f1": 0.4}}}]  # fmt: skip
    for folder in (written("file", {}, downstream=measured), written("ledger", entries=entries)):
        run = RunRecord.read(folder, "run")
        assert run.downstream_tasks() == {"CoLA": [(0, 0.5), (5, 0.4)], "RTE": [(0, 0.7)]}
        assert run.downstream_mean() == [(0, pytest.approx(0.6)), (5, 0.4)]


def test_edits_that_were_undone_or_replaced_are_not_among_the_failed(written):
    entries = [edit(0, 0, False), edit(1, 0, False), edit(2, 1, True, replaces="1"), {"event": "undo", "id": "0"}]
    run = RunRecord.read(written("run", entries=entries), "run")
    assert [entry["id"] for entry in run.standing()] == ["2"]
    assert run.failed() == []


def test_logs_of_all_parts_of_a_run_are_joined(written):
    folder = written("run", {"edits": 6, "batch_size": 2})
    for number, rows in ((0, "0.5,0,1.1\n0.5,1,1.2\n0.1,2,1"), (2, "0.75,1,1.3\n1.0,2,1.4\n")):
        place = folder / "lightning_logs" / f"version_{number}"
        place.mkdir(parents=True)
        (place / "metrics.csv").write_text(f"just_after/efficacy,step,norm_growth/layer_0\n{rows}")
    run = RunRecord.read(folder, "run")
    assert run.just_after("efficacy") == [(2, 0.5), (4, 0.75), (6, 1.0)]
    assert run.norm_growth()["0"] == [(0, 1.0), (2, 1.1), (4, 1.3), (6, 1.4)]


def test_a_folder_of_runs_stands_for_all_of_them_and_names_differ(written, tmp_path):
    written("a/one", {"edits": 1})
    written("a/two", {"edits": 1})
    written("b/one", {"edits": 1})
    runs = read_all([str(tmp_path / "a"), str(tmp_path / "b" / "one"), str(tmp_path / "a" / "one")])
    assert [run.name for run in runs] == ["a/one", "two", "b/one"]


def test_what_is_no_run_is_refused(written, tmp_path):
    with pytest.raises(EditError, match="no folder"):
        read_all([str(tmp_path / "nowhere")])
    with pytest.raises(EditError, match="neither the folder of a run"):
        read_all([str(tmp_path)])
    with pytest.raises(EditError, match="at least one"):
        read_all([])
    with pytest.raises(EditError, match="not the folder of a run"):
        RunRecord.read(tmp_path, "run")
    for name in ("scorecard.json", "ledger.jsonl"):
        folder = written(f"damaged-{name}", {"edits": 1})
        (folder / name).write_text('{"edits": \n')
        with pytest.raises(EditError, match=rf"{name} is damaged"):
            read_all([str(folder)])
