"""A sweep through the command line, its grid, its front, and the choice of layers."""

import copy
import functools
import json
import subprocess
import sys

import pytest
import yaml

from lke_lightning.cli import main
from lke_lightning.edits import EditError
from lke_lightning.model.architecture import layers_by_depth
from lke_lightning.sweeps import grid
from lke_lightning.sweeps import tune as module
from lke_lightning.sweeps.layers import best_window, candidates
from lke_lightning.sweeps.runs import Outcome
from lke_lightning.sweeps.tune import _merged, mark_front, propose

CONFIG = {
    "stage_one": {
        "lr": 0.5,
        "stopping": [
            {"class_path": "lke_lightning.stage_one.stopping.MostProbable", "init_args": {"extra_steps": 6}},
            {"class_path": "lke_lightning.stage_one.stopping.LossBelow", "init_args": {"threshold": 0.05}},
        ],
    },
    "stage_two": {
        "solver": {
            "class_path": "LeastSquares",
            "init_args": {
                "preservation": [{"class_path": "BaseStatistics", "init_args": {"weight": 720.0}}],
                "past_edits": {"weight": 1.0},
            },
        }
    },
}


def test_a_sweep_ends_in_a_configuration(tiny, tmp_path, capsys, monkeypatch):
    merged_once = functools.cache(lambda *given: _merged(given))  # it takes seconds, and the sweep is run twice
    monkeypatch.setattr(module, "_merged", lambda given: copy.deepcopy(merged_once(*given)))
    sweep = {"BaseStatistics.weight": [0.1], "stage_one.lr": [0.5]}
    options = ["--sweep", json.dumps(sweep), "--edits", "2", "--output", str(tmp_path), "--layers", "depth"]
    main(["tune", *options, "--", *tiny])
    said = json.loads((tmp_path / "tuning.json").read_text())
    [point] = said["points"]
    assert said["layers"] == layers_by_depth(3)
    assert point["settings"] == {"BaseStatistics.weight": 0.1, "stage_one.lr": 0.5}
    assert point["edits"] == 2
    assert set(point["drift"]) == {"largest norm growth", "perplexity ratio"}
    assert point["front"]
    assert (tmp_path / "tuning.png").read_bytes().startswith(b"\x89PNG")
    assert "| * | 0.1 | 0.5 |" in (tmp_path / "tuning.md").read_text()
    assert not list(tmp_path.glob("points/*/checkpoints/*"))
    proposed = yaml.safe_load((tmp_path / "proposed.yaml").read_text())
    assert proposed["model"]["layers"] == layers_by_depth(3)
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["fit", "-c", str(tmp_path / "proposed.yaml"), "--print_config"])
    assert caught.value.code in (0, None)
    merged = yaml.safe_load(capsys.readouterr().out)
    assert {name: merged[name] for name in proposed} == proposed
    main(["tune", *options, "--", *tiny])
    assert "done before" in capsys.readouterr().out


def test_default_sweep_takes_what_is_there():
    assert grid.default_sweep(CONFIG) == {
        "BaseStatistics.weight": [180.0, 720.0, 2880.0],
        "MostProbable.extra_steps": [0, 2, 6],
    }
    with pytest.raises(EditError, match="--sweep"):
        grid.default_sweep({"stage_one": {"lr": 1.0}, "stage_two": {}})


def test_points_set_every_part_of_the_name():
    points = grid.points(
        {"BaseStatistics.weight": [1, 2], "LeastSquares.past_edits.weight": [0.5], "stage_one.lr": [3]}
    )
    assert [point["BaseStatistics.weight"] for point in points] == [1, 2]
    changed = grid.configured(CONFIG, points[1])
    solver = changed["stage_two"]["solver"]["init_args"]
    assert solver["preservation"][0]["init_args"] == {"weight": 2}
    assert solver["past_edits"] == {"weight": 0.5}
    assert changed["stage_one"]["lr"] == 3
    assert CONFIG["stage_one"]["lr"] == 0.5
    assert grid.name(points[1]) == "BaseStatistics.weight=2_LeastSquares.past_edits.weight=0.5_stage_one.lr=3"


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"BaseStatistic.weight": [1]}, "did you mean BaseStatistics.weight"),
        ({"stage_one.lr": 0.1}, "needs a list"),
        ({"stage_one.lr": []}, "needs a list"),
    ],
)
def test_a_wrong_sweep_is_named(sweep, message):
    with pytest.raises(EditError, match=message):
        grid.check_sweep(CONFIG, sweep)


def point(name, score, *drift):
    return {"name": name, "final": {"S": score}, "drift": dict(zip("ab", drift, strict=False))}


def test_the_front_holds_what_no_other_beats():
    said = [point("weak", 0.5, 1.1), point("worse", 0.5, 1.3), point("best", 0.9, 2.0), point("same", 0.9, 2.0),
            point("wasteful", 0.9, 3.0), {"name": "failed", "final": None, "drift": None}]  # fmt: skip
    mark_front(said)
    assert [entry["name"] for entry in said if entry["front"]] == ["weak", "best", "same"]
    assert propose(said)["name"] == "best"
    assert propose(said[3:])["name"] == "same"
    with pytest.raises(EditError, match="no point could be scored"):
        propose(said[-1:])


def test_candidates_are_few_and_low():
    assert candidates(1) == [0]
    assert candidates(3) == [0, 1]
    assert candidates(32) == [0, 4, 8, 13, 17, 21]


def test_the_window_is_the_best_on_average():
    assert best_window({0: 0.1, 4: 0.9, 8: 0.8, 13: 0.2, 17: 0.1, 21: 0.0}, 32) == [4, 5, 6, 7, 8]
    assert best_window({0: 0.1, 1: 0.4}, 3) == [1]
    assert best_window({4: 0.3}, 12) == [0, 1, 2, 3]
    with pytest.raises(EditError, match="no single layer"):
        best_window({}, 12)


def test_probing_proposes_layers(tiny, tmp_path, monkeypatch, capsys):
    asked = []

    def stand_in(runs, output, report):
        asked.extend(runs)
        return [Outcome(run, {"final": {"score": 0.1 + 0.5 * (run.name == "layer-1")}}) for run in runs]

    monkeypatch.setattr(module, "carry_out", stand_in)
    config = {**CONFIG, "model": {"pretrained": tiny[5], "trust_remote_code": False, "layers": None}}
    config["data"] = {"init_args": {"batch_size": 2, "limit": None}}
    study = module._Study(list(tiny), config, 50, tmp_path)
    assert study.choose_layers("probe") == {"0": 0.1, "1": 0.6}
    assert study.config["model"]["layers"] == [1]
    assert [run.arguments[-1] for run in asked] == ["2", "2"]
    assert yaml.safe_load((tmp_path / "layers" / "layer-0.yaml").read_text())["model"] == {"layers": [0]}
    assert "1: 0.600" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["compare", "tune"])
def test_help_is_quick(command):
    script = (
        f"import sys\nfrom lke_lightning.cli import main\ntry: main(['{command}', '--help'])\n"
        "except SystemExit: assert not {'torch', 'matplotlib', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
