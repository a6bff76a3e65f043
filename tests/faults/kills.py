"""Kills runs at chosen moments, continues them, and reports how they ended. Run as a script by test_kills.py.

Everything is imported once; each run is a fork, which dies by SIGKILL when the counter of the places below reaches its
number. Places are where a run has something half done: a step of stage one, the solve and the write of a layer, an
evaluation, the bytes of a checkpoint or of the ledger, a rename.
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import torch

import lke_lightning.fitting  # noqa: F401 - imported before the forks
from lke_lightning import checkpoints, ledger, results
from lke_lightning.callbacks import measuring, scorecard
from lke_lightning.cli import main
from lke_lightning.model.weights import EditedWeight
from lke_lightning.stage_one.packed import PackedRows
from lke_lightning.stage_two.solvers import LeastSquares


class Counter:
    """Counts the places that a run passes, and kills the process at one of them."""

    def __init__(self, kill_at=None):
        self.kill_at, self.passed = kill_at, []

    def at(self, place, half_done=lambda: None):
        self.passed.append(place)
        if len(self.passed) == self.kill_at:
            half_done()
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self):
        for owner, name in (
            (PackedRows, "predict"),
            (LeastSquares, "compute"),
            (EditedWeight, "add"),
            (measuring, "score"),
            (results.os, "replace"),
            (results.os, "fsync"),
        ):
            self._before(owner, name)
        save, append = torch.save, ledger.Ledger.append

        def saved_in_two_parts(checkpoint, file):
            whole = io.BytesIO()
            save(checkpoint, whole)
            data = whole.getvalue()
            file.write(data[: len(data) // 2])
            self.at("half a checkpoint", file.flush)
            file.write(data[len(data) // 2 :])

        def appended_in_two_parts(book, entries):
            entries = list(entries)
            line = json.dumps(entries)
            self.at("half an entry", lambda: book.path.open("a").write(line[: len(line) // 2]))
            append(book, entries)

        checkpoints.torch.save, ledger.Ledger.append = saved_in_two_parts, appended_in_two_parts

    def _before(self, owner, name):
        original = getattr(owner, name)

        def counted(*args, **kwargs):
            self.at(name)
            return original(*args, **kwargs)

        setattr(owner, name, counted)


def fit(arguments, folder, kill_at=None):
    """Run `fit` in a fork; return the places it passed, or `None` if it was killed."""
    places = folder.with_name(folder.name + ".places.json")
    child = os.fork()
    if child == 0:
        log = folder.with_name(folder.name + ".log").open("a")
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            counter = Counter(kill_at)
            counter.install()
            code = 0
            try:
                main([*arguments, "--trainer.default_root_dir", str(folder)])
            except SystemExit as error:
                print(error)
                code = 3
            places.write_text(json.dumps(counter.passed))
            log.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    if status:
        log = folder.with_name(folder.name + ".log").read_text()
        raise RuntimeError(f"a run ended with status {status}:\n{log[-3000:]}")
    return json.loads(places.read_text())


def differences(one, other, path=""):
    """Name what differs between two trees of tensors and plain values, bit by bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted({*one, *other}, key=str)
        return [d for key in keys for d in differences(one.get(key), other.get(key), f"{path}/{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [d for i, pair in enumerate(zip(one, other, strict=True)) for d in differences(*pair, f"{path}/{i}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        return [] if same and torch.equal(one.nan_to_num(nan=0.125), other.nan_to_num(nan=0.125)) else [path]
    return [] if one == other or (one != one and other != other) else [path]


def end_of(folder):
    """Return all that a run leaves behind, without times and what came from the cache."""
    checkpoint = torch.load(checkpoints.newest(folder), weights_only=True)
    del checkpoint["editing"]["seconds"]
    for name in ("seconds", "recalled"):
        checkpoint["callbacks"]["Scorecard"].pop(name, None)
    checkpoint["callbacks"].pop("Recorder")  # a length in bytes, times included
    card = json.loads((folder / "scorecard.json").read_text())
    entries = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    for part in (card, *entries):
        part.pop("seconds", None)
        part.pop("before_from_cache", None)
        part.pop("time", None)
    return {"checkpoint": checkpoint, "card": card, "ledger": entries}


def kill_and_compare(arguments, folder, points, seed):
    """Kill a run at random points, once each, and one run again and again; return what differs, by point."""
    chance = random.Random(seed)
    fit(arguments, folder / "first")  # computes the key statistics, which the others find in their cache
    whole = folder / "whole"
    places = fit(arguments, whole)
    expected = end_of(whole)
    kinds = sorted(set(places))
    # every kind of place first, then anywhere
    numbers = [chance.choice([i + 1 for i, place in enumerate(places) if place == kind]) for kind in kinds]
    anywhere = chance.sample(range(1, len(places) + 1), len(places))
    numbers = list(dict.fromkeys(chance.sample(numbers, len(numbers)) + anywhere))[:points]
    found = {}
    for number in numbers:
        run = folder / f"killed-{number}"
        if fit(arguments, run, number) is not None:
            raise RuntimeError(f"the run was not killed at {number}")
        fit([*arguments, "--ckpt_path", "last"], run)
        found[f"{number} of {len(places)}, {places[number - 1]}"] = differences(expected, end_of(run))
        shutil.rmtree(run)
    run, killed = folder / "again", 0
    while fit([*arguments, "--ckpt_path", "last"], run, chance.randrange(len(places) // 4, len(places))) is None:
        killed += 1
    found[f"again and again, {killed} times"] = differences(expected, end_of(run))
    return {"places": len(places), "killed_again": killed, "differences": found}


if __name__ == "__main__":
    torch.set_num_threads(1)  # a fork of a process with threads would hang
    scorecard.WRITE_EVERY, scorecard.WRITING_SHARE = 0.0, float("inf")  # so that all runs pass the same places
    given = json.loads(sys.argv[1])
    report = kill_and_compare(given["arguments"], Path(given["folder"]), given["points"], given["seed"])
    print(json.dumps(report))
