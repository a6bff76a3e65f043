"""What a run folder, a model or a data file holds runs and imports nothing; the command line alone is trusted."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import save_file

from lke_lightning import checkpoints
from lke_lightning.api import resume
from lke_lightning.cli import main
from lke_lightning.composition import rebuild, rebuild_readout
from lke_lightning.edits import EditError
from lke_lightning.export import load

RAN = "ran.txt"
"""What every payload writes."""


@pytest.fixture
def mark(tmp_path):
    return tmp_path / RAN


@pytest.fixture
def evil(tmp_path, mark, monkeypatch):
    """A module on the path that says when it is imported, with parts of every kind."""
    (tmp_path / "evilmod.py").write_text(
        f"open({str(mark)!r}, 'a').write('imported')\n"
        "from lke_lightning.stage_two.solvers import LeastSquares\n"
        "from lke_lightning.stage_two.transforms import ReadoutTransform\n"
        "class X(LeastSquares): pass\n"
        "class Y(ReadoutTransform):\n"
        "    def __call__(self, weight, change): return change\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("evilmod", None)


def changed(run, change):
    path = checkpoints.newest(run)
    held = torch.load(path, weights_only=True)
    change(held)
    torch.save(held, path)


def attempt(command, run, small_run, folder):
    """Let a command read a run that should not be trusted; it may succeed or refuse, in one sentence."""
    commands = {
        "export": ["export", str(run), "--output", str(folder / "out")],
        "undo": ["undo", str(run), "--edit", "3"],
        "redo": ["redo", str(run), "--edit", "0"],
        "log": ["log", str(run)],
        "validate": ["validate", *small_run[1:], "--ckpt_path", str(run),
                     "--trainer.default_root_dir", str(folder / "scored")],
        "fit": [*small_run, "--trainer.default_root_dir", str(run), "--ckpt_path", "last"],
    }  # fmt: skip
    try:
        if command == "resume":
            resume(run)
        else:
            main(commands[command])
    except SystemExit as left:
        return str(left.code)
    except EditError as error:
        return str(error)
    return None


COMMANDS = ("export", "undo", "redo", "log", "validate", "fit", "resume")


@pytest.fixture
def remote(small_world, tmp_path, mark):
    """A model folder whose configuration names code of its own."""
    folder = tmp_path / "remote"
    shutil.copytree(small_world / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    tokens |= {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    (folder / "evil.py").write_text(
        f"open({str(mark)!r}, 'a').write('ran')\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class EvilConfig(LlamaConfig):\n    model_type = 'evil'\n"
        "class EvilModel(LlamaForCausalLM):\n    config_class = EvilConfig\n"
        "class EvilTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_checkpoint_cannot_ask_for_remote_code(command, run, remote, mark, small_run, tmp_path):
    changed(run, lambda held: held["hyper_parameters"].update(trust_remote_code=True, pretrained=str(remote)))
    said = attempt(command, run, small_run, tmp_path)
    assert not mark.exists()
    if command not in ("log", "validate", "fit"):  # which do not load the model that the checkpoint names
        assert "code of its own" in said


def test_the_command_line_can(run, remote, mark, small_run, tmp_path):
    changed(run, lambda held: held["hyper_parameters"].update(pretrained=str(remote)))
    main(["export", str(run), "--output", str(tmp_path / "out.safetensors"), "--format", "delta",
          "--trust_remote_code", "true"])  # fmt: skip
    assert mark.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_keys_of_lightning_import_nothing(command, run, evil, mark, small_run, tmp_path):
    """`LightningModule.load_from_checkpoint` would import and call both."""
    changed(run, lambda held: held["hyper_parameters"].update(_instantiator="evilmod.X", _class_path="evilmod.X"))
    attempt(command, run, small_run, tmp_path)
    assert not mark.exists()


PART = {"class_path": "evilmod.X", "init_args": {}}
NESTED = {
    "class_path": "lke_lightning.stage_two.solvers.LeastSquares",
    "init_args": {"preservation": [PART], "past_edits": {"class_path": "evilmod.X"}},
}
PLACES = [
    ("stage_two", "readout", PART), ("stage_two", "readout", "evilmod.X"), ("stage_two", "readout", [PART]),
    ("stage_two", "solver", PART), ("stage_two", "solver", "evilmod.X"), ("stage_two", "solver", NESTED),
    ("stage_two", "statistics", PART), ("stage_two", "statistics", "evilmod.X"), ("stage_two", "evil", PART),
    ("stage_one", "objectives", [PART]), ("stage_one", "objectives", ["evilmod.X"]), ("stage_one", "contexts", PART),
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_classes_that_a_checkpoint_names_are_not_imported(command, finished, evil, mark, small_run, tmp_path):
    for number, (stage, name, value) in enumerate(PLACES):
        run = tmp_path / f"run-{number}"
        shutil.copytree(finished, run, symlinks=True)
        changed(run, lambda held, place=(stage, name, value): held["editing"]["configuration"][place[0]].update(
            {place[1]: place[2]}))  # fmt: skip
        said = attempt(command, run, small_run, tmp_path / str(number))
        assert not mark.exists(), (stage, name, value)
        if command in ("undo", "redo", "resume", "fit"):
            assert said is not None, (stage, name, value)


@pytest.mark.parametrize(
    "path",
    [
        "lke_lightning.stage_two.statistics.Path",
        "lke_lightning.stage_two.statistics.load_file",
        "lke_lightning.stage_two.statistics.json.JSONDecoder",
        "lke_lightning.stage_two.update.Sequence",
        "lke_lightning.stage_two..evilmod.X",
        "lke_lightning.stage_two.",
        "lke_lightning.stage_two.../evilmod.X",
        "lke_lightning.stage_two.statistics",
        "lke_lightning.commands.undo.Run",
        "lke_lightning.stage_twofold.X",
        "..evilmod.X",
        "evilmod:X",
        "builtins.exec",
        "",
    ],
)
def test_paths_that_only_look_like_ours_are_refused(path, evil, mark):
    with pytest.raises(EditError, match="the checkpoint names"):
        rebuild({"stage_two": {"solver": {"class_path": path, "init_args": {"preservation": []}}}})
    assert not mark.exists()


def test_a_class_that_is_trusted_on_the_command_line_is_made(run, evil, mark, tmp_path):
    def change(held):
        held["editing"]["configuration"]["stage_two"]["solver"]["class_path"] = "evilmod.X"
        held["editing"]["configuration"]["stage_two"]["readout"] = {"class_path": "evilmod.Y"}

    changed(run, change)
    with pytest.raises(SystemExit, match=r"--trust evilmod\.X"):
        main(["undo", str(run), "--edit", "3", "--trust", "evilmod.Y"])
    with pytest.raises(EditError, match=r"evilmod\.Y"):
        load(run, ["evilmod.X"])
    main(["undo", str(run), "--edit", "3", "--trust", "evilmod.X", "evilmod.Y"])
    assert type(load(run, ["evilmod.Y"]).readout).__name__ == "Y"
    assert mark.exists()


def test_a_readout_is_a_readout():
    solver = {"class_path": "lke_lightning.stage_two.keys.ContextMean"}
    with pytest.raises(EditError, match="readout is of type ContextMean"):
        rebuild_readout({"stage_two": {"readout": solver}})


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return exec, (f"open({str(self.mark)!r}, 'a').write('unpickled')",)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", ["WeightUpdate", "Scorecard", "loops"])
def test_pickles_in_a_checkpoint_are_not_opened(command, place, run, mark, small_run, tmp_path):
    def change(held):
        (held if place == "loops" else held["callbacks"])[place] = {"state": Payload(mark)}

    changed(run, change)
    assert "more than tensors and plain values" in attempt(command, run, small_run, tmp_path)
    assert not mark.exists()


def test_a_pickled_model_is_not_opened(small_run, small_world, mark, tmp_path):
    shutil.copytree(small_world / "model", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Payload(mark)}, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(SystemExit, match="cannot load"):
        main([*small_run, "--model.pretrained", str(tmp_path / "model"),
              "--trainer.default_root_dir", str(tmp_path / "run")])  # fmt: skip
    assert not mark.exists()


def test_a_script_beside_the_data_is_not_run(small_run, mark, tmp_path):
    folder = tmp_path / "facts"
    folder.mkdir()
    (folder / "facts.py").write_text(f"open({str(mark)!r}, 'a').write('ran')\n")
    for option in ("--data.path", "--stage_two.statistics.corpus"):
        with pytest.raises(SystemExit):
            main([*small_run, option, str(folder), "--trainer.default_root_dir", str(tmp_path / "run")])
        assert not mark.exists()


@pytest.mark.parametrize(
    "tag", ["object/apply:builtins.open", "object/new:evilmod.X", "name:evilmod.X", "module:evilmod"]
)
def test_yaml_makes_no_objects(tag, evil, mark, small_run, tmp_path):
    (tmp_path / "evil.yaml").write_text(f"model:\n  method: !!python/{tag} [{mark}, w]\n")
    with pytest.raises(SystemExit, match="is not YAML"):
        main([*small_run, "-c", str(tmp_path / "evil.yaml"), "--trainer.default_root_dir", str(tmp_path / "run")])
    assert not mark.exists()


def test_odd_metadata_of_statistics_is_text(small_run, small_world, tmp_path):
    tensors = {f"{layer}": torch.eye(64) for layer in (0, 1)}
    odd = {"format": "!!python/object:evilmod.X", "__class__": "evilmod.X", "sha256": "[/b]\x1b" * 999}
    save_file(tensors, tmp_path / "c0.safetensors", metadata=odd)
    with pytest.raises(SystemExit) as left:
        main([*small_run, "--stage_two.statistics", "StoredStatistics", "--stage_two.statistics.path",
              str(tmp_path / "c0.safetensors"), "--trainer.default_root_dir", str(tmp_path / "run")])  # fmt: skip
    assert "Traceback" not in str(left.value.code)


def test_a_chat_template_is_sandboxed(small_world, mark, tmp_path, small_run):
    shutil.copytree(small_world / "model", tmp_path / "model")
    payload = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch " + str(
        mark
    )
    (tmp_path / "model" / "chat_template.jinja").write_text(payload + "') }}{{ messages[0].content }}")
    with pytest.raises(SystemExit) as left:
        main([*small_run, "--model.pretrained", str(tmp_path / "model"), "--model.chat", "true",
              "--trainer.default_root_dir", str(tmp_path / "run")])  # fmt: skip
    assert "chat template" in str(left.value.code)
    assert not mark.exists()


def test_a_ledger_cannot_write_to_the_terminal(run, capsys):
    path = run / "ledger.jsonl"
    first, *others = path.read_text().splitlines()
    entry = json.loads(first) | {
        "prompt": "\x1b]0;pwned\x07\x1b[2J\x9b31m[/b][link=http://x]",
        "\x1b[5m": "x",
        "batch": 10**40,
    }
    path.write_text("\n".join([json.dumps(entry), *others]) + "\n")
    for command in (["log", str(run)], ["show", str(run), "0"]):
        main(command)
        said = capsys.readouterr().out
        assert "\\x1b]0;pwned" in said
        assert not {"\x1b", "\x07", "\x9b"} & set(said)
    main(["log", str(run), "--as_json", "true"])
    assert not {"\x1b", "\x07"} & set(capsys.readouterr().out)


def test_a_readout_is_found_in_a_stage_two_of_ones_own():
    readout = {"class_path": "lke_lightning.stage_two.transforms.SpectralCap", "init_args": {"base": 1.5}}
    found = rebuild_readout({"stage_two": {"class_path": "mine.Two", "init_args": {"readout": readout}}})
    assert found.base == 1.5
