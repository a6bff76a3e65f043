"""The plan of a run: its arithmetic against what is really held, and that measuring leaves nothing behind."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from lke_lightning.cli import main
from lke_lightning.commands.plan import final_evaluations, plan
from lke_lightning.fitting import run
from lke_lightning.stage_two.preservation import BaseStatistics, NormPenalty, NullSpace, PastEdits
from lke_lightning.stage_two.room import solver_bytes
from lke_lightning.stage_two.solvers import (
    EditSystem,
    EqualityConstrained,
    LeastSquares,
    ShrinkingNullSpace,
    VirtualQueue,
)
from lke_lightning.testing import tiny_network

TERMS = [BaseStatistics(1.0), NormPenalty(1.0)]
SOLVERS = {
    "encore": LeastSquares(TERMS, PastEdits()),
    "float32": LeastSquares(TERMS, PastEdits(), dtype="float32"),
    "forgetful": LeastSquares(TERMS),
    "null space": LeastSquares([NormPenalty(1.0)], PastEdits(), NullSpace(2e-2)),
    "null space, fulfilment": LeastSquares([NormPenalty(fulfilment=0.85)], PastEdits(), NullSpace(share=2e-2)),
    "null space, shrinking": ShrinkingNullSpace([NormPenalty(1.0)], NullSpace(2e-2)),
    "equality": EqualityConstrained(TERMS),
    "queue": VirtualQueue(TERMS),
}


def size(parts):
    return sum(part.nbytes for part in parts)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_memory_of_a_solver_is_what_it_really_holds(name):
    solver, d_out, d_key = SOLVERS[name], 12, 40
    used = torch.randn(400, d_key)
    used[:, 0] = 0  # one direction is unused: the null space has rank 1
    memory = solver.init(used.T @ used / 400, torch.randn(5, d_key))
    for _ in range(3):
        keys, zeros = torch.randn(5, d_key), torch.zeros(5, d_out)
        _, memory = solver.compute(memory, EditSystem(keys, keys, zeros, zeros))
    near = [part for key, part in memory.items() if key in solver.on_device]
    real = size(near), size(memory.values()) - size(near), size(solver.saved(memory).values())
    planned = solver_bytes(solver, d_out, d_key, 15)
    if name.startswith("null space"):  # its rank is not known before: the bound is d_key
        assert all(bound >= held for bound, held in zip(planned, real, strict=True))
        assert planned[0] == (1 if "shrinking" in name else 2) * 8 * d_key**2
    else:
        assert planned == real


def spaces(path):
    return {space["what"]: space for space in json.loads(path.read_text())["spaces"]}


def test_a_published_shape_is_planned_without_weights(small_run, tmp_path, capsys, monkeypatch):
    config = tiny_network("llama").config
    config.update({"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256,
                   "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128})  # fmt: skip
    config.save_pretrained(tmp_path / "model")
    monkeypatch.setattr("os.sysconf", lambda _: 2**20)  # 1 TiB of memory
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**50))
    main(["plan", *small_run[1:], "--measure", "false", "--json", str(tmp_path / "plan.json"),
          "--model.pretrained", str(tmp_path / "model"), "--model.layers", "[4,5,6,7,8]",
          "--model.dtype", "bfloat16"])  # fmt: skip
    found, entries, square = spaces(tmp_path / "plan.json"), 5 * 4096 * 14336, 5 * 14336**2
    assert found["weights of the model"]["host"] == pytest.approx(8.03e9 * 2, rel=1e-3)
    assert found["edited matrices: unedited copy and change"]["host"] == entries * (2 + 4)
    assert found["solver, 5 layers"]["host"] == pytest.approx(square * 16, rel=1e-3)  # P and A in float64
    assert found["checkpoints: 2, and one being written"]["disk"] == pytest.approx(
        3 * (4 * entries + 8 * square), rel=1e-3
    )
    assert found["key statistics, unless cached"]["disk"] == 4 * square
    assert "Nothing was measured" in capsys.readouterr().out


def files(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


def test_one_batch_is_measured_and_taken_back(small_run, small_world, tmp_path, capsys):
    before, seen = files(small_world), []

    def fit(given, instead):
        run(["fit", *given], lambda *parts: (instead(*parts), seen.extend(parts)))

    cache = ["--stage_two.statistics.cache_dir", str(tmp_path / "cache")]
    plan([*small_run[1:], *cache, "--json", str(tmp_path / "plan.json")], fit)
    _, editor, _ = seen
    for weight in editor.language_model.edited.values():
        assert not weight.delta.any()
        assert torch.equal(weight.matrix.weight, weight.base)
    found = json.loads((tmp_path / "plan.json").read_text())
    durations = {duration["what"]: duration for duration in found["durations"]}
    assert durations["stage one"]["times"] == durations["stage two"]["times"] == durations["evaluation"]["times"] == 4.5
    assert durations["key statistics"]["times"] == 2000 / (10 * 64)
    assert durations["stage one"]["measured"] > 0
    assert found["seconds"] == pytest.approx(sum(d["measured"] * d["times"] for d in found["durations"]))
    assert found["peak"]["host"] > 2**20
    held = spaces(tmp_path / "plan.json")
    assert held["edited matrices: unedited copy and change"]["host"] == 2 * size(
        weight.delta for weight in editor.language_model.edited.values()
    )
    assert held["weights of the model"]["host"] == size(editor.language_model.network.parameters())
    printed = capsys.readouterr().out
    for words in (
        "Measured: the first 2 of 9 edits",
        "Extrapolated",
        "640 tokens; the run reads 2,000",
        "stage two",
        "total",
    ):
        assert words in printed
    assert files(small_world) == before
    assert files(tmp_path) == {tmp_path / "plan.json"}


def test_cached_statistics_are_not_computed(small_run, small_world, tmp_path, capsys):
    alone = [*small_run[1:], "--data.limit", "1", "--stage_two.statistics.cache_dir", str(tmp_path / "cache")]
    main(["fit", *alone, "--trainer.default_root_dir", str(tmp_path / "run")])
    main(["plan", *alone, "--json", str(tmp_path / "plan.json")])
    durations = {d["what"]: d for d in json.loads((tmp_path / "plan.json").read_text())["durations"]}
    assert durations["key statistics"]["times"] == 1
    assert "are cached" in capsys.readouterr().out


def test_a_small_disk_is_said_after_the_plan(small_run, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(SystemExit, match=r"the run writes .* 0.0 MiB free: try a smaller checkpoint.keep"):
        main(["plan", *small_run[1:]])
    assert "memory and disk" in capsys.readouterr().out


def test_evaluations_are_counted_by_the_edits_they_score():
    def trainer(interval, limit=1.0):
        return SimpleNamespace(limit_val_batches=limit, val_check_interval=interval)

    assert final_evaluations(trainer(1.0), 9, 2) == 1
    assert final_evaluations(trainer(1.0, limit=0), 9, 2) == 0
    assert final_evaluations(trainer(2), 9, 2) == (4 + 8 + 9) / 9
    assert final_evaluations(trainer(0.5), 8, 2) == (4 + 8) / 8
