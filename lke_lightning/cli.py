"""The command line: which command is meant, and how errors reach the user."""

from __future__ import annotations

import difflib
import errno
import inspect
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any

COMMANDS = {
    "fit": ("edit a model, batch by batch; without arguments: 200 facts of the demo world", None),
    "plan": ("say what memory, disk and time a run of fit will take; arguments of fit", "commands.plan"),
    "validate": ("score a model on facts, unedited or from a checkpoint (--ckpt_path)", None),
    "compare": ("run several methods on the same edits and make one table of them (--plan)", "sweeps.compare"),
    "tune": (
        "sweep strengths on a slice of the edits and propose some; arguments of fit follow after --",
        "sweeps.tune",
    ),
    "probe": ("show where a model keeps its facts, and propose layers and strengths (--pretrained)", "sweeps.probe"),
    "published": ("print the YAML file of published strengths: published METHOD MODEL [DATA]", "published"),
    "log": ("list what a run did: log RUN", "commands.history"),
    "show": ("print all that is known of one edit: show RUN ID", "commands.history"),
    "report": ("make one page of figures and tables of runs: report RUN [RUN ...]", "report"),
    "undo": ("take edits of a run back, exactly: undo RUN --edit ID [ID ...]", "commands.undo"),
    "redo": ("write edits again that were undone: redo RUN --edit ID [ID ...]", "commands.undo"),
    "export": ("take the edits away: a whole model, the change alone, or an adapter", "export"),
    "pretrain": ("train the demo model anew", "demo.pretraining"),
    "knowledge": ("measure what the demo model, or another, knows of the demo world", "demo.pretraining"),
}
"""What each command does, and the module with the function of its name; `None`: Lightning's."""

NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a disk that the user can do something about."""


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
    try:
        if COMMANDS[command][1] is None:
            import_module("lke_lightning.fitting").run(args)
        elif command == "plan":
            run = import_module("lke_lightning.fitting").run
            _function(command)(args[1:], lambda given, instead: run(["fit", *given], instead))
        else:
            _run_function(command, args[1:])
    except Exception as error:
        told = _told(error)
        if told is None:
            raise
        sys.exit(f"error: {told}")


def _told(error: BaseException | None) -> str | None:
    """Return what the user should read of an error; `None`: it is a defect of the program.

    Parsers wrap what a class raises when it is made, so the cause is looked for along the chain.
    """
    from lke_lightning.edits import EditError

    while error is not None:
        if isinstance(error, EditError):
            return str(error)
        if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
            return f"cannot write {error.filename}: {error.strerror}. What was saved before is whole"
        error = error.__cause__ or error.__context__
    return None


def _run_function(command: str, args: list[str]) -> None:
    from jsonargparse import auto_cli

    function = _function(command)
    result = auto_cli(function, args=_spelled_out(function, args), as_positional=False, prog=f"lke_lightning {command}")
    for name, value in (result or {}).items():
        print(f"{name:20} {value:.4g}")


def _spelled_out(function: Callable[..., Any], args: list[str]) -> list[str]:
    """Give names to arguments without one, and brackets to lists: `RUN --edit 1 2` as `--run RUN --edit ["1", "2"]`.

    A list without a name takes all words before the first option: `A B --output X` as `--runs ["A", "B"] --output X`.
    What follows `--` is the list of arguments for `fit`.
    """
    parameters = inspect.signature(function).parameters
    lists = {f"--{name}" for name, parameter in parameters.items() if str(parameter.annotation).startswith("list")}
    rest = args[args.index("--") + 1 :] if "--" in args else None
    args = args[: args.index("--")] if rest is not None else args
    spelled: list[str] = []
    names = iter(parameters)
    while args and not args[0].startswith("-"):
        option, taken = f"--{next(names, 'unexpected')}", 1
        if option in lists:  # a list without a name takes all the words up to the first option
            taken = next((i for i, arg in enumerate(args) if arg.startswith("-")), len(args))
        is_list = option in lists and not args[0].startswith("[")
        spelled += [option, json.dumps(args[:taken])] if is_list else [option, *args[:taken]]
        args = args[taken:]
    for option, values in _options(args):
        is_list = option in lists and not (values and values[0].startswith("["))
        spelled += [option, json.dumps(values)] if is_list else [option, *values]
    return spelled if rest is None else [*spelled, "--arguments", json.dumps(rest)]


def _options(args: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each option with the values that follow it."""
    starts = [i for i, arg in enumerate(args) if arg.startswith("-")]
    for start, end in itertools.pairwise([*starts, len(args)]):
        yield args[start], args[start + 1 : end]


def _function(command: str) -> Callable[..., Any]:
    """Return what a command calls; imported only now, because some of them take seconds to import."""
    return getattr(import_module(f"lke_lightning.{COMMANDS[command][1]}"), command)
