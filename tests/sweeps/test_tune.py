"""A search through the command line, its points, and its front."""

import copy
import functools
import itertools
import json
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from lke_lightning.cli import main
from lke_lightning.edits import EditError
from lke_lightning.sweeps import grid
from lke_lightning.sweeps import tune as module
from lke_lightning.sweeps.runs import Outcome
from lke_lightning.sweeps.tune import _at_the_edge, _merged, propose

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
    options = ["--sweep", json.dumps(sweep), "--edits", "2", "--output", str(tmp_path)]
    main(["tune", *options, "--", *tiny, "--model.layers", "[0,1]"])
    said = json.loads((tmp_path / "tuning.json").read_text())
    [point] = said["points"]
    assert said["layers"] == [0, 1]
    assert point["settings"] == {"BaseStatistics.weight": 0.1, "stage_one.lr": 0.5}
    assert point["edits"] == 2
    assert set(point["drift"]) == {"largest norm growth", "perplexity ratio"}
    assert point["front"]
    for name in ("largest-norm-growth", "perplexity-ratio"):
        assert (tmp_path / f"tuning-{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "| * | 0.1 | 0.5 |" in (tmp_path / "tuning.md").read_text()
    assert not list(tmp_path.glob("points/*/checkpoints/*"))
    proposed = yaml.safe_load((tmp_path / "proposed.yaml").read_text())
    assert proposed["model"]["layers"] == [0, 1]
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["fit", "-c", str(tmp_path / "proposed.yaml"), "--print_config"])
    assert caught.value.code in (0, None)
    merged = yaml.safe_load(capsys.readouterr().out)
    assert {name: merged[name] for name in proposed} == proposed
    main(["tune", *options, "--", *tiny, "--model.layers", "[0,1]"])
    assert "already done" in capsys.readouterr().out


def test_default_sweep_takes_what_is_there():
    assert grid.default_sweep(CONFIG) == {
        "BaseStatistics.weight": [180.0, 720.0, 2880.0],
        "MostProbable.extra_steps": [0, 2, 6],
    }
    with pytest.raises(EditError, match="--sweep"):
        grid.default_sweep({"stage_one": {"lr": 1.0}, "stage_two": {}})


def preserving(**arguments):
    """Make a configuration as `fit` merges it, with what is not given as None."""
    terms = {"BaseStatistics": ("weight", "fulfilment"), "NormPenalty": ("weight", "fulfilment", "proportion")}
    preservation = [
        {"class_path": owner, "init_args": dict.fromkeys(terms[owner]) | given} for owner, given in arguments.items()
    ]
    solver = {"class_path": "LeastSquares", "init_args": {"preservation": preservation}}
    return {"stage_one": {"lr": None, "relative_lr": 0.1}, "stage_two": {"solver": solver}}


def test_the_default_sweep_searches_what_counts():
    own = preserving(BaseStatistics={"fulfilment": 0.7}, NormPenalty={"proportion": 0.1})
    sweep = grid.default_sweep(own)
    assert set(sweep) == {"BaseStatistics.fulfilment", "NormPenalty.proportion"}
    assert all(0.5 <= value <= 0.97 for value in sweep["BaseStatistics.fulfilment"])
    assert sweep["NormPenalty.proportion"] == [0.025, 0.1, 0.4]
    filled_in = preserving(
        BaseStatistics={"fulfilment": 0.7, "weight": 40.0}, NormPenalty={"proportion": 0.1, "weight": 2.0}
    )
    assert grid.default_sweep(filled_in) == {
        "BaseStatistics.weight": [10.0, 40.0, 160.0],
        "NormPenalty.weight": [0.5, 2.0, 8.0],
    }
    alone = preserving(NormPenalty={"fulfilment": 0.7})
    assert grid.default_sweep(alone) == {"NormPenalty.fulfilment": sweep["BaseStatistics.fulfilment"]}


def test_strengths_begin_with_the_most_protection():
    shares = [point["NormPenalty.fulfilment"] for point in grid.strengths(preserving(NormPenalty={"fulfilment": 0.7}))]
    assert shares == sorted(shares)
    assert grid.strengths(preserving(BaseStatistics={"weight": 4.0}, NormPenalty={"weight": 1.0})) == [
        {"BaseStatistics.weight": weight} for weight in (16.0, 4.0, 1.0)
    ]
    assert grid.strengths({"stage_one": {"lr": 1.0}, "stage_two": {}}) == [{}]


def test_a_sweep_of_what_means_nothing_is_refused():
    config = preserving(BaseStatistics={"fulfilment": 0.7, "weight": 40.0})
    with pytest.raises(EditError, match=r"BaseStatistics.fulfilment means nothing beside BaseStatistics.weight 40"):
        grid.check_sweep(config, {"BaseStatistics.fulfilment": [0.6, 0.8]})
    grid.check_sweep(config, {"BaseStatistics.weight": [10, 20], "stage_one.relative_lr": [0.05, 0.1]})


def test_points_set_every_part_of_the_name():
    point = {"BaseStatistics.weight": 2, "LeastSquares.past_edits.weight": 0.5, "stage_one.lr": 3}
    changed = grid.configured(CONFIG, point)
    solver = changed["stage_two"]["solver"]["init_args"]
    assert solver["preservation"][0]["init_args"] == {"weight": 2}
    assert solver["past_edits"] == {"weight": 0.5}
    assert changed["stage_one"]["lr"] == 3
    assert CONFIG["stage_one"]["lr"] == 0.5
    assert grid.name(point) == "BaseStatistics.weight=2_LeastSquares.past_edits.weight=0.5_stage_one.lr=3"


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


def measured(settings):
    """A card of a run: S and growth both rise with the weight; the learning rate costs growth and gives nothing."""
    weight, rate = settings["BaseStatistics.weight"], settings["stage_one.lr"]
    score = weight / (weight + 1)
    part = {kind: {"success": score} for kind in ("efficacy", "paraphrase", "neighborhood")} | {"score": score}
    return {
        "method": "M", "model": "m", "data": "D", "edits": 2, "batch_size": 2, "device": "cpu",
        "final": part, "just_after": part, "steps": {"median": 1.0},
        "seconds": {"stage_one": 1, "stage_two": 1, "evaluation": 1},
        "weight_norms": {"0": {"before": 1.0, "after": 1.0 + weight + rate}},
    }  # fmt: skip


@pytest.fixture
def searched(tmp_path, monkeypatch):
    """Run a search whose runs are stood in for; return what was tried, in order, and the tables."""

    def search(sweep, trials=None, failing=()):
        tried = []

        def stand_in(job, folder, number):
            [given] = [Path(value) for option, value in itertools.pairwise(job.arguments) if option == "-c"]
            config = yaml.safe_load(given.read_text())
            solver = config["stage_two"]["solver"]["init_args"]
            settings = {
                "BaseStatistics.weight": solver["preservation"][0]["init_args"]["weight"],
                "stage_one.lr": config["stage_one"]["lr"],
            }
            tried.append(settings)
            failed = settings["BaseStatistics.weight"] in failing
            return Outcome(job, error="broken") if failed else Outcome(job, measured(settings))

        monkeypatch.setattr(module, "carry_out", stand_in)
        whole = {**copy.deepcopy(CONFIG), "model": {"layers": [0]}, "data": {}, "scorecard": {"text": None}}
        monkeypatch.setattr(module, "_merged", lambda _: whole)
        module.tune([], sweep, trials=trials, edits=2, output=str(tmp_path))
        return tried, json.loads((tmp_path / "tuning.json").read_text())["points"]

    return search


def test_the_grid_is_tried_whole_and_the_front_marked(searched, tmp_path, capsys):
    sweep = {"BaseStatistics.weight": [1.0, 2.0, 4.0], "stage_one.lr": [0.1, 0.5]}
    tried, points = searched(sweep, failing=[2.0])
    assert sorted(map(str, tried)) == sorted(
        str(dict(zip(sweep, values, strict=True))) for values in itertools.product(*sweep.values())
    )
    assert [point["settings"] for point in points] == tried
    front = [point["settings"] for point in points if point["front"]]
    assert sorted(front, key=str) == [{"BaseStatistics.weight": w, "stage_one.lr": 0.1} for w in (1.0, 4.0)]
    assert {point["status"] for point in points if point["settings"]["BaseStatistics.weight"] == 2.0} == {"failed"}
    proposed = yaml.safe_load((tmp_path / "proposed.yaml").read_text())
    assert proposed["stage_two"]["solver"]["init_args"]["preservation"][0]["init_args"] == {"weight": 4.0}
    assert proposed["stage_one"]["lr"] == 0.1
    assert "BaseStatistics.weight is best at the edge" in capsys.readouterr().out


def test_a_search_stays_within_its_ranges_and_goes_on_as_it_began(searched, tmp_path):
    sweep = {"BaseStatistics.weight": [0.5, 8.0], "stage_one.lr": [0.1, 0.5]}
    some, _ = searched(sweep, trials=6)
    more, points = searched(sweep, trials=13)
    assert more[:6] == some
    assert len({str(point) for point in more}) == 13
    assert all(0.5 <= point["BaseStatistics.weight"] <= 8 and 0.1 <= point["stage_one.lr"] <= 0.5 for point in more)
    [study] = optuna.get_all_study_names(storage := JournalStorage(JournalFileBackend(str(tmp_path / module.STUDY))))
    assert len(optuna.load_study(study_name=study, storage=storage).trials) == len(points) == 13


def test_values_may_be_lists(searched):
    tried, _ = searched({"BaseStatistics.weight": [1.0], "stage_one.lr": [0.5], "LossBelow.threshold": [[1, 2], None]})
    assert len(tried) == 2


def test_without_optuna_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(EditError, match=r"pip install 'lke-lightning\[tune\]'"):
        module.tune([])


def point(name, score, *drift):
    return {"name": name, "final": {"S": score}, "drift": dict(zip("ab", drift, strict=False))}


def test_the_best_of_equals_drifts_least():
    said = [point("weak", 0.5, 1.1), point("best", 0.9, 2.0), point("wasteful", 0.9, 3.0),
            {"name": "failed", "final": None, "drift": None}]  # fmt: skip
    assert propose(said)["name"] == "best"
    with pytest.raises(EditError, match="no point could be scored"):
        propose(said[-1:])


def test_the_edge_is_where_more_could_be_better():
    tried = [
        {"a": 0, "b": 1, "c": 1.0, "d": [1]},
        {"a": 2, "b": 2, "c": 1.0, "d": [2]},
        {"a": 4, "b": 3, "c": 1.0, "d": 0},
    ]
    assert _at_the_edge(tried[0], tried) == ["b"]
    assert _at_the_edge(tried[1], tried) == []
    assert _at_the_edge(tried[2], tried) == ["a", "b"]


@pytest.mark.parametrize("command", ["compare", "tune"])
def test_help_is_quick(command):
    script = (
        f"import sys\nfrom lke_lightning.cli import main\ntry: main(['{command}', '--help'])\n"
        "except SystemExit: assert not {'torch', 'matplotlib', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
