"""The plan of a run: its arithmetic by hand, and that it reads no weights."""

import json
from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Trainer

from lke_lightning.callbacks.checkpoint import RunCheckpoint
from lke_lightning.callbacks.scorecard import Scorecard
from lke_lightning.cli import main
from lke_lightning.commands.plan import prepare
from lke_lightning.commands.plan.estimate import (
    Run,
    Text,
    checkpoint_bytes,
    estimate,
    stage_one,
    stage_two,
    total,
)
from lke_lightning.commands.plan.rates import NOTHING, Cost, Curve, Rates, Solve, peak
from lke_lightning.commands.plan.shape import read_shape
from lke_lightning.commands.plan.work import Tokens, active, count_tokens, spread, stand_in_contexts
from lke_lightning.data import RequestList
from lke_lightning.editor import Editor
from lke_lightning.edits import EditError, EditRequest
from lke_lightning.model.tokens import TextEncoder
from lke_lightning.stage_one.contexts import ContextTemplates
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_two.preservation import BaseStatistics, NormPenalty, PastEdits
from lke_lightning.stage_two.solvers import LeastSquares
from lke_lightning.stage_two.statistics import KeyStatistics
from lke_lightning.stage_two.update import WeightUpdate
from lke_lightning.testing import WORDS, tiny_network, tiny_tokenizer

NAMES = ["Ana", "Bob", "Cyd", "Dan"]


def costs(seconds, block):
    """So many seconds per request, and for each block more."""
    return Cost(Curve.proportional(seconds), Curve.proportional(block))


TOKENS = Tokens(100, 60, 20, 7, 60, 150, 20, 0.0)
SOLVE = Solve(
    init_seconds=5, init_bytes=700, seconds=2, bytes=10, on_device=200, on_host=100, saved=200, growth=3,
    eigen_bytes=0, readout_seconds=0,
)  # fmt: skip
RATES = Rates(
    "made up", record=costs(1, 0.5), step=costs(0.1, 0.01), drop=costs(0, 0), read=costs(0.2, 0.1),
    score=costs(0.3, 0.1), contexts=costs(0, 0), statistics=costs(0.001, 0.002), product=Curve.proportional(0.003),
    perplexity=costs(0, 0), encoding=0.0, solve=SOLVE, hashing=100.0, saving=1000.0, scores_bytes=5,
)  # fmt: skip
RUN = Run(
    edits=40, batch_size=10, steps=3, max_steps=3, check_every=1, site="block", max_tokens=10_000, contexts=2,
    tokens=TOKENS, scores_before=True, evaluated=40, statistics=Text(1000, 100, 3), statistics_layers=2,
    perplexity=Text(0, 0, 8), perplexities=0, checkpoint_every=3, checkpoints_kept=2, keep_on_host=False,
    ledger_bytes=100, process_bytes=1_000_000, import_seconds=4, on_gpu=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model without its weights: configuration and tokenizer only."""
    folder = tmp_path_factory.mktemp("plan")
    tiny_network("llama").config.save_pretrained(folder / "model")
    tiny_tokenizer([f"{name} {word}" for name in NAMES for word in WORDS]).save_pretrained(folder / "model")
    facts = [
        {"prompt": f"{name} was born in the", "subject": name, "target": "city", "original": "river"} for name in NAMES
    ]
    (folder / "facts.jsonl").write_text("\n".join(json.dumps(fact) for fact in facts))
    (folder / "text.txt").write_text("\n".join(" ".join(WORDS) for _ in range(40)))
    return folder


@pytest.fixture(scope="module")
def shape(folder):
    return read_shape(str(folder / "model"), torch.float32, [0, 2], None)


def requests(count=4):
    return [
        EditRequest.about(f"{name} was born in the", name, id=name, target="city", original="river")
        for name in NAMES[:count]
    ]


def stages(**kept):
    return {stage.name: stage for stage in estimate(replace(RUN, **kept), SHAPE, RATES)}


SHAPE = None


@pytest.fixture(autouse=True)
def _shape(shape):
    global SHAPE
    SHAPE = replace(shape, blocks=8, layers=[2, 4], d_key=10, d_out=5, weights_bytes=5000)


def test_shape_counts_what_the_network_has(shape):
    network = tiny_network("llama").float()
    assert shape.blocks == 4
    assert (shape.d_out, shape.d_key) == (32, 64)
    assert shape.vocabulary == 400
    assert shape.weights_bytes == sum(weight.nbytes for weight in network.parameters())
    assert shape.block_bytes == sum(weight.nbytes for weight in network.model.layers[0].parameters())
    assert shape.above == 1


def test_curves_are_straight_between_points_and_beyond():
    curve = Curve(((2.0, 10.0), (4.0, 30.0), (8.0, 50.0)))
    assert [curve.at(x) for x in (0, 1, 2, 3, 4, 6, 8, 10)] == [0, 10, 10, 20, 30, 40, 50, 60]
    assert Curve(((4.0, 8.0),)).at(12) == 24
    assert (curve - Curve(((2.0, 4.0), (4.0, 40.0)))).points == ((2.0, 6.0), (4.0, 0.0))


def test_active_requests_have_the_mean_asked_for():
    assert active(10, 5, 5) == [10] * 5
    assert active(10, 20, 5) == [10] * 5
    assert active(1000, 1, 20) == [1000]
    left = active(1000, 8, 20)
    assert sum(left) == pytest.approx(8000, rel=1e-3)
    assert left == sorted(left, reverse=True)
    assert active(1000, 8, 20, check_every=4)[:4] == [1000] * 4


def test_stage_one_by_hand():
    # 4 descents of 10: record 10 * (1 + 7 * 0.5); target layer 4: 4 / 2 * 10 * 0.01; 2 steps with 3 blocks above
    assert stage_one(RUN, SHAPE, RATES, 3) == pytest.approx(4 * (45 + 0.2 + 2 * 10 * (0.1 + 3 * 0.01)))
    assert replace(RUN, max_tokens=500).together == 5
    at_matrix = stage_one(replace(RUN, site="matrix"), SHAPE, RATES, 3)
    assert at_matrix == pytest.approx(4 * (45 + 0.2 + 2 * 10 * (0.1 + 4 * 0.01)))


def test_stage_two_by_hand():
    # two layers read; keys run 2 + (4 - 2) more blocks, outputs of layer 2 as many more, of one context of two
    assert stage_two(RUN, SHAPE, RATES) == pytest.approx(2 * 10 * 0.2 + (4 + 1) * 10 * 0.1 + 2 * 2)


def test_evaluation_statistics_and_checkpoints_by_hand():
    found = stages()
    assert found["evaluation before"].seconds == pytest.approx(40 * (0.3 + 7 * 0.1))
    assert found["evaluation final"].seconds == pytest.approx(40)
    assert found["start and load"].seconds == pytest.approx(4 + 50)
    # 10 passes of 100 tokens through 3 blocks, one product more; two matrices of 10 x 10 float32 are written
    assert found["key statistics"].seconds == pytest.approx(10 * (0.1 + 2 * 0.2 + 0.3) + 0.8)
    assert found["key statistics"].disk == 800
    assert found["solvers, first inverse"].seconds == 10
    assert found["ledger"].disk == 4000
    # after batches 3 and 4: two changes of 5 x 10, two memories, two scores of each edit
    sizes = [2 * (200 + 200 + edits * 3) + edits * 10 for edits in (30, 40)]
    assert RUN.checkpoints() == [30, 40]
    assert [checkpoint_bytes(RUN, SHAPE, RATES, edits) for edits in (30, 40)] == sizes
    assert found["checkpoints"].disk == sum(sizes)
    assert found["checkpoints"].seconds == pytest.approx(sum(sizes) / 1000)


def test_what_is_not_done_costs_nothing():
    found = stages(statistics=Text(0, 0, 0), statistics_layers=0, scores_before=False, checkpoints_kept=0)
    assert found["key statistics"].seconds == found["key statistics"].disk == 0
    assert found["checkpoints"].seconds == found["checkpoints"].disk == 0
    assert "evaluation before" not in found
    assert "perplexity" not in found


def test_memory_by_hand():
    # on a CPU: process, weights, two matrices with their change, two solvers, what 40 edits added, the batch's solve
    base = 1_000_000 + 5000 + 2 * 50 * 8 + 2 * 300
    assert stages()["stage two"].host == base + 40 * 2 * 3 + 10
    assert stages()["stage two"].device == 0
    apart = stages(on_gpu=True, keep_on_host=True)["stage two"]
    assert apart.device == 5000 + 800 + 200 + 10  # one solver at a time
    assert apart.host == 1_000_000 + 2 * 100 + 200 + 240
    whole = total(list(stages().values()))
    assert whole.host == max(stage.host for stage in stages().values())
    assert whole.disk == sum(stage.disk for stage in stages().values())


def test_bracket_is_few_and_all_steps():
    stage = stages(steps=5, max_steps=20)["stage one"]
    assert stage.seconds_few < stage.seconds < stage.seconds_all
    assert stage.seconds_all == pytest.approx(stage_one(replace(RUN, max_steps=20), SHAPE, RATES, 20))


def test_peak_counts_tensors_that_live_together():
    def call():
        a = torch.zeros(1000)
        b = a + 1
        del a
        return b * 2

    assert peak(call, torch.device("cpu")) == 8000


def test_tokens_by_hand():
    text = TextEncoder(tiny_tokenizer([f"{name} {word}" for name in NAMES for word in WORDS]))
    contexts = stand_in_contexts(ContextTemplates(templates=["the {}"]), requests(), text)
    assert contexts == ["{}", "the {}"]
    counted = count_tokens(requests(1), contexts, text, True, 10)
    name, the, rest = (len(text.encode([part])[0]) for part in ("Ana", "the", " was born in the"))
    behind = len(text.encode(["the Ana"])[0])
    # bare, behind "the", and the essence that ends at the subject: one-token targets add nothing to the rows
    assert counted.whole == name + rest + behind + rest + name
    assert counted.from_slot == 2 * (rest + 1) + 1
    assert counted.upto_slot == name + behind
    assert counted.reads == 3
    assert counted.questions == name + rest  # one prompt, two answers
    assert counted.answers == 2
    assert the > 0


def test_stand_in_contexts_have_the_sampled_length():
    text = TextEncoder(tiny_tokenizer([f"{name} {word}" for name in NAMES for word in WORDS]))
    contexts = stand_in_contexts(ContextTemplates(), requests(), text)
    assert len(contexts) == 6
    assert contexts[0] == "{}"
    assert all(context.endswith(". {}") and context.count("{") == 1 for context in contexts[1:])


def test_requests_are_chosen_evenly():
    assert spread(list(range(10)), 5) == [0, 2, 4, 6, 8]
    assert spread(list(range(3)), 5) == [0, 1, 2]


def trainer_of(folder, **options):
    solver = LeastSquares([BaseStatistics(1.0), NormPenalty(1.0)], PastEdits())
    statistics = KeyStatistics([str(folder / "text.txt")], tokens=200, cache_dir=str(folder / "cache"))
    parts = [TargetOptimization(max_steps=4), WeightUpdate(solver, statistics=statistics), Scorecard(), RunCheckpoint()]
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=True, callbacks=parts, enable_model_summary=False,
        enable_progress_bar=False, default_root_dir=str(folder), **options,
    )  # fmt: skip


def test_a_model_that_is_too_large_warns_and_is_not_measured(folder, tmp_path, monkeypatch):
    config = tiny_network("llama").config
    config.update({"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
                   "num_attention_heads": 64, "head_dim": 128})  # fmt: skip
    config.save_pretrained(tmp_path)
    tiny_tokenizer(NAMES).save_pretrained(tmp_path)
    monkeypatch.setattr("lke_lightning.commands.plan.calibration.calibrate", lambda _: pytest.fail("measured"))
    monkeypatch.setattr("lke_lightning.commands.plan.solving.SOLVER_SIZE", {"cpu": 64})
    found = prepare(trainer_of(folder), Editor(str(tmp_path), layers=[3]), RequestList(requests()), free=0)
    assert "by arithmetic" in " ".join(found.assumptions)
    assert any("memory is too small" in warning and "What helps" in warning for warning in found.warnings)
    assert found.total.host > 250 * 2**30


def test_published_shape_is_planned_without_weights(folder, tmp_path, monkeypatch):
    config = tiny_network("llama").config
    config.update({"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256,
                   "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128})  # fmt: skip
    config.save_pretrained(tmp_path)
    tiny_tokenizer(NAMES).save_pretrained(tmp_path)
    monkeypatch.setattr("lke_lightning.commands.plan.solving.SOLVER_SIZE", {"cpu": 64})
    found = prepare(trainer_of(folder), Editor(str(tmp_path), layers=[4, 5, 6, 7, 8]), RequestList(requests()), free=0)
    assert found.total.host > 8.0e9 * 4
    saved = next(stage for stage in found.stages if stage.name == "checkpoints")
    # one checkpoint: five float32 changes and five float64 inverses, the rest is small
    assert saved.disk == pytest.approx(5 * (4096 * 14336 * 4 + 14336**2 * 8), rel=0.01)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("lke_lightning.commands.plan.calibration.SIZES", (1,))
    monkeypatch.setattr("lke_lightning.commands.plan.rates.BUDGET", 0.01)


def arguments(folder, *more):
    return [
        "plan", "-c", "configs/method/encore.yaml", "-c", "tests/conf/tiny.yaml",
        "--model.pretrained", str(folder / "model"), "--model.layers", "[0,2]",
        "--data", "JsonLines", "--data.path", str(folder / "facts.jsonl"), "--data.batch_size", "2",
        "--stage_two.statistics.corpus", f"[{folder / 'text.txt'}]", "--stage_two.statistics.tokens", "200",
        "--stage_two.statistics.cache_dir", str(folder / "cache"), "--trainer.accelerator", "cpu",
        "--trainer.default_root_dir", str(folder / "run"), *more,
    ]  # fmt: skip


def test_command_prints_a_table_and_writes_figures(folder, tmp_path, capsys, quick):
    text = ["--scorecard.text", f"[{folder / 'text.txt'}]", "--scorecard.text_tokens", "100"]
    main(arguments(folder, "--steps", "5", "--json", str(tmp_path / "plan.json"), *text))
    printed = capsys.readouterr().out
    for name in ("stage one", "stage two", "evaluation final", "perplexity", "checkpoints", "total", "not cached"):
        assert name in printed
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["total"]["seconds"] == pytest.approx(sum(stage["seconds"] for stage in found["stages"]), abs=0.1)
    assert any("5 of at most 30" in words for words in found["assumptions"])
    assert not (folder / "run").exists()
    assert not (folder / "cache").exists()


def test_cached_statistics_are_recognised_without_weights(folder, tmp_path, quick):
    network = tiny_network("llama").float()
    statistics = KeyStatistics([str(folder / "text.txt")], tokens=200, cache_dir=str(tmp_path / "cache"))
    editor = Editor.around(network, tiny_tokenizer([f"{n} {w}" for n in NAMES for w in WORDS]), [0, 2])
    statistics.second_moments(editor.language_model)
    trainer = trainer_of(folder)
    trainer.callbacks[1].statistics = statistics
    found = prepare(trainer, Editor(str(folder / "model"), layers=[0, 2]), RequestList(requests()), free=0)
    assert next(stage for stage in found.stages if stage.name == "key statistics").seconds == 0
    trainer.callbacks[1].statistics.tokens = 300
    found = prepare(trainer, Editor(str(folder / "model"), layers=[0, 2]), RequestList(requests()), free=0)
    assert next(stage for stage in found.stages if stage.name == "key statistics").seconds > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "at least one"),
        (["--model.pretrained", "nowhere/model"], "cannot read the configuration"),
        (["--model.layers", "[9]"], "do not exist"),
        (["--data.path", "nowhere.jsonl"], "no file"),
    ],
)
def test_wrong_input_is_refused_as_by_fit(options, message, folder):
    with pytest.raises(SystemExit, match=message):
        main(arguments(folder, *options))


def test_steps_below_one_are_refused(folder):
    with pytest.raises(EditError, match="at least one"):
        prepare(trainer_of(folder), Editor(str(folder / "model"), layers=[0]), RequestList(requests()), steps=0.5)


def test_nothing_costs_nothing():
    assert NOTHING.at(100) == 0
