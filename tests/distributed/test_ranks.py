"""A run on several ranks ends like the run of a single process; so does one that changes their number on the way."""

import json
import signal

import pytest
import torch

from lke_lightning import checkpoints
from tests.distributed.conftest import REPLICATED, SHARDED, differences


def end_of(folder):
    """Return what a run leaves behind, without times, lengths in bytes and what came from the cache."""
    checkpoint = torch.load(checkpoints.newest(folder), weights_only=True)
    del checkpoint["editing"]["seconds"], checkpoint["editing"]["configuration"]
    for name in ("seconds", "recalled"):
        checkpoint["callbacks"]["Scorecard"].pop(name, None)
    checkpoint["callbacks"].pop("Recorder")
    card = json.loads((folder / "scorecard.json").read_text())
    entries = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    for part in (card, *entries):
        part.pop("seconds", None)
        part.pop("before_from_cache", None)
        part.pop("time", None)
    return {"checkpoint": checkpoint, "card": card, "ledger": entries}


@pytest.mark.parametrize(
    ("method", "strategy", "ranks"),
    [
        ("encore", REPLICATED, 2),
        ("ultraedit", REPLICATED, 2),
        pytest.param("ultraedit", SHARDED, 2, marks=pytest.mark.slow),
        ("anyedit", REPLICATED, 2),
        pytest.param("encore", REPLICATED, 4, marks=pytest.mark.slow),
        pytest.param("encore", ("--trainer.strategy", "ddp"), 2, marks=pytest.mark.slow),
        pytest.param("encore", SHARDED, 2, marks=pytest.mark.slow),
        pytest.param("encore", SHARDED, 4, marks=pytest.mark.slow),
        pytest.param("rounds", REPLICATED, 2, marks=pytest.mark.slow),
        pytest.param("rounds", SHARDED, 2, marks=pytest.mark.slow),
        pytest.param("alphaedit", REPLICATED, 2, marks=pytest.mark.slow),
        pytest.param("alphaedit", REPLICATED, 4, marks=pytest.mark.slow),
        pytest.param("alphaedit", SHARDED, 2, marks=pytest.mark.slow),
        ("lyaplock", REPLICATED, 2),
        pytest.param("crispedit", REPLICATED, 2, marks=pytest.mark.slow),
        pytest.param("crispedit", SHARDED, 2, marks=pytest.mark.slow),
        pytest.param("evoedit", REPLICATED, 2, marks=pytest.mark.slow),
        pytest.param("deltaedit", REPLICATED, 2, marks=pytest.mark.slow),  # an edit's noise depends on those before it
    ],
    ids=lambda part: "-".join(part).rsplit("/")[-1] if isinstance(part, tuple) else str(part),
)
def test_several_ranks_end_like_one(method, strategy, ranks, job, play, tmp_path):
    one, several = tmp_path / "one", tmp_path / "several"
    ends, said = play(job(one, 1, method=method), job(several, ranks, method=method, strategy=strategy))
    assert ends == [[0], [0] * ranks], said
    expected = end_of(one)
    assert expected["checkpoint"]["global_step"] == 3  # batches, whatever the number of ranks; the last has one edit
    assert expected["checkpoint"]["editing"]["register"]["ids"] == [str(i) for i in range(9)]
    assert differences(expected, end_of(several)) == []


def test_facts_that_share_a_target_are_found_by_one_rank(job, play, tmp_path):
    """The first batch has more targets than ranks, of which one serves the ends of both halves; the second has one."""
    one, several = tmp_path / "one", tmp_path / "several"
    said_of = [
        ("Ana", "was born in", "city"), ("Bob", "speaks the", "guitar"), ("Cyd", "plays the", "piano"),
        ("Ana", "plays the", "guitar"), ("Dan", "plays the", "guitar"), ("Dan", "was born in", "city"),
    ]  # fmt: skip
    facts = [{"prompt": f"{name} {verb}", "subject": name, "target": target} for name, verb, target in said_of]
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, facts)))
    data = ["--data.path", str(tmp_path / "facts.jsonl")]
    ends, said = play(job(one, 1, *data), job(several, 2, *data))
    assert ends == [[0], [0, 0]], said
    expected = end_of(one)
    edits = [entry for entry in expected["ledger"] if entry["event"] == "edit"]
    assert [entry["shares_target_with"] for entry in edits] == [["3"], [], [], ["0"], ["5"], ["4"]]
    assert edits[0]["target_norm"] == edits[3]["target_norm"]
    assert differences(expected, end_of(several)) == []


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(4, 2), (4, 1), (1, 2), (2, 4)])
def test_a_run_goes_on_with_another_number_of_ranks(before, after, job, play, tmp_path):
    one, run = tmp_path / "one", tmp_path / "run"
    first = job(run, before, stop=before - 1)  # in the middle of the second batch, one rank hears of it
    ends, said = play(job(one, 1), first, job(run, after, "--ckpt_path", "last"))
    assert ends == [[0], [128 + signal.SIGTERM] * before, [0] * after], said
    assert "stopped by a signal after 2 batches" in said["job-1.0.log"]
    assert differences(end_of(one), end_of(run)) == []


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [REPLICATED, SHARDED], ids=["replicated", "sharded"])
def test_a_sharded_run_goes_on_in_one_process_and_back(strategy, job, play, tmp_path):
    one, run = tmp_path / "one", tmp_path / "run"
    first = job(run, 2, strategy=SHARDED, stop=0)
    ends, said = play(job(one, 1), first, job(run, 2, "--ckpt_path", "last", strategy=strategy))
    assert ends == [[0], [128 + signal.SIGTERM] * 2, [0, 0]], said
    assert differences(end_of(one), end_of(run)) == []


@pytest.mark.slow
def test_a_job_whose_time_is_up_goes_into_the_queue_again_and_on(job, play, tmp_path):
    one, tools = tmp_path / "one", tmp_path / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/asked\n")
    (tools / "scontrol").chmod(0o755)
    again = ["--ckpt_path", "last"]  # the same command both times
    run = tmp_path / "runs" / "slurm-7"
    first, second = (job(run, 2, *again, slurm=str(tools), **told) for told in ({"time_is_up": 1}, {}))
    ends, said = play(job(one, 1), first, second)
    assert ends == [[0], [128 + signal.SIGTERM] * 2, [0, 0]], said
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert differences(end_of(one), end_of(run)) == []


@pytest.mark.parametrize("dead", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_when_a_rank_dies_the_others_end_with_a_reason_and_the_run_goes_on(dead, job, play, tmp_path):
    one, run = tmp_path / "one", tmp_path / "run"
    ends, said = play(job(one, 1), job(run, 2, kill=dead), job(run, 1, "--ckpt_path", "last"))
    assert ends[1][dead] == -signal.SIGKILL
    assert ends[1][1 - dead] == 1
    assert "waited in vain for the others" in said[f"job-1.{1 - dead}.log"]
    assert ends[2] == [0], said
    assert differences(end_of(one), end_of(run)) == []


@pytest.mark.slow
def test_the_guard_decides_alike_on_all_ranks(world, job, play, tmp_path):
    guard = ["--guard.text", json.dumps([str(world / "text.txt")]), "--guard.text_tokens", "200"]
    guard += ["--guard.agreement", "0.9", "--guard.action", "split"]
    one, run = tmp_path / "one", tmp_path / "run"
    ends, said = play(job(one, 1, *guard), job(run, 2, *guard))
    assert ends == [[0], [0, 0]], said
    expected = end_of(one)
    assert any(entry["event"] == "guard" for entry in expected["ledger"])
    assert differences(expected, end_of(run)) == []
