"""The small world of the fault tests, in float64: what differs between numbers of ranks is rounding alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lke_lightning.testing import WORDS, tiny_network, tiny_tokenizer

ROOT = Path(__file__).parents[2]
NAMES = ["Ana", "Bob", "Cyd", "Dan", "Eve", "Fay", "Gus", "Hal"]
REPLICATED, SHARDED = ("-c", "configs/trainer/ddp.yaml"), ("-c", "configs/trainer/fsdp2.yaml")
METHODS = {
    "ultraedit": ["-c", "configs/method/ultraedit.yaml", "--stage_one.warm_up", "3"],
    "encore": ["-c", "configs/method/encore.yaml", "-c", "tests/conf/tiny.yaml"],
    "rounds": [
        "-c", "configs/method/encore.yaml", "-c", "tests/conf/tiny.yaml", "--stage_two.placement", "LeastChange",
        "--stage_two.repeat.rounds", "2", "--stage_two.repeat.tolerance", "0",
    ],
    "alphaedit": [
        "-c", "configs/method/alphaedit.yaml", "--stage_two.solver.init_args.null_space.threshold", "0.3",
        "--stage_one.max_steps", "10",
    ],
    "anyedit": [
        "-c", "configs/method/anyedit.yaml", "--stage_one.max_steps", "5", "--stage_two.norm_limit", "null",
        "--stage_one.expansion.init_args.width", "1",
    ],
    "deltaedit": [
        "-c", "configs/method/deltaedit.yaml", "--stage_two.solver.init_args.null_space.threshold", "0.3",
        "--stage_one.space.init_args.trigger.after", "4", "--stage_one.space.init_args.trigger.deviation", "0.1",
        "--stage_one.max_steps", "10",
    ],
    "lyaplock": [  # with a queue that moves, and a key filter
        "-c", "configs/method/lyaplock.yaml", "--stage_two.solver.init_args.budget", "1.0",
        "--stage_two.key_filter.energy", "0.4", "--stage_one.max_steps", "5", "--stage_two.norm_limit", "null",
    ],
    "crispedit": ["-c", "configs/method/crispedit.yaml", "--stage_two.epochs", "4", "--stage_two.order.size", "3"],
    "evoedit": [
        "-c", "configs/method/evoedit.yaml", "--stage_two.solver.init_args.null_space.share", "0.5",
        "--stage_one.max_steps", "5", "--stage_two.norm_limit", "null",
    ],
}  # fmt: skip


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A tiny model, nine facts of which the last states the first one's anew, and text."""
    folder = tmp_path_factory.mktemp("ranks")
    texts = [f"{name} {word}" for name in NAMES for word in WORDS]
    tiny_network("llama").save_pretrained(folder / "model")
    tiny_tokenizer(texts).save_pretrained(folder / "model")
    facts = [
        {
            "prompt": f"{name} was born in the", "subject": name, "target": target, "original": "river",
            "paraphrases": [f"The city of {name} is the"],
        }
        for name, target in zip([*NAMES, "Ana"], ["city", "guitar"] * 4 + ["guitar"], strict=True)
    ]  # fmt: skip
    (folder / "facts.jsonl").write_text("\n".join(map(json.dumps, facts)))
    (folder / "text.txt").write_text("\n".join(" ".join(texts[i:] + texts[:i]) for i in range(0, 40, 2)))
    return folder


@pytest.fixture(scope="session")
def job(world):
    """Make a job for `ranks.py`: batches of 4, 4 and 1 edits, the last fewer than there are ranks."""

    def make(out, ranks, *more, method="encore", strategy=REPLICATED, **signals):
        arguments = [
            "fit", *METHODS[method], *(strategy if ranks > 1 else ()),
            "--model.pretrained", str(world / "model"), "--model.dtype", "float64", "--model.layers", "[0,1]",
            "--data", "JsonLines", "--data.path", str(world / "facts.jsonl"), "--data.batch_size", "4",
            "--stage_two.statistics", "KeyStatistics", "--stage_two.statistics.corpus", str(world / "text.txt"),
            "--stage_two.statistics.tokens", "2000", "--stage_two.statistics.cache_dir", str(out) + "-cache",
            "--checkpoint.every_n_train_steps", "1", "--checkpoint.keep", "-1",
            "--trainer.accelerator", "cpu", "--trainer.devices", str(ranks), "--trainer.enable_progress_bar", "false",
            "--trainer.default_root_dir", str(out), *more,
        ]  # fmt: skip
        return {"arguments": arguments, "ranks": ranks, **signals}

    return make


@pytest.fixture(scope="session")
def play(tmp_path_factory):
    """Run jobs one after the other; return how their ranks ended, and the folder of what they said."""

    def run(*jobs):
        folder = tmp_path_factory.mktemp("logs")
        done = subprocess.run(
            [sys.executable, "-m", "tests.distributed.ranks", json.dumps({"jobs": jobs, "logs": str(folder / "job")})],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=900,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        said = {path.name: path.read_text() for path in sorted(folder.glob("*.log"))}
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1]), said

    return run


def differences(one, other, tolerance=1e-8, path=""):
    """Name what differs between two trees of tensors and plain values by more than rounding."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted({*one, *other}, key=str)
        return [d for key in keys for d in differences(one.get(key), other.get(key), tolerance, f"{path}/{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, pair in pairs for d in differences(*pair, tolerance, f"{path}/{i}")]
    if isinstance(one, float) and isinstance(other, float):
        one, other = torch.tensor(one), torch.tensor(other)
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        if same and one.is_floating_point():
            same = torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)
        return [] if same and (one.is_floating_point() or torch.equal(one, other)) else [path]
    return [] if one == other else [path]
