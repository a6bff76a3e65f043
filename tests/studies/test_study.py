"""A study on a tiny model and its page; the rules by which claims hold; the plans that are shipped."""

import json
import runpy
from pathlib import Path

import pytest
import yaml

from lke_lightning import studies
from lke_lightning.cli import main
from lke_lightning.studies.page import page
from lke_lightning.sweeps.compare import Comparison

STUDIES = sorted(Path("configs/study").glob("*.yaml"))


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.json"
    path.write_text(json.dumps([{"Text": "Ana guitar river"}, {"Text": "the city was born"}]))
    return str(path)


def test_a_study_runs_ends_in_a_page_and_is_not_repeated(small_run, small_world, texts, tmp_path, capsys):
    rows = [
        {"name": "ROME", "command": "singly", "arguments": ["--text", texts, "--ruined", "1.001"]},
        {"name": "ROME, hard", "arguments": [
            "--data.path=$OUTPUT/ROME/hard.jsonl", f"--scorecard.text=[{small_world / 'text.txt'}]",
        ]},
    ]  # fmt: skip
    plan, output = tmp_path / "tiny.yaml", tmp_path / "out"
    plan.write_text(yaml.safe_dump({"study": "Butterfly", "about": "Tiny.", "arguments": small_run[1:], "rows": rows}))
    given = ["study", str(plan), "--output", str(output), "--options", "data.limit=3", "data.batch_size=1"]
    main(given)
    said = capsys.readouterr().out
    assert "Can one edit ruin a model?" in said
    assert "2 runs. Tiny." in said
    result = json.loads((output / "study.json").read_text())
    single, hard = result["rows"]
    assert (single["status"], hard["status"]) == ("done", "done")
    assert single["facts"]["edits"] == 3
    assert hard["facts"]["edits"] == single["facts"]["ruined"] > 0
    text = (output / "tiny.md").read_text()
    for claim in studies.Butterfly().claims({row["name"]: row["facts"] for row in result["rows"]}):
        assert f"**{claim.verdict.capitalize()}.** {claim.says} {claim.found}" in text
    assert (output / "tiny.svg").read_text().startswith("<?xml")
    assert page(studies.Butterfly(), result, "tiny.svg", "study.json") == text  # from the file alone
    main(given)
    assert "ROME: already done" in capsys.readouterr().out


def single(ruined, worst, edits=10):
    return {
        "edits": edits,
        "before": 50.0,
        "median": 51.0,
        "worst": worst,
        "above": 100.0,
        "ruined": ruined,
        "efficacy": 1.0,
    }


def sequence(final):
    return {"edits": 3, "perplexity": {"before": 20.0, "final": final}, "S": 0.5}


@pytest.mark.parametrize(
    ("rows", "verdicts"),
    [
        ({}, ["not measured"] * 3),
        ({"ROME": single(4, 5000.0), "ENCORE": single(0, 60.0)}, ["holds", "holds", "not measured"]),
        ({"ROME": single(1, 300.0), "MEMIT": single(1, 200.0)}, ["partly", "does not hold", "not measured"]),
        ({"ROME": single(0, 60.0)}, ["does not hold", "not measured", "not measured"]),
        ({"a": sequence(41.0), "b": sequence(float("nan"))}, ["not measured", "not measured", "holds"]),
        ({"a": sequence(41.0), "b": sequence(21.0)}, ["not measured", "not measured", "partly"]),
    ],
)
def test_when_one_edit_ruins_a_model(rows, verdicts):
    assert [claim.verdict for claim in studies.Butterfly().claims(rows)] == verdicts


def scored(forced, free, width=0.05):
    return {
        "edits": 9, "way": "in batches", "teacher_forced": forced, "prefix": free, "exact": free,
        "teacher_forced_bounds": [forced - width, forced + width], "prefix_bounds": [free - width, free + width],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "verdicts"),
    [
        ({}, ["not measured", "not measured"]),
        ({"a": scored(0.9, 0.5), "b": scored(0.9, 0.85), "c": scored(0.9, 0.6)}, ["holds", "not measured"]),
        ({"a": scored(0.9, 0.5), "b": scored(0.9, 0.85)}, ["partly", "not measured"]),
        ({"a": scored(0.9, 0.88), "a, alone": scored(0.9, 0.89)}, ["does not hold", "does not hold"]),
        ({"a": scored(0.9, 0.6), "a, alone": scored(0.9, 0.89)}, ["partly", "holds"]),
    ],
)
def test_how_much_success_is_left(rows, verdicts):
    assert [claim.verdict for claim in studies.Mirage().claims(rows)] == verdicts


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_plans_are_whole(path, tmp_path):
    given = yaml.safe_load(path.read_text())
    assert issubclass(getattr(studies, given.pop("study")), studies.Study)
    assert given.pop("about")
    for job in Comparison.of(given, "the plan", folder=tmp_path).jobs:
        job.check()
        assert not any("$" in part for part in job.arguments)


def test_what_is_no_study_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"no study 'butter': there are butterfly, mirage"):
        main(["study", "butter"])
    (tmp_path / "x.yaml").write_text("study: Comparison\nrows: []\n")
    with pytest.raises(SystemExit, match="name of a class of lke_lightning"):
        main(["study", str(tmp_path / "x.yaml")])
    plan = {"rows": [{"name": "a", "command": "singly"}]}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(SystemExit, match="`study` takes such plans"):
        main(["compare", "--plan", str(tmp_path / "plan.yaml")])
    plan["rows"][0]["command"] = "tune"
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(SystemExit, match="it may be fit or singly"):
        main(["compare", "--plan", str(tmp_path / "plan.yaml")])


def test_the_pages_are_those_of_the_result_files():
    made = runpy.run_path("docs/studies.py")["written"]()
    assert made.keys() == {path.name for path in Path("docs/studies").iterdir()}
    for name, content in made.items():
        if name.endswith(".md"):  # the drawings differ by the version of matplotlib
            assert content == Path("docs/studies", name).read_bytes(), "run python docs/studies.py"
