"""A comparison through the command line, and plans that are none."""

import json

import pytest
import yaml

from lke_lightning.cli import main
from lke_lightning.sweeps.compare import Comparison


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


def test_options_of_all_rows_win_over_the_files_of_one(tmp_path):
    row = {"name": "a", "arguments": ["--data.limit", None, "--config=b.yaml", "--config", "c.yaml"]}
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump({"arguments": ["--x", [0, 1], "-c", "a.yaml", "--y=true"], "rows": [row]}))
    [job] = Comparison.read(str(plan)).jobs
    assert " ".join(job.arguments) == (
        "-c a.yaml --config=b.yaml --config c.yaml --x [0, 1] --y=true --data.limit null"
    )
    assert [path.name for path in job.configurations()] == ["a.yaml", "b.yaml", "c.yaml"]


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
        ("rows: [{name: a, arguments: -c x}]", "must be a list"),
        ("rows: [{name: a, arguments: [-c, nowhere.yaml]}]", "no configuration 'nowhere.yaml'"),
    ],
)
def test_a_bad_plan_says_what_is_wrong(plan, message, tmp_path):
    if plan is not None:
        (tmp_path / "plan.yaml").write_text(plan)
    with pytest.raises(SystemExit, match=message):
        main(["compare", "--plan", str(tmp_path / "plan.yaml"), "--output", str(tmp_path / "out")])
