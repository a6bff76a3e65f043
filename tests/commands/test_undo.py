"""`log`, `show`, `undo` and `redo` on a run made through the command line."""

import json
import shutil

import pytest
import torch

from lke_lightning import checkpoints, run_folder
from lke_lightning.cli import main
from lke_lightning.ledger import Ledger


def state(run):
    return checkpoints.read(checkpoints.newest(run))


def holding(run):
    register = state(run)["editing"]["register"]
    return [name for name, now in zip(register["ids"], register["states"], strict=True) if now == "in the weights"]


def deltas(run):
    return [value for name, value in state(run)["state_dict"].items() if name.endswith("delta")]


def entries_of(run, event):
    return [entry for entry in Ledger(run).read() if entry["event"] == event]


def refused(*args):
    with pytest.raises(SystemExit) as caught:
        main(list(map(str, args)))
    return str(caught.value)


def test_undo_and_redo_come_back_to_where_they_started(run, capsys):
    before = deltas(run)
    main(["undo", str(run), "--edit", "3", "5"])
    said = capsys.readouterr().out
    assert "2 edits: undo" in said
    now = deltas(run)
    assert all((one - other).norm() > 1e-3 * other.norm() for one, other in zip(now, before, strict=True))
    assert holding(run) == ["1", "2", "4", "6", "7", "8"]
    main(["redo", str(run), "--edit", "5", "3"])
    assert all((one - other).norm() < 1e-5 * other.norm() for one, other in zip(deltas(run), before, strict=True))
    events = [(entry["event"], entry["id"]) for entry in Ledger(run).read() if entry["event"] in ("undo", "redo")]
    assert events == [("undo", "3"), ("undo", "5"), ("redo", "5"), ("redo", "3")]


def test_statistics_that_are_gone_from_the_cache_are_read_as_before_the_edits(run, small_world, tmp_path):
    cache = small_world / "cache"
    before = {path: path.read_bytes() for path in cache.rglob("*.safetensors")}
    shutil.copytree(run, tmp_path / "again", symlinks=True)
    main(["undo", str(run), "--edit", "3"])
    for path in before:
        path.unlink()
    main(["undo", str(tmp_path / "again"), "--edit", "3"])
    after = {path: path.read_bytes() for path in cache.rglob("*.safetensors")}
    assert after
    assert after.items() <= before.items()  # other tests may have kept other statistics there
    assert all(torch.equal(one, other) for one, other in zip(deltas(run), deltas(tmp_path / "again"), strict=True))


def test_the_edit_before_comes_back(run, capsys):
    main(["undo", str(run), "--edit", "8"])
    assert holding(run) == ["0", "1", "2", "3", "4", "5", "6", "7"]
    main(["log", str(run), "--state", "undone", "--as_json", "true"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["id"] == "8"


def test_an_undone_run_goes_on(run, small_run, small_world, tmp_path):
    """Facts that were added to the data since are edited, and what is undone stays undone."""
    main(["undo", str(run), "--edit", "1"])
    more = (small_world / "facts.jsonl").read_text().splitlines()
    new = [{"prompt": "{} plays the", "subject": name, "target": "guitar"} for name in ("Bob", "Cyd", "Dan")]
    (tmp_path / "more.jsonl").write_text("\n".join([*more, *map(json.dumps, new)]))
    given = [*small_run, "--data.path", str(tmp_path / "more.jsonl"), "--trainer.default_root_dir", str(run)]
    main([*given, "--ckpt_path", "last"])
    batches = [[entry["id"] for entry in entries_of(run, "edit") if entry["batch"] == batch] for batch in range(7)]
    assert batches == [["0", "1"], ["2", "3"], ["4", "5"], ["6", "7"], ["8"], ["9", "10"], ["11"]]
    assert holding(run) == [str(i) for i in range(2, 12)]
    whole = deltas(run)
    main([*given, "--ckpt_path", "last"])  # nothing is left to do
    assert all(torch.equal(one, other) for one, other in zip(whole, deltas(run), strict=True))


def test_undo_from_an_earlier_checkpoint_is_refused(run):
    earlier = checkpoints.newest(run).with_name(checkpoints.file_name(4))
    assert "an older checkpoint was named" in refused("undo", earlier, "--edit", "3")
    assert holding(run) == [str(i) for i in range(1, 9)]


def test_log_of_a_cut_ledger_warns(run, capsys):
    path = Ledger(run).path
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    main(["log", str(run)])
    said = capsys.readouterr()
    assert "entries are missing" in said.err
    assert "Ana was born in the" in said.out


def test_what_cannot_be_is_refused_and_changes_nothing(run):
    before = (checkpoints.newest(run).read_bytes(), Ledger(run).path.read_bytes())
    assert "edit 8 states the same fact" in refused("undo", run, "--edit", "0")
    assert "no edit with the id 'x'" in refused("undo", run, "--edit", "2", "x")
    assert "in the weights already" in refused("redo", run, "--edit", "2")
    assert "neither a checkpoint nor the folder of a run" in refused("undo", run.parent, "--edit", "2")
    assert (checkpoints.newest(run).read_bytes(), Ledger(run).path.read_bytes()) == before


def test_a_death_between_ledger_and_checkpoint_is_mended(run, monkeypatch):
    before = deltas(run)

    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        main(["undo", str(run), "--edit", "3"])
    assert [entry["id"] for entry in Ledger(run).read() if entry["event"] == "undo"] == ["3"]
    monkeypatch.undo()
    main(["undo", str(run), "--edit", "4"])
    assert [entry["id"] for entry in Ledger(run).read() if entry["event"] == "undo"] == ["4"]
    main(["redo", str(run), "--edit", "4"])
    assert all((one - other).norm() < 1e-5 * other.norm() for one, other in zip(deltas(run), before, strict=True))


def test_a_method_without_memory_says_so(small_run, tmp_path):
    main([*small_run, "--stage_two.solver.init_args.past_edits", "null", "--data.limit", "2",
          "--trainer.default_root_dir", str(tmp_path)])  # fmt: skip
    assert "keeps no memory of past edits" in refused("undo", tmp_path, "--edit", "0")


def test_facts_that_share_a_target_are_undone_together(small_run, tmp_path):
    """Two facts of one subject in one batch, a third in a batch of its own."""
    facts = [("a", "Ana was born in the", "city"), ("b", "Ana plays the", "guitar"), ("c", "Ana speaks the", "piano")]
    lines = [{"id": i, "prompt": prompt, "subject": "Ana", "target": target} for i, prompt, target in facts]
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run = tmp_path / "run"
    main([*small_run, "--data.path", str(tmp_path / "facts.jsonl"), "--trainer.default_root_dir", str(run)])
    shared = {entry["id"]: entry["shares_target_with"] for entry in entries_of(run, "edit")}
    assert shared == {"a": ["b"], "b": ["a"], "c": []}
    before, made = deltas(run), checkpoints.newest(run).read_bytes()
    assert "edit a shares its target with b (one subject, one batch): undo them together" in refused(
        "undo", run, "--edit", "a"
    )
    assert checkpoints.newest(run).read_bytes() == made
    main(["undo", str(run), "--edit", "b", "a"])
    assert holding(run) == ["c"]
    assert "edit b shares its target with a (one subject, one batch): redo them together" in refused(
        "redo", run, "--edit", "b"
    )
    main(["redo", str(run), "--edit", "a", "b"])
    assert all((one - other).norm() < 1e-5 * other.norm() for one, other in zip(deltas(run), before, strict=True))


def test_log_filters_and_show_tells_all(finished, capsys):
    def listed(*options):
        main(["log", str(finished), "--as_json", "true", *options])
        return [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()]

    assert listed() == [str(i) for i in range(9)]
    assert listed("--batch", "1") == ["2", "3"]
    assert listed("--find", "fay") == ["5"]
    assert listed("--state", "replaced") == ["0"]
    assert listed("--last", "2") == ["7", "8"]
    failed = listed("--failed", "true")
    entries = {entry["id"]: entry for entry in Ledger(finished).read() if entry["event"] == "edit"}
    assert failed == [name for name, entry in entries.items() if not entry["success_just_after"]]
    main(["show", str(finished), "8"])
    said = capsys.readouterr().out
    assert "replaces" in said
    assert "in the weights" in said
    assert "no edit '99'" in refused("show", finished, "99")
    assert "not the folder of a run" in refused("log", finished.parent)
    main(["log", str(finished)])
    assert "Ana was born in the → guitar" in capsys.readouterr().out


def test_rows_of_the_memory_are_those_the_ledger_names(finished):
    saved = state(finished)
    memory, register = saved["callbacks"]["WeightUpdate"], saved["editing"]["register"]
    entries = [entry for entry in Ledger(finished).read() if entry["event"] == "edit"]
    assert [register["ids"][entry["number"]] for entry in entries] == [entry["id"] for entry in entries]
    assert all(len(layer["keys"]) == len(entries) for layer in memory["memory"].values())
    assert all(torch.isfinite(torch.tensor([entry["loss"], entry["first_loss"]])).all() for entry in entries)
    assert entries[-1]["replaces"] == "0"
