"""A killed run, continued, ends bit for bit like one that was never killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("points", "seed"), [(7, 0), pytest.param(36, 1, marks=pytest.mark.slow)], ids=["quick", "everywhere"]
)
def test_a_killed_run_ends_like_the_uninterrupted_one(points, seed, small_run, tmp_path):
    evaluated = [*small_run, "--trainer.val_check_interval", "2", "--trainer.check_val_every_n_epoch", "null",
                 "--scorecard.generated", "true", "--scorecard.generated_tokens", "3"]  # fmt: skip
    given = {"arguments": evaluated, "folder": str(tmp_path), "points": points, "seed": seed}
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.kills", json.dumps(given)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["killed_again"] >= 1
    assert len(report["differences"]) == points + 1
    assert {point: differing for point, differing in report["differences"].items() if differing} == {}
