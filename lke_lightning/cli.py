"""The command line. `fit` and `validate` are Lightning's, with the two stages as sections of their own."""

from __future__ import annotations

import difflib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, NoReturn

from lke_lightning.configuration import configs

COMMANDS = {
    "fit": ("edit a model, batch by batch; without arguments: 200 facts of the demo world", None),
    "plan": ("say what memory, disk and time a run of fit will take; arguments of fit", "commands.plan"),
    "validate": ("score a model on facts, unedited or from a checkpoint (--ckpt_path)", None),
    "compare": ("run several methods on the same edits and make one table of them (--plan)", "sweeps.compare"),
    "tune": (
        "sweep strengths on a slice of the edits and propose some; arguments of fit follow after --",
        "sweeps.tune",
    ),
    "export": ("write the edited model of a checkpoint as a plain transformers folder", "commands.export"),
    "pretrain": ("train the demo model anew", "demo.pretraining"),
    "knowledge": ("measure what the demo model, or another, knows of the demo world", "demo.pretraining"),
}
"""What each command does, and the module with the function of its name; `None`: Lightning's."""


def main(args: Sequence[str] | None = None) -> None:
    """Run one command.

    Args:
        args: the command line without the program's name; `None` takes it from `sys.argv`.

    Raises:
        SystemExit: help was asked for, or the input is wrong; the message says what to do.
    """
    args = list(sys.argv[1:] if args is None else args)
    command = args[0] if args else "--help"
    if command in ("-h", "--help"):
        print("usage: python -m lke_lightning COMMAND [options]\n\nLifelong knowledge editing of language models.\n")
        print("\n".join(f"  {name:10} {what}" for name, (what, _) in COMMANDS.items()))
        print("\nEvery command has its own --help; fit and validate take YAML files with -c.")
        return
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, 1)
        hint = f": did you mean {close[0]!r}?" if close else f"; there are {', '.join(COMMANDS)}"
        sys.exit(f"error: no command {command!r}{hint}")
    from lke_lightning.edits import EditError

    try:
        if COMMANDS[command][1] is None:
            _edit(args)
        elif command == "plan":
            _function(command)(args[1:], lambda given, instead: _edit(["fit", *given], instead))
        else:
            _run_function(command, args[1:])
    except EditError as error:
        sys.exit(f"error: {error}")


def suggest(message: str, options: Sequence[str], classes: Sequence[str]) -> str:
    """Name the known options or classes closest to the unknown one that an error message speaks of."""
    unknown = re.findall(r"--([\w.]+)|[Kk]ey [\"']([\w.]+)[\"']|does not accept [\w ]*[\"']?([\w.]+)", message)
    last = {option.rsplit(".", 1)[-1]: option for option in options}
    close: list[str] = []
    for name in (next(filter(None, groups)) for groups in unknown):
        found = difflib.get_close_matches(name, options, 3, 0.6)
        found += [last[match] for match in difflib.get_close_matches(name.rsplit(".", 1)[-1], last, 3, 0.7)]
        close += ["--" + option for option in found if option != name]
    for name in re.findall(r"Given value: ([A-Za-z]\w*)", message):
        close += [match for match in difflib.get_close_matches(name, classes, 3, 0.6) if match != name]
    return f"{message}\nDid you mean: {', '.join(dict.fromkeys(close))}?" if close else message


def _subclasses(base: type) -> Iterator[type]:
    for part in base.__subclasses__():
        yield part
        yield from _subclasses(part)


def _run_function(command: str, args: list[str]) -> None:
    from jsonargparse import auto_cli

    if command == "tune" and "--" in args:
        end = args.index("--")
        args = [*args[:end], "--arguments", json.dumps(args[end + 1 :])]
    result = auto_cli(_function(command), args=args, as_positional=False, prog=f"lke_lightning {command}")
    for name, value in (result or {}).items():
        print(f"{name:20} {value:.4g}")


def _function(command: str) -> Callable[..., Any]:
    """Return what a command calls; imported only now, because some of them take seconds to import."""
    return getattr(import_module(f"lke_lightning.{COMMANDS[command][1]}"), command)


def _edit(args: list[str], instead: Callable[..., None] | None = None) -> None:
    """Run `fit` or `validate` through LightningCLI; `instead` of `fit`, call this with trainer, editor and stream."""
    import warnings

    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
    from lightning.pytorch.loggers import CSVLogger

    from lke_lightning.callbacks.progress import BatchLine
    from lke_lightning.data import EditStream
    from lke_lightning.editor import Editor
    from lke_lightning.evaluation.scorecard import Scorecard
    from lke_lightning.stage_one.objectives import Objective
    from lke_lightning.stage_one.optimization import TargetOptimization
    from lke_lightning.stage_one.stopping import StopRule
    from lke_lightning.stage_one.target_space import TargetSpace
    from lke_lightning.stage_two.keys import KeyPolicy
    from lke_lightning.stage_two.preservation import Preservation
    from lke_lightning.stage_two.solvers import Solver
    from lke_lightning.stage_two.statistics import Statistics
    from lke_lightning.stage_two.transforms import ReadoutTransform, UpdateTransform
    from lke_lightning.stage_two.update import WeightUpdate

    # What is imported can be named in YAML without its path.
    stage_one_bases = (Objective, StopRule, TargetSpace)
    stage_two_bases = (Solver, Preservation, KeyPolicy, Statistics, UpdateTransform, ReadoutTransform)
    bases = (EditStream, *stage_one_bases, *stage_two_bases)
    parts = [part.__name__ for base in bases for part in _subclasses(base)]

    class EditParser(LightningArgumentParser):
        """A parser whose errors name the options that come close."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            parser = getattr(ex, "subcommand_parser", None) or self
            options = sorted(
                {name[2:] for action in parser._actions for name in action.option_strings if ".help" not in name}
            )
            super().error(suggest(message, options, parts), ex)

    class EditCLI(LightningCLI):
        """Lightning's command line, with the two stages, the scorecard and the checkpoint as sections."""

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            given = LightningCLI.subcommands()
            return {name: given[name] for name in ("fit", "validate")}

        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_lightning_class_args(TargetOptimization, "stage_one")
            parser.add_lightning_class_args(WeightUpdate, "stage_two")
            parser.add_lightning_class_args(Scorecard, "scorecard")
            parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
            parser.link_arguments("stage_one.reference_quirks", "stage_two.reference_quirks")
            parser.set_defaults(
                {"checkpoint.save_last": True, "checkpoint.save_top_k": 1, "checkpoint.every_n_train_steps": 10}
            )

        def before_instantiate_classes(self) -> None:
            trainer, checkpoint = self._get(self.config, "trainer"), self._get(self.config, "checkpoint")
            if trainer.default_root_dir is None:
                trainer.default_root_dir = f"runs/{time.strftime('%Y%m%d-%H%M%S')}"
            if checkpoint.dirpath is None:
                checkpoint.dirpath = f"{trainer.default_root_dir}/checkpoints"

        def instantiate_trainer(self, **kwargs: Any) -> Any:
            trainer = self._get(self.config_init, "trainer")
            if trainer["logger"] is None:
                kwargs["logger"] = CSVLogger(trainer["default_root_dir"])
            return super().instantiate_trainer(**kwargs)

    if instead is not None:
        EditCLI.fit = lambda cli, **_: instead(cli.trainer, cli.model, cli.datamodule)

    # A language model in evaluation mode, and batches of text, are what editing wants.
    for expected in ("in eval mode at the start", "does not have many workers", "overridden `transfer_batch"):
        warnings.filterwarnings("ignore", message=f".*{expected}.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # deprecation inside lightning 2.6.6
    warnings.filterwarnings("ignore", message=".*set_vital.*")  # deprecation inside torchdata 0.11
    warnings.filterwarnings("ignore", message=".*args parameter is intended.*")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    defaults = [str(configs() / name) for name in ("method/encore.yaml", "model/demo.yaml", "data/demo.yaml")]
    EditCLI(
        Editor,
        EditStream,
        subclass_mode_data=True,
        args=args,
        parser_class=EditParser,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={name: {"default_config_files": defaults} for name in ("fit", "validate")},
        trainer_defaults={
            "max_epochs": 1,
            "use_distributed_sampler": False,  # the order of edits is data
            "num_sanity_val_steps": 0,
            "inference_mode": False,
            "log_every_n_steps": 1,
            "enable_model_summary": False,
            "callbacks": [BatchLine()],
        },
    )
