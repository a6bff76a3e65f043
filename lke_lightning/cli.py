"""The command line: which command is meant, and how errors reach the user."""

from __future__ import annotations

import argparse
import difflib
import errno
import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple, NoReturn, get_args, get_type_hints

from lke_lightning.progress import reported, reporter_for, work


class Command(NamedTuple):
    """A command: what it does, where the function of its name is, and which of its parameters are plain words."""

    what: str
    module: str | None = None
    """`None`: Lightning's command line, in `fitting`."""
    words: tuple[str, ...] = ()
    """Parameters that are given in this order, without their names."""
    is_named: bool = False
    """Whether the word may be given by its name as well."""
    fits: bool = False
    """Whether it takes arguments of `fit`, and `fit` to hand them to."""
    is_quick: bool = False
    """Whether it needs neither torch nor Lightning, which take seconds to import."""


COMMANDS = {
    "fit": Command("edit a model, batch by batch; without arguments: 200 facts of the demo world"),
    "plan": Command(
        "say what memory, disk and time a run of fit will take; arguments of fit", "commands.plan", fits=True
    ),
    "validate": Command("score a model on facts, unedited or from a checkpoint (--ckpt_path)"),
    "real": Command("edit a small public model, which is downloaded; arguments of fit", "commands.real", fits=True),
    "singly": Command(
        "make each edit alone, on the unedited model (--output); arguments of fit", "commands.singly", fits=True
    ),
    "compare": Command("run several methods on the same edits and make one table of them (--plan)", "sweeps.compare"),
    "study": Command(
        "measure again what a publication has measured, and hold its claims against it: study NAME",
        "sweeps.study",
        ("name",),
    ),
    "tune": Command(
        "search for hyperparameters on a slice of the edits; arguments of fit follow after --",
        "sweeps.tune",
        ("arguments",),
    ),
    "probe": Command("show where a model keeps its facts; propose layers (--pretrained)", "sweeps.probe"),
    "published": Command(
        "print the YAML file of published hyperparameters: published METHOD MODEL [DATA]",
        "published",
        ("method", "model", "data"),
        is_quick=True,
    ),
    "ask": Command(
        "let the unedited and the edited model answer, side by side: ask RUN [PROMPT ...]",
        "commands.ask",
        ("run", "prompts"),
    ),
    "studio": Command("serve a page to ask, edit and undo on, on this machine: studio RUN", "studio", ("run",)),
    "log": Command("list what a run did: log RUN", "commands.history", ("run",)),
    "show": Command("print all that is known of one edit: show RUN ID", "commands.history", ("run", "edit")),
    "report": Command("make one page of figures and tables of runs: report RUN [RUN ...]", "report", ("runs",)),
    "undo": Command("undo edits of a run, exactly: undo RUN --edit ID [ID ...]", "commands.undo", ("run",)),
    "redo": Command("write edits again that were undone: redo RUN --edit ID [ID ...]", "commands.undo", ("run",)),
    "export": Command(
        "write the edits as a model, a delta, an adapter, a GGUF file or a memory: export RUN --output X",
        "export",
        ("ckpt_path",),
        is_named=True,
    ),
    "lm_eval": Command(
        "run lm-eval's tasks on the edited model of a run: lm_eval RUN -- --tasks NAME",
        "commands.lm_eval",
        ("run", "arguments"),
    ),
    "pretrain": Command("train the demo model anew", "demo.pretraining"),
    "knowledge": Command("measure what the demo model, or another, knows of the demo world", "demo.pretraining"),
}
"""All commands, in the order in which they are listed."""
UNWRITABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM,
    errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
)  # fmt: skip
"""Reasons for which the user's disk or folder refuses what is written."""


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
        print("\n".join(f"  {name:10} {what}" for name, (what, *_) in COMMANDS.items()))
        print("\nEvery command has its own --help; fit and validate take YAML files with -c.")
        return
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, 1)
        hint = f": did you mean {close[0]!r}?" if close else f"; there are {', '.join(COMMANDS)}"
        sys.exit(f"error: no command {command!r}{hint}")
    try:
        with reported(reporter_for(sys.stderr)):
            if COMMANDS[command].module is None:
                _imported("fitting", command).run(args)
            elif COMMANDS[command].fits:
                function, run = _function(command), import_module("lke_lightning.fitting").run
                function(args[1:], lambda given, instead: run(["fit", *given], instead))
            else:
                _run_function(command, args[1:])
    except Exception as error:
        told = _told(error)
        if told is None:
            raise
        sys.exit(f"error: {told}")


def _told(error: BaseException) -> str | None:
    """Return what the user should read of an error; `None`: it is a defect of the program."""
    from lke_lightning.edits import EditError

    own = EditError.behind(error)
    if own is None and isinstance(error, OSError) and error.errno in UNWRITABLE:
        return f"cannot write {error.filename}: {error.strerror}. What was saved before is whole"
    return None if own is None else str(own)


def _function(command: str) -> Callable[..., Any]:
    """Return what a command calls; imported only now, because some of them take seconds to import."""
    return getattr(_imported(str(COMMANDS[command].module), command), command)


def _imported(module: str, command: str) -> ModuleType:
    """Import a module of the package, and say first that something is done where that takes seconds."""
    name = f"lke_lightning.{module}"
    is_quick = name in sys.modules or COMMANDS[command].is_quick
    with nullcontext() if is_quick else work(f"Starting {command}"):
        return import_module(name)


def _run_function(command: str, args: list[str]) -> None:
    parser: Any = _parser(command)  # jsonargparse puts methods on it that are not declared
    result = _function(command)(**parser.instantiate(parser.parse_args(args)).as_dict())
    for name, value in (result or {}).items():
        print(f"{name:20} {value:.4g}")


def _parser(command: str) -> argparse.ArgumentParser:
    """Make the parser of a command from its function: words without a name first, lists of words without brackets."""
    from docstring_parser import parse
    from jsonargparse import ArgumentParser

    from lke_lightning.suggestions import options_of, subclasses, suggest

    class Parser(ArgumentParser):
        """A parser whose errors are short, with the options and classes that come close."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            message = suggest(message, options_of(self), classes)
            if not self.exit_on_error:  # the parser of a part: its message goes into the one of the whole
                super().error(message, ex)
            self.exit(2, f"error: {message}\nSee {self.prog} --help\n")

    function, words = _function(command), COMMANDS[command].words
    parameters, told = inspect.signature(function).parameters, parse(function.__doc__)
    types = [kind for hint in get_type_hints(function).values() for kind in (hint, *get_args(hint))]
    ours = [kind for kind in types if isinstance(kind, type) and kind.__module__.startswith("lke_lightning")]
    classes = [part.__name__ for kind in ours for part in subclasses(kind)]
    help_of = {argument.arg_name: argument.description for argument in told.params}
    lists = [name for name, parameter in parameters.items() if str(parameter.annotation).startswith("list[str]")]
    parser = Parser(prog=f"lke_lightning {command}", description=told.description, allow_abbrev=False)
    parser.add_function_arguments(function, as_group=False, skip={*words, *lists})
    for name in dict.fromkeys((*words, *lists)):
        is_required = parameters[name].default is inspect.Parameter.empty
        nargs: Any = {"nargs": "+" if is_required else "*"} if name in lists else {} if is_required else {"nargs": "?"}
        if name in words and COMMANDS[command].is_named:
            either = parser.add_mutually_exclusive_group(required=True)
            either.add_argument(name, nargs="?", default=argparse.SUPPRESS, help=help_of[name])
            either.add_argument(f"--{name}", help="the same, by its name")
        elif name in words:
            parser.add_argument(name, help=help_of[name], **nargs)
        else:
            parser.add_argument(f"--{name}", help=help_of[name], required=is_required, **nargs)
    return parser
