"""Names of other libraries that are not promised to stay: each used in one place, and missed here first."""

import inspect
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lke_lightning"


def signal_connector():
    from lightning.pytorch import Trainer

    return Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")._signal_connector.received_sigterm


def launcher_kill():
    from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

    return _SubprocessScriptLauncher.kill


def parse_ckpt_path():
    from lightning.pytorch.cli import LightningCLI

    assert "self._parse_ckpt_path()" in inspect.getsource(LightningCLI.__init__)
    return LightningCLI._parse_ckpt_path


def cli_get():
    from lightning.pytorch.cli import LightningCLI

    assert list(inspect.signature(LightningCLI._get).parameters)[:3] == ["self", "config", "key"]
    return LightningCLI._get


def parser_actions():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_argument("--one")
    return [action for action in parser._actions if "--one" in action.option_strings]


def data_parallel_size():
    from lightning.pytorch.strategies import ModelParallelStrategy

    return ModelParallelStrategy(data_parallel_size=2)._data_parallel_size


def module_trainer():
    from lightning.pytorch import LightningModule

    assert LightningModule()._trainer is None
    return "None where there is no trainer yet"


def epoch_progress():
    from lightning.pytorch import Trainer

    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    state = trainer.fit_loop.state_dict()
    assert {"ready", "started", "processed", "completed"} <= set(state["epoch_progress"]["current"])
    return state


def is_stateful():
    from transformers import MambaForCausalLM

    return MambaForCausalLM._is_stateful


NAMES = {
    r"\._signal_connector\b": signal_connector,
    r"\.launcher\.kill\b": launcher_kill,
    r"\b_parse_ckpt_path\b": parse_ckpt_path,
    r"\bself\._get\(": cli_get,
    r"\bparser\._actions\b": parser_actions,
    r"\b_data_parallel_size\b": data_parallel_size,
    r"\bself\._trainer\b": module_trainer,
    r"\"epoch_progress\"": epoch_progress,
    r"\b_is_stateful\b": is_stateful,
}
"""A pattern of each name as the package writes it, and what finds it in its library."""


@pytest.mark.parametrize("pattern", NAMES)
def test_a_private_name_is_there_and_in_one_file_at_most(pattern):
    users = [file for file in PACKAGE.rglob("*.py") if re.search(pattern, file.read_text())]
    assert len(users) == 1, "used nowhere: take it from this table; used twice: give it one home"
    assert NAMES[pattern]() not in (None, [])
