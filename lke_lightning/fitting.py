"""`fit` and `validate`: Lightning's command line, with the two stages as sections of their own."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import set_dumper, set_loader
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from lke_lightning import checkpoints
from lke_lightning.callbacks.checkpoint import SafeCheckpointIO
from lke_lightning.callbacks.progress import BatchLine
from lke_lightning.composition import complete, plainly
from lke_lightning.configuration import configs, load, read
from lke_lightning.data import EditStream
from lke_lightning.distributed import RUN_FOLDER, named_folder
from lke_lightning.editor import Editor
from lke_lightning.edits import EditError
from lke_lightning.evaluation.downstream import Task
from lke_lightning.ledger import locked
from lke_lightning.model.units import Expansion
from lke_lightning.progress import AboveBars, reported, reporter_for
from lke_lightning.stage_one.objectives import Objective
from lke_lightning.stage_one.stage import StageOne
from lke_lightning.stage_one.stopping import StopRule
from lke_lightning.stage_one.target_space import TargetSpace
from lke_lightning.stage_one.transforms import TargetTransform
from lke_lightning.stage_two.keys import KeyPolicy
from lke_lightning.stage_two.placement import LayerPolicy
from lke_lightning.stage_two.preservation import Preservation
from lke_lightning.stage_two.retrieval import Retriever
from lke_lightning.stage_two.solvers import Solver
from lke_lightning.stage_two.stage import StageTwo
from lke_lightning.stage_two.statistics import Statistics
from lke_lightning.stage_two.transforms import ReadoutTransform, UpdateTransform
from lke_lightning.stage_two.tuning.constraints import StepConstraint
from lke_lightning.stage_two.tuning.objectives import TuningObjective
from lke_lightning.stage_two.tuning.order import Order
from lke_lightning.stage_two.tuning.parameters import Parametrisation
from lke_lightning.stages import SLOTS
from lke_lightning.suggestions import options_of, subclasses, suggest
from lke_lightning.trainer import CALLBACKS, SETTINGS, check_order, check_settings

# What is imported can be named in YAML without its path.
BASES = (
    EditStream, StageOne, StageTwo, Objective, StopRule, TargetSpace, TargetTransform, Expansion,
    Solver, Preservation, KeyPolicy, LayerPolicy, Statistics, UpdateTransform, ReadoutTransform, Retriever, Task,
    TuningObjective, Parametrisation, StepConstraint, Order,
)  # fmt: skip

METHOD = "method/encore.yaml"
"""What is done where no method is named."""

FOREIGN = (
    "Seed set to", "GPU available:", "TPU available:", "LOCAL_RANK:", "\N{ELECTRIC LIGHT BULB} Tip:", "Restor",
    "Loaded model weights", "`Trainer.fit` stopped: `max_epochs=1`",
)  # fmt: skip
"""How lines of Lightning's begin that say nothing about an editing run, or what it says itself."""
SPEAKERS = (
    "lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero", "lightning.fabric.utilities.seed",
)  # fmt: skip
"""The loggers that they come through, as do our own lines."""

Instead = Callable[[Trainer, Editor, EditStream], None]


class EditParser(LightningArgumentParser):
    """A parser that reads YAML files with care, and whose errors name the options that come close."""

    def parse_path(self, path: Any, *args: Any, **options: Any) -> Any:
        """Refuse what holds no sections before it is parsed."""
        read(path)
        return super().parse_path(path, *args, **options)

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        """Take None for null: with that word options of a part's parts come back from jsonargparse's own parsing."""
        given = sys.argv[1:] if args is None else args
        return super().parse_args([re.sub("=None$", "=null", one) for one in given], *more, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Add suggestions to the message."""
        parser = getattr(ex, "subcommand_parser", None) or self
        classes = [part.__name__ for base in BASES for part in subclasses(base)]
        within = [
            f"{section}.{option}"
            for section, (kind, _) in SLOTS.items()
            for part in subclasses(kind)
            for option in signature(part).parameters
        ]
        super().error(suggest(message, [*options_of(parser), *within], classes), ex)


class EditCLI(LightningCLI):
    """Lightning's command line with a section for each callback of a run.

    Args:
        command: `fit` or `validate`; the parser of no other is made.
        held: the lock on the run's folder enters here.
        instead: called with trainer, editor and stream in the place of `fit`; then no folder is needed.
        options: see `LightningCLI`.
    """

    def __init__(self, command: str, held: ExitStack, instead: Instead | None, **options: Any) -> None:
        self._command, self._held, self._instead = command, held, instead
        super().__init__(**options)

    def subcommands(self) -> dict[str, set[str]]:
        """Offer the one command."""
        return {self._command: LightningCLI.subcommands()[self._command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the sections, in the order in which the callbacks act."""
        for section, kind in CALLBACKS.items():
            parser.add_lightning_class_args(kind, section, subclass_mode=section in SLOTS, required=False)
        complete(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Find the run's folder, keep others out of it, and find the checkpoint, before anything is loaded.

        Raises:
            EditError: a setting of the trainer means nothing for an editor; the folder is another run's, or cannot be
                written, or the processes cannot know its name; there is no such checkpoint.
        """
        super().parse_arguments(parser, args)
        given = self.config[self.config.subcommand]
        check_settings(given.trainer)
        if not isinstance(given.seed_everything, bool) and not 0 <= given.seed_everything < 2**32:
            raise EditError(f"seed_everything is {given.seed_everything}: a seed is 0 or more, and below 2^32")
        if self._instead is not None:
            return
        if given.trainer.default_root_dir == "":
            raise EditError("trainer.default_root_dir is empty: name a folder, or leave the option out")
        if given.trainer.default_root_dir is None:
            folder = named_folder(_is_first_rank()) or f"runs/{time.strftime('%Y%m%d-%H%M%S')}"
            given.trainer.default_root_dir = folder
        os.environ[RUN_FOLDER] = given.trainer.default_root_dir  # Lightning's launcher runs this command per device
        root, fits_alone = Path(given.trainer.default_root_dir), self.config.subcommand == "fit" and _is_first_rank()
        if fits_alone:
            self._held.enter_context(locked(root))
        if given.ckpt_path == "last":
            given.ckpt_path = checkpoints.newest(root)
            if given.ckpt_path is None and self.config.subcommand != "fit":
                raise EditError(f"{root} has no checkpoint: name the folder of a run, or leave --ckpt_path out")
            if given.ckpt_path is None:
                rank_zero_info(f"no checkpoint in {root} yet: starting with the first edit")
        elif given.ckpt_path is not None:
            given.ckpt_path = checkpoints.find(given.ckpt_path)
            if fits_alone and root.resolve() not in given.ckpt_path.parents and checkpoints.newest(root):
                raise EditError(f"{root} holds a run, and {given.ckpt_path} is of another: name another folder")
        elif fits_alone and checkpoints.newest(root):
            raise EditError(f"{root} holds a run: continue it with --ckpt_path last, or name another folder")
        if given.ckpt_path is not None:
            checkpoints.peek(given.ckpt_path)  # before the model is loaded, which may take minutes
        given.ckpt_path, given.weights_only = given.ckpt_path and str(given.ckpt_path), True

    def fit(self, **options: Any) -> None:
        """Run the edits, or what is asked for instead."""
        if self._instead is None:
            self.trainer.fit(**options)
        else:
            self._instead(self.trainer, self.model, self.datamodule)

    def _parse_ckpt_path(self) -> None:
        """Do not take the model's settings from the checkpoint: those given are compared with it."""

    def instantiate_classes(self) -> None:
        """Tell the editor what its stages were configured with, for its checkpoints."""
        super().instantiate_classes()
        written = yaml.safe_load(self.parser.dump(self.config, skip_none=False))[self.subcommand]
        self.model.configuration = {name: written[name] for name in ("stage_one", "stage_two")}

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Log into the run's folder, and write checkpoints that cannot be half there."""
        trainer = self._get(self.config_init, "trainer")
        if trainer["logger"] is None:
            kwargs["logger"] = self._instead is None and CSVLogger(trainer["default_root_dir"])
        plugins = trainer["plugins"] or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        more = trainer["callbacks"] if isinstance(trainer["callbacks"], list) else [trainer["callbacks"]]
        check_order([*(self._get(self.config_init, section) for section in CALLBACKS), *more])
        has_bar = any(isinstance(part, ProgressBar) for part in more)
        if has_bar or trainer["enable_progress_bar"] is False:
            self._held.enter_context(reported(reporter_for(sys.stderr, bar=False)))
        if not has_bar:  # the bar is ours
            kwargs["enable_progress_bar"] = False
        try:
            return super().instantiate_trainer(**kwargs, plugins=[*plugins, SafeCheckpointIO()])
        except (MisconfigurationException, ImportError, RuntimeError, ValueError, TypeError) as error:
            raise EditError(f"no trainer can be made of these arguments (trainer): {error}") from error


def run(args: list[str], instead: Instead | None = None) -> None:
    """Run `fit` or `validate`.

    Args:
        args: the command line, from the command's name on.
        instead: called with trainer, editor and stream in the place of `fit`; nothing is loaded or written before.

    Raises:
        EditError: the input cannot be edited with.
        SystemExit: the arguments are wrong, or the process was told to stop.
    """
    # A language model in evaluation mode, and batches of text, are what editing wants.
    for expected in ("in eval mode at the start", "does not have many workers", "overridden `transfer_batch"):
        warnings.filterwarnings("ignore", message=f".*{expected}.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # deprecation inside lightning 2.6.6
    # every process logs the same figures: they were gathered before
    warnings.filterwarnings("ignore", message=".*recommended to use `self.log.*sync_dist=True")
    warnings.filterwarnings("ignore", message=".*set_vital.*")  # deprecation inside torchdata 0.11
    warnings.filterwarnings("ignore", message=".*args parameter is intended.*")
    _speak_plainly()
    set_loader("yaml", load, (yaml.YAMLError,))
    set_dumper("yaml", _dump)
    defaults = [str(configs() / name) for name in (METHOD, "model/demo.yaml", "data/demo.yaml")]
    try:
        with ExitStack() as held:
            EditCLI(
                args[0],
                held,
                instead,
                model_class=Editor,
                datamodule_class=EditStream,
                subclass_mode_data=True,
                args=args,
                parser_class=EditParser,
                auto_configure_optimizers=False,
                seed_everything_default=0,
                save_config_kwargs={"overwrite": True},
                parser_kwargs={args[0]: {"default_config_files": defaults}},
                trainer_defaults={**SETTINGS, "callbacks": [BatchLine()]},
            )
    except SIGTERMException:
        sys.exit(128 + signal.SIGTERM)


def _speak_plainly() -> None:
    """Let what parts say stand above a bar, and leave out what Lightning says of every run."""
    own = logging.getLogger("lke_lightning")  # of the parts that know torch only; the others say it through Lightning
    own.setLevel(logging.INFO)
    if not own.hasHandlers():
        own.addHandler(AboveBars())
    for name in ("lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        if logger.handlers:  # else there are those of the program that this is called from
            logger.handlers = [AboveBars()]
    for name in SPEAKERS:
        logging.getLogger(name).addFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(FOREIGN)


def _dump(content: Any) -> str:
    """Write YAML as jsonargparse does, with options in the words in which they may be given."""
    if isinstance(content, dict):
        content = plainly({name: plainly(part) for name, part in content.items()})  # perhaps below the command's name
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _is_first_rank() -> bool:
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]  # Lightning keeps it on the function
