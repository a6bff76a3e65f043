"""A section whose class can be chosen: today's spelling, other classes, merges, checkpoints."""

import json

import pytest
import torch
import yaml

from lke_lightning.cli import main
from lke_lightning.composition import compose, rebuild
from lke_lightning.edits import EditError
from lke_lightning.run_folder import Run
from lke_lightning.stage_one.gradients import OutputGradients
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stages import Stages
from tests.test_configs import parsed

GRADIENTS = "lke_lightning.stage_one.gradients.OutputGradients"
OPTIMISED = "lke_lightning.stage_one.optimization.TargetOptimization"
ULTRAEDIT = ("-c", "configs/method/ultraedit.yaml")


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        (tmp_path / name).write_text(yaml.safe_dump(content))
        return "-c", tmp_path / name

    return write


def test_the_default_class_is_spelled_without_its_name_and_may_be_named(file, capsys):
    plain = parsed(capsys, *file("plain.yaml", {"stage_one": {"lr": 0.7}}), "--stage_one.max_steps", "7")["stage_one"]
    assert (plain["lr"], plain["max_steps"], plain["relative_lr"]) == (0.7, 7, 0.15)
    assert "class_path" not in plain
    named = {"class_path": "TargetOptimization", "init_args": {"lr": 0.7, "max_steps": 7}}
    assert parsed(capsys, *file("named.yaml", {"stage_one": named}))["stage_one"] == plain


def test_options_go_to_the_class_that_was_named_last_and_none_of_another_reach_it(file, capsys):
    given = [*ULTRAEDIT, *file("more.yaml", {"stage_one": {"max_tokens": 99}}), "--stage_one.relative_step", "0.3"]
    found = parsed(capsys, *file("plain.yaml", {"stage_one": {"lr": 0.7, "max_steps": 7}}), *given)
    assert found["stage_one"] == {
        "class_path": GRADIENTS,
        "init_args": {"relative_step": 0.3, "step": None, "whiten": False, "warm_up": 0, "max_tokens": 99},
    }
    back = {"stage_one": {"class_path": OPTIMISED, "init_args": {"max_steps": 5}}}
    assert parsed(capsys, *ULTRAEDIT, *file("back.yaml", back))["stage_one"]["max_steps"] == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--stage_one.max_stps", "5"], "Did you mean: --stage_one.max_steps"),
        ([*ULTRAEDIT, "--stage_one.relative_stp", "1"], "Did you mean: --stage_one.relative_step"),
        ([*ULTRAEDIT, "--stage_one.max_steps", "5"], "max_steps"),
        (["--stage_one", "OutputGradient"], "Did you mean: OutputGradients"),
        ([*ULTRAEDIT, "--stage_one.relative_step", "0"], "stage_one.relative_step is 0"),
    ],
)
def test_mistakes_are_named_in_the_words_of_the_command_line(given, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["fit", *given])
    assert message in str(caught.value) + capsys.readouterr().err


def test_help_lists_the_options_of_a_class(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--stage_one.help", "TargetOptimization"])
    assert "--stage_one.max_steps" in capsys.readouterr().out


def test_stages_are_composed_and_made_again_from_either_spelling():
    options = {"max_steps": 7, "reference_quirks": True}
    made = [compose({"stage_one": one}) for one in (options, {"class_path": OPTIMISED, "init_args": options})]
    for stages, written in made:
        assert isinstance(stages.one, TargetOptimization)
        assert stages.two.reference_quirks
        assert written["stage_one"]["max_steps"] == 7
        for again in (written, {**written, "stage_one": {"class_path": OPTIMISED, "init_args": options}}):
            assert rebuild(again).one.max_steps == 7
    stages, written = compose({"stage_one": {"class_path": "OutputGradients", "init_args": {"whiten": True}}})
    assert isinstance(stages.one, OutputGradients)
    assert not stages.two.reference_quirks
    assert rebuild(written).one.whiten
    with pytest.raises(EditError, match="stage_one is of type LossBelow"):
        rebuild({**written, "stage_one": {"class_path": "lke_lightning.stage_one.stopping.LossBelow"}})


def test_a_trainer_needs_one_stage_one_of_any_class():
    stages, _ = compose({"stage_one": {"class_path": "OutputGradients"}})
    assert Stages.among([stages.one, stages.two]) == stages
    with pytest.raises(EditError, match="OutputGradients, TargetOptimization, WeightUpdate"):
        Stages.among([stages.one, TargetOptimization(), stages.two])


def test_a_run_of_another_class_goes_on_bit_for_bit_and_from_its_own_configuration(small_run, tmp_path):
    arguments = [*small_run, "--checkpoint.keep", "-1", "--guard.norm_growth", "1e6", "--guard.action", "split"]
    arguments[arguments.index("configs/method/encore.yaml")] = "configs/method/stableedit.yaml"
    del arguments[3:5]  # those strengths are for ENCORE
    main([*arguments, "--stage_one.warm_up", "3", "--trainer.default_root_dir", str(tmp_path / "whole")])
    run = Run.read(tmp_path / "whole")
    assert run.checkpoint["editing"]["configuration"]["stage_one"]["class_path"] == GRADIENTS
    assert run.stages().one.warm_up == 3
    early = str(tmp_path / "whole" / "checkpoints" / "batch-00000002.ckpt")
    [config] = (tmp_path / "whole").rglob("config.yaml")
    again = ["fit", "-c", str(config), "--ckpt_path", early, "--trainer.default_root_dir"]
    main([*again, str(tmp_path / "resumed")])
    whole, resumed = (Run.read(tmp_path / name).checkpoint for name in ("whole", "resumed"))
    for state in ("memory", "contexts"):
        one, other = (part["callbacks"]["TargetOptimization"][state] for part in (whole, resumed))
        assert len(one) > 0
        same = (torch.equal(one[name], other[name]) for name in one) if isinstance(one, dict) else [one == other]
        assert all(same)
    assert all(torch.equal(value, resumed["state_dict"][name]) for name, value in whole["state_dict"].items())
    entries = [json.loads(line) for line in (tmp_path / "whole" / "ledger.jsonl").read_text().splitlines()]
    edits = [entry for entry in entries if entry["event"] == "edit"]
    assert {(entry["steps"], entry["stopped_by"]) for entry in edits} == {(1, "OneStep")}
    assert all(0 < entry["written"] <= 1 and entry["loss"] == entry["first_loss"] > 0 for entry in edits)
    with pytest.raises(SystemExit, match=r"another method:\n.*stage_one"):
        main([*arguments, "--stage_one.relative_step", "9", "--ckpt_path", early, *again[-1:], str(tmp_path / "other")])
