"""What is run again and what is not; the processes are stood in for by small scripts."""

import json
import sys

import pytest

from lke_lightning.edits import EditError
from lke_lightning.sweeps import runs
from lke_lightning.sweeps.runs import Job, carry_out_all

FIT = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[-1])
print("working\\n" * 40)
if "bad" in sys.argv:
    sys.exit("this went wrong")
(folder / "scorecard.json").write_text(json.dumps({"count": len(list(folder.glob("*"))), "seen": sys.argv[1:]}))
"""


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr(runs, "call", lambda *arguments: [sys.executable, "-c", FIT, *arguments])


def test_a_failure_stops_no_other_and_done_runs_stay_done(tmp_path):
    reports = []
    two = [Job("bad", ("bad",)), Job("good", ("--x", "1"))]
    first = carry_out_all(two, tmp_path, lambda outcomes: reports.append([o.status for o in outcomes]))
    assert reports == [["waiting", "waiting"], ["failed", "waiting"], ["failed", "done"]]
    assert first[0].error.endswith("this went wrong\nIt ended with exit code 1.")
    assert len(first[0].error.splitlines()) == runs.TAIL + 1
    assert first[1].card["seen"][-4:] == ["--x", "1", "--trainer.default_root_dir", str(tmp_path / "good")]
    assert (tmp_path / "good" / "log.txt").read_text().startswith("working")
    (tmp_path / "good" / "log.txt").write_text("kept")
    again = carry_out_all(two, tmp_path, lambda _: None)
    assert [outcome.status for outcome in again] == ["failed", "done"]
    assert (tmp_path / "good" / "log.txt").read_text() == "kept"


def test_other_arguments_or_another_configuration_run_again(tmp_path):
    config = tmp_path / "a.yaml"
    config.write_text("a: 1")
    job = Job("row", ("-c", str(config)))
    carry_out_all([job], tmp_path, lambda _: None)
    (tmp_path / "row" / "checkpoints").mkdir()
    for changed in (Job("row", ("-c", str(config), "more")), job):
        config.write_text("a: 2")
        (tmp_path / "row" / "log.txt").write_text("before")
        carry_out_all([changed], tmp_path, lambda _: None)
        assert (tmp_path / "row" / "log.txt").read_text() != "before"
        assert not (tmp_path / "row" / "checkpoints").exists()
    assert json.loads((tmp_path / "row" / "done.json").read_text())["arguments"] == ["-c", str(config)]


def test_an_interrupted_run_is_continued(tmp_path):
    bad = Job("row", ("bad",))
    carry_out_all([bad], tmp_path, lambda _: None)
    kept = [tmp_path / "row" / name for name in ("checkpoints", "ledger.jsonl", "downstream.json")]
    for path in kept:
        path.mkdir() if path.name == "checkpoints" else path.write_text("{}")
    carry_out_all([bad], tmp_path, lambda _: None)
    assert all(path.exists() for path in kept)
    [outcome] = carry_out_all([Job("row", ("good",))], tmp_path, lambda _: None)
    assert outcome.status == "done"
    assert not any(path.exists() for path in kept)


def test_a_run_begins_with_its_own_checkpoint_and_goes_on_with_its_newest(tmp_path, monkeypatch):
    monkeypatch.setattr(
        runs, "call", lambda *arguments: [sys.executable, "-c", "import sys; print(sys.argv)", *arguments]
    )
    (job, checkpoint), seen = (Job("row", ("--ckpt_path", "other.ckpt")), tmp_path / "row/checkpoints"), []
    for _ in range(2):
        carry_out_all([job], tmp_path, lambda _: None)
        seen.append("'last'" in (tmp_path / "row" / "log.txt").read_text())
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / "batch-000001.ckpt").touch()
    assert seen == [False, True]


def test_a_missing_configuration_stops_before_anything_runs(tmp_path):
    with pytest.raises(EditError, match=r"late: no configuration 'nowhere\.yaml'"):
        carry_out_all([Job("early", ()), Job("late", ("--config=nowhere.yaml",))], tmp_path, lambda _: None)
    assert not (tmp_path / "early").exists()
