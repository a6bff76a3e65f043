"""The names that come close to a mistaken one."""

from __future__ import annotations

import difflib
import re
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence

UNKNOWN = re.compile(r"--([\w.]+)|(?:[Kk]ey|Option) [\"']([\w.]+)[\"']|does not accept [\w ]*[\"']?([\w.]+)")
"""Where messages of argparse, jsonargparse and Lightning name what they do not know."""

NOISE = ("Does not validate against", "Subtypes:", "Errors:", "- Expected a <class 'NoneType'>", "Given value type:")
"""How the lines begin in which jsonargparse lists the types that a value might have had."""


def suggest(message: str, options: Sequence[str], classes: Sequence[str] = ()) -> str:
    """Say a parser's message on one line, and name the options or classes closest to the unknown one it speaks of."""
    lines = [line.strip() for line in message.splitlines()]
    message = " ".join(line for line in lines if not line.startswith(NOISE) and "NestedArg(" not in line)
    message = re.sub(r'^Parser key "([^"]+)":', r"--\1:", message)
    section = re.match(r"--([\w.]+):", message)
    within = f"{section[1]}." if section and any(option.startswith(f"{section[1]}.") for option in options) else ""
    named = {section[1]} if section and within else set()
    unknown = {next(filter(None, groups)) for groups in UNKNOWN.findall(message)} - named
    unknown = {name if "." in name else within + name for name in unknown}
    last = {option.rsplit(".", 1)[-1]: option for option in options}
    close: list[str] = []
    for name in unknown.difference(options):
        found = difflib.get_close_matches(name, options, 3, 0.6)
        found += [last[match] for match in difflib.get_close_matches(name.rsplit(".", 1)[-1], last, 3, 0.7)]
        close += ["--" + option for option in found if option != name]
    for name in re.findall(r"(?:Given value|import path string): ([A-Za-z]\w*)", message):
        close += [match for match in difflib.get_close_matches(name, classes, 3, 0.6) if match != name]
    return f"{message}\nDid you mean: {', '.join(dict.fromkeys(close))}?" if close else message


def options_of(parser: ArgumentParser) -> list[str]:
    """Return the names of a parser's options, those that ask for help left out."""
    flags = {flag for action in parser._actions for flag in action.option_strings}
    return sorted(flag[2:] for flag in flags if ".help" not in flag)


def subclasses(base: type) -> Iterator[type]:
    """Yield all that derive from a class, at any distance."""
    known: list[type] = base.__subclasses__()
    for part in known:
        yield part
        yield from subclasses(part)
