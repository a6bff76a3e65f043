"""A comparison through the command line, and plans that are none."""

import json

import pytest
import yaml

from lke_lightning.cli import main
from lke_lightning.edits import KINDS, EditError
from lke_lightning.sweeps.compare import Comparison
from lke_lightning.sweeps.report import brief_cells, entry, table, together
from lke_lightning.sweeps.runs import Job, Outcome


def test_methods_in_one_table(tiny, tmp_path, capsys):
    plan, output = tmp_path / "plan.yaml", tmp_path / "out"
    rows = [
        {"name": "broken", "arguments": ["--stage_one.lrr", 1]},
        {"name": "ENCORE, two edits", "arguments": ["--data.limit", 2]},
    ]
    plan.write_text(yaml.safe_dump({"arguments": tiny, "rows": rows}))
    with pytest.raises(SystemExit, match=r"1 of 2 rows failed; see .*broken/log\.txt"):
        main(["compare", "--plan", str(plan), "--output", str(output)])
    table = json.loads((output / "comparison.json").read_text())
    broken, encore = table["rows"]
    card = json.loads((output / "ENCORE, two edits" / "scorecard.json").read_text())
    assert table["plan"]["rows"] == rows
    assert {"command", "machine", "versions", "date"} <= set(table)
    assert broken["status"] == "failed"
    assert "stage_one.lr" in broken["error"]
    assert encore["status"] == "done"
    assert encore["final"]["S"] == card["final"]["score"]
    assert encore["just_after"]["efficacy"] == card["just_after"]["efficacy"]["success"]
    assert set(encore["norm_growth"]) == {"0", "1"}
    assert encore["perplexity"]["before"] != encore["perplexity"]["final"]
    assert encore["steps"]["median"] <= 4
    assert (encore["edits"], encore["method"], encore["device"]) == (2, "ENCORE", "cpu")
    lines = (output / "comparison.md").read_text().splitlines()
    assert lines[0].startswith("| method | efficacy | paraphrase | neighborhood | S | perplexity | norm growth |")
    assert lines[2].startswith("| broken | failed |")
    assert lines[3].startswith("| ENCORE, two edits | ")
    assert "ENCORE" in capsys.readouterr().out


def test_some_rows_and_further_arguments(tmp_path):
    plan = tmp_path / "plan.yaml"
    rows = [{"name": name, "arguments": [f"--seed={name}"]} for name in "abc"]
    plan.write_text(yaml.safe_dump({"arguments": ["--data=CounterFact"], "rows": rows}))
    read = Comparison.read(str(plan), ["--data=ZsRE"], ["c", "a"])
    assert [job.arguments for job in read.jobs] == [
        ("--data=CounterFact", "--data=ZsRE", "--seed=c"), ("--data=CounterFact", "--data=ZsRE", "--seed=a"),
    ]  # fmt: skip
    with pytest.raises(EditError, match="has no row 'd': it has a, b, c"):
        Comparison.read(str(plan), only=["d"])


CARD = {
    "method": "m", "model": "x", "data": "d", "edits": 8, "batch_size": 2, "device": "cpu",
    "just_after": None, "perplexity": {"before": 10.0, "final": 11.0}, "steps": {"median": 5},
    "weight_norms": {"1": {"before": 1.0, "after": 1.5}, "2": {"before": 2.0, "after": 2.0}},
    "seconds": {"stage_one": 1.0, "stage_two": 2.0, "evaluation": 3.0},
}  # fmt: skip


def outcome(name, accuracy, ability):
    kinds = {kind: {"success": accuracy, "accuracy": accuracy} for kind in KINDS}
    answers = {kind: {"exact": 0.1, "prefix": 0.5} for kind in KINDS}
    retention = [{"batch": i, "age": 4 - i, "accuracy": accuracy - 0.1 * (4 - i)} for i in range(5)]
    card = {**CARD, "final": {**kinds, "score": accuracy, "generated": answers}, "retention": retention}
    measured = [{"edits": edits, "results": {"Agreement": {"accuracy": value, "items": 9}}}
                for edits, value in ((8, ability), (0, 0.9))]  # fmt: skip
    return Outcome(Job(name, ()), card, {"measurements": measured})


def test_a_table_has_what_was_measured_and_the_spread_over_orders():
    entries = [entry(outcome("a", 0.8, 0.7)), entry(outcome("b", 0.9, 0.5))]
    header, [first, both] = table([entries[0], together(entries, "a and b")])
    one, two = (dict(zip(header, line, strict=True)) for line in (first, both))
    assert one["S"] == "0.800 (-)"
    assert two["S"] == "0.850 ± 0.071 (-)"
    assert one["perplexity"] == "10 > 11"
    assert one["accuracy: efficacy, paraphrase, neighborhood"] == "0.800, 0.800, 0.800"
    assert one["generated answers that begin with the target: the same"] == "0.500, 0.500, 0.500"
    assert one["retention"] == "0.400, 0.500, 0.650, 0.800"  # batches 1, 2, 3 and 4, 5
    assert one["Agreement"] == "0.900 > 0.700"
    assert two["Agreement"] == "0.900 ± 0.000 > 0.600 ± 0.141"
    assert one["norm growth"] == "1.50, 1.00"
    assert brief_cells(together(entries, "x"))[-1] == "1.50 ± 0.00"
    assert together([*entries, entry(Outcome(Job("c", ())))], "x")["status"] == "waiting"


def test_a_row_in_several_orders_is_a_run_for_each(tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text("{arguments: [--data.shuffle_seed=7], rows: [{name: a, orders: [0, 1]}, {name: b}]}")
    read = Comparison.read(str(plan))
    assert [job.name for job in read.jobs] == ["a, order 0", "a, order 1", "b"]
    assert read.jobs[1].arguments == ("--data.shuffle_seed=7", "--data.shuffle_seed", "1")
    rows = read.in_rows([entry(outcome(job.name, 0.5, 0.5)) for job in read.jobs])
    assert [row["name"] for row in rows] == ["a", "b"]


def test_options_of_all_rows_win_over_the_files_of_one(tmp_path):
    row = {"name": "a", "arguments": ["--data.limit", None, "--config=b.yaml", "--config", "c.yaml"]}
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump({"arguments": ["--x", [0, 1], "-c", "a.yaml", "--y=true"], "rows": [row]}))
    [job] = Comparison.read(str(plan)).jobs
    assert " ".join(job.arguments) == (
        "-c a.yaml --config=b.yaml --config c.yaml --x [0, 1] --y=true --data.limit null"
    )
    assert [path.name for path in job.configurations()] == ["a.yaml", "b.yaml", "c.yaml"]


def test_a_row_may_be_without_common_options(tmp_path):
    plan = tmp_path / "plan.yaml"
    common = ["--stage_two.statistics.tokens=9", "--stage_two.norm_limit=null", "--stage_two.norm_limits=1"]
    row = {"name": "a", "without": ["--stage_two.statistics", "--stage_two.norm_limit"]}
    plan.write_text(yaml.safe_dump({"arguments": common, "rows": [row]}))
    assert Comparison.read(str(plan)).jobs[0].arguments == ("--stage_two.norm_limits=1",)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (None, "is missing: name a YAML file"),
        ("rows: [", "is not YAML"),
        ("[1]", "holds a list"),
        ("rows: []", "has no rows"),
        ("{rows: [{name: a}], row: 1}", "unknown 'row'"),
        ("rows: [a]", "row 1 of the plan is 'a'"),
        ("rows: [{arguments: []}]", "row 1 of the plan has the name None"),
        ("rows: [{name: ../a}]", "no slash"),
        ("rows: [{name: a}, {name: a}]", "named 'a'"),
        ("rows: [{name: a, args: []}]", "unknown 'args'"),
        ("rows: [{name: a, orders: [1]}]", "orders is .1.: it must be a list of two or more"),
        ("rows: [{name: a, orders: [1, 1]}]", "orders is"),
        ("rows: [{name: a, orders: 3}]", "orders is 3"),
        ("rows: [{name: a, orders: [0, 1]}, {name: 'a, order 1'}]", "named 'a, order 1'"),
        ("rows: [{name: a, without: norm_limit}]", "without is 'norm_limit'"),
        ("rows: [{name: a, arguments: -c x}]", "must be a list"),
        ("rows: [{name: a, arguments: [-c, nowhere.yaml]}]", "no configuration 'nowhere.yaml'"),
    ],
)
def test_a_bad_plan_says_what_is_wrong(plan, message, tmp_path):
    if plan is not None:
        (tmp_path / "plan.yaml").write_text(plan)
    with pytest.raises(SystemExit, match=message):
        main(["compare", "--plan", str(tmp_path / "plan.yaml"), "--output", str(tmp_path / "out")])
