"""What a service meets in months: full disks, signals, bad numbers, second processes, changed settings."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lke_lightning import checkpoints
from lke_lightning.cli import main
from lke_lightning.ledger import locked
from tests.faults.kills import differences, end_of

ROOT = Path(__file__).parents[2]


def fit(arguments, folder, *more):
    main([*arguments, *more, "--trainer.default_root_dir", str(folder)])


def refused(arguments, folder, *more):
    with pytest.raises(SystemExit) as caught:
        fit(arguments, folder, *more)
    return str(caught.value)


@pytest.fixture(scope="module")
def whole(small_run, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    fit(small_run, folder)
    return folder


@pytest.fixture
def stopped(whole, tmp_path):
    """A run that was killed after its last but one batch."""
    shutil.copytree(whole, tmp_path / "run")
    checkpoints.newest(tmp_path / "run").unlink()
    return tmp_path / "run"


def command(arguments, folder, *more):
    given = [*arguments, *more, "--trainer.default_root_dir", str(folder)]
    return [sys.executable, "-m", "lke_lightning", *given]


def test_sigterm_stops_after_the_batch_with_a_checkpoint(small_run, whole, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command(small_run, tmp_path / "run", "--checkpoint.every_n_train_steps", "0"),
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("batch 1/5"):
                process.send_signal(signal.SIGTERM)
        code = process.wait()
    assert code == 128 + signal.SIGTERM, said
    assert "stopped by a signal" in said
    assert 1 <= checkpoints.read(checkpoints.newest(tmp_path / "run"))["global_step"] < 5
    fit(small_run, tmp_path / "run", "--ckpt_path", "last")
    assert differences(end_of(whole), end_of(tmp_path / "run")) == []


def test_a_second_process_is_kept_out(small_run, whole):
    with locked(whole):
        assert "another process is editing" in refused(small_run, whole, "--ckpt_path", "last")


def test_a_folder_with_a_run_is_not_written_over(small_run, whole):
    before = end_of(whole)
    assert "continue it with --ckpt_path last" in refused(small_run, whole)
    assert differences(before, end_of(whole)) == []


def test_a_run_is_not_forked_into_the_folder_of_another(small_run, whole, stopped):
    message = refused(small_run, whole, "--ckpt_path", str(stopped))
    assert "is of another" in message


def test_a_finished_run_stays_as_it_is(small_run, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    fit(small_run, tmp_path / "run", "--ckpt_path", "last")
    assert differences(end_of(whole), end_of(tmp_path / "run")) == []


def test_another_method_model_or_stream_is_refused_with_the_difference(small_run, small_world, stopped, tmp_path):
    again = ("--ckpt_path", "last")
    weight = "stage_two.solver.init_args.preservation"
    message = refused(small_run, stopped, *again, "--stage_one.lr", "0.123")
    assert "stage_one.lr: " in message
    assert "0.123 now" in message
    penalty = "[{class_path: NormPenalty, init_args: {weight: 3.5}}]"
    assert weight in refused(small_run, stopped, *again, f"--{weight}", penalty)
    assert "layers [0, 1]" in refused(small_run, stopped, *again, "--model.layers", "[1]")
    assert "data.batch_size is 3" in refused(small_run, stopped, *again, "--data.batch_size", "3")
    facts = [json.loads(line) for line in (small_world / "facts.jsonl").read_text().splitlines()]
    facts[3]["target"] = "piano"
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, facts)))
    other = refused(small_run, stopped, *again, "--data.path", str(tmp_path / "other.jsonl"))
    assert "request 4 of JsonLines" in other
    assert "Dan was born in the" in other
    assert "read 8 requests" in refused(small_run, stopped, *again, "--data.limit", "5")
    network = AutoModelForCausalLM.from_pretrained(small_world / "model")
    shutil.copytree(small_world / "model", tmp_path / "model")
    with torch.no_grad():
        network.get_output_embeddings().weight[0, 0] += 1
    network.save_pretrained(tmp_path / "model")
    assert "another base model" in refused(small_run, stopped, *again, "--model.pretrained", str(tmp_path / "model"))
    tokens = refused(small_run, stopped, *again, "--stage_two.statistics.tokens", "1500")
    assert "stage_two.statistics.init_args.tokens: 2000 in the checkpoint, 1500 now" in tokens


def test_a_run_that_an_earlier_version_began_goes_on(small_run, whole, stopped):
    """It knew absolute strengths alone, and noted nothing of them but the configuration."""
    path = checkpoints.newest(stopped)
    held = torch.load(path, weights_only=True)
    stages = held["editing"]["configuration"]
    del stages["stage_one"]["relative_lr"]
    for term in stages["stage_two"]["solver"]["init_args"]["preservation"]:
        term["init_args"] = {"weight": term["init_args"]["weight"]}
    for memory in held["callbacks"]["WeightUpdate"]["memory"].values():
        del memory["strength"]
    torch.save(held, path)
    fit(small_run, stopped, "--ckpt_path", "last", "--stage_one.relative_lr", "0.5")  # of no effect beside an lr
    ends = [checkpoints.read(checkpoints.newest(folder)) for folder in (whole, stopped)]
    assert ends[0]["state_dict"].keys() == ends[1]["state_dict"].keys()
    assert all(torch.equal(value, ends[1]["state_dict"][name]) for name, value in ends[0]["state_dict"].items())
    cards = [json.loads((folder / "scorecard.json").read_text()) for folder in (whole, stopped)]
    assert cards[1]["strengths"] == {}
    assert cards[1]["final"] == cards[0]["final"]


def test_a_moved_model_and_settings_without_effect_are_no_difference(small_run, small_world, whole, stopped, tmp_path):
    shutil.copytree(small_world / "model", tmp_path / "moved")
    fit(
        small_run, stopped, "--ckpt_path", "last", "--model.pretrained", str(tmp_path / "moved"),
        "--stage_one.max_tokens", "9999", "--stage_two.keep_on_host", "true", "--stage_two.norm_limit", "9",
        "--stage_one.site", "block",  # what this model's structure says
    )  # fmt: skip
    found = differences(end_of(whole), end_of(stopped))
    assert {path.split("/")[-1] for path in found} <= {
        "model",
        "pretrained",
        "max_tokens",
        "keep_on_host",
        "norm_limit",
        "site",
        "configuration",
    }
    assert not any("state_dict" in path or "WeightUpdate" in path or "ledger" in path for path in found)


def test_a_run_goes_on_bit_for_bit_where_the_cache_is_gone(small_run, small_world, whole, stopped):
    cache = small_world / "cache"
    before = {path: path.read_bytes() for path in cache.rglob("*.safetensors")}
    for path in before:
        path.unlink()
    fit(small_run, stopped, "--ckpt_path", "last")
    assert differences(end_of(whole), end_of(stopped)) == []
    after = {path: path.read_bytes() for path in cache.rglob("*.safetensors")}
    assert after
    assert after.items() <= before.items()  # other tests may have kept other statistics there


def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_works(small_run, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    newest = checkpoints.newest(tmp_path / "run")
    newest.write_bytes(newest.read_bytes()[:-1000])
    message = refused(small_run, tmp_path / "run", "--ckpt_path", "last")
    assert "damaged" in message
    earlier = message.rsplit("--ckpt_path ", 1)[1]
    fit(small_run, tmp_path / "run", "--ckpt_path", earlier)
    assert differences(end_of(whole), end_of(tmp_path / "run")) == []


def test_a_folder_that_cannot_be_written_is_said_at_once(small_run, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write into" in refused(small_run, tmp_path / "file" / "run")


def in_a_small_disk(size, script, place):
    """Run a shell script with a tiny file system mounted at a place, or skip where that is not allowed."""
    place.mkdir()
    inside = f"mount -t tmpfs -o size={size} tmpfs {place} && {script}"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", inside],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("this machine lets no test mount a file system")
    return done


def test_a_full_disk_loses_nothing(small_run, whole, tmp_path):
    """The disk fills up in the middle of the run; with room again it goes on to the same end."""
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    run = " ".join(f"'{part}'" for part in command(small_run, disk / "run"))
    done = in_a_small_disk("300k", f"({run}; echo code $?; cp -r {disk}/run {copy})", disk)
    assert "code 1" in done.stdout
    assert "Traceback" not in done.stderr
    assert "cannot write" in done.stderr
    assert "No space left" in done.stderr
    fit(small_run, copy, "--ckpt_path", "last")
    assert differences(end_of(whole), end_of(copy)) == []


def test_a_request_without_finite_numbers_is_left_out_and_the_others_go_on(small_run, small_world, tmp_path):
    """All weights are finite; what the first block makes of one subject, whose token alone uses a direction, is not."""
    from transformers import AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(small_world / "model")
    tokenizer = AutoTokenizer.from_pretrained(small_world / "model")
    [broken] = set(tokenizer("Gus")["input_ids"]) - set(
        tokenizer("Ana Bob Cyd Dan Eve Fay Hal was born in the river city guitar is a")["input_ids"]
    ) or [None]
    assert broken is not None
    with torch.no_grad():
        embedding, block = network.get_input_embeddings().weight, network.model.layers[0]
        embedding[:, 0] = 0
        embedding[broken, 0] = 1
        block.self_attn.o_proj.weight[0] = 0
        block.mlp.gate_proj.weight[:, 0] = block.mlp.up_proj.weight[:, 0] = 1e30
    network.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text((small_world / "text.txt").read_text().replace("Gus", "Ana"))
    fit(
        small_run, tmp_path / "run", "--model.pretrained", str(tmp_path / "model"),
        "--stage_two.statistics.corpus", str(tmp_path / "text.txt"),
    )  # fmt: skip
    entries = [json.loads(line) for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()]
    [left_out] = [entry for entry in entries if entry["event"] == "left_out"]
    assert left_out["subject"] == "Gus"
    assert "no finite numbers" in left_out["reason"]
    assert [entry["id"] for entry in entries if entry["event"] == "edit"] == ["0", "1", "2", "3", "4", "5", "7", "8"]
    checkpoint = checkpoints.read(checkpoints.newest(tmp_path / "run"))
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    [batch] = [entry for entry in entries if entry["event"] == "batch" and entry["batch"] == 3]
    assert (batch["edits"], batch["left_out"]) == (1, 1)


def test_a_poisoned_record_is_named_before_anything_is_edited(small_run, small_world, tmp_path):
    lines = (small_world / "facts.jsonl").read_text().splitlines()
    lines[5] = json.dumps({"prompt": "{} was born in the", "subject": "Fay", "target": " "})
    (tmp_path / "facts.jsonl").write_text("\n".join(lines))
    message = refused(small_run, tmp_path / "run", "--data.path", str(tmp_path / "facts.jsonl"))
    assert "'target' is empty" in message
    assert "6" in message or "5" in message
    assert checkpoints.newest(tmp_path / "run") is None


def test_a_clock_that_jumps_changes_nothing_but_the_times(small_run, whole, tmp_path, monkeypatch):
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: 1e9 - 1e5 * next(jumps))
    fit(small_run, tmp_path / "run")
    assert differences(end_of(whole), end_of(tmp_path / "run")) == []
