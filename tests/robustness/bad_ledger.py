"""Bad ledgers: damaged, cut, missing, without fields; for `log`, `show`, `undo` and `report`."""

import json
import shutil

from lke_lightning.ledger import NAME
from tests.robustness.bad_input import Bad

COMMANDS = {
    "log": ["log", "RUN"],
    "show": ["show", "RUN", "3"],
    "undo": ["undo", "RUN", "--edit", "3"],
    "report": ["report", "RUN"],
    "fit": ["fit", "--trainer.default_root_dir", "RUN", "--ckpt_path", "last"],
}


def run_with(command, spoil):
    """Arguments of a command about a copy of the finished run whose ledger is bad; `spoil` changes its lines."""

    def arguments(folder, world):
        shutil.copytree(world / "run", folder / "run", symlinks=True)
        path = folder / "run" / NAME
        lines = path.read_bytes().splitlines(keepends=True)
        changed = spoil(lines)
        path.unlink()
        if changed is not None:
            path.write_bytes(b"".join(changed))
        return [word.replace("RUN", str(folder / "run")) for word in COMMANDS[command]]

    return arguments


def first(line):
    """Put a line in the place of the first, of the same length where that can be."""
    return lambda lines: [line.ljust(len(lines[0]) - 1) + b"\n", *lines[1:]]


def entry(**changes):
    """Change fields of the first entry; `...` takes one out."""

    def spoil(lines):
        held = json.loads(lines[0]) | changes
        return [json.dumps({name: value for name, value in held.items() if value is not ...}).encode() + b"\n",
                *lines[1:]]  # fmt: skip

    return spoil


def of(**fields):
    return first(json.dumps(fields).encode())


DAMAGED = r"ledger\.jsonl is damaged: line 1 is not an entry of a ledger"

CASES = [
    *(Bad(f"ledger-{command}-{name}", run_with(command, first(line)), DAMAGED + ".*put an intact copy")
      for command in ("log", "show", "undo", "report")
      for name, line in [
          ("words", b"not json"), ("list", b"[1]"), ("number", b"7"), ("without-event", b'{"id": "0"}'),
          ("not-utf-8", b'{"event": "edit", "id": "\xff\xfe"}'),
          ("half-a-character", b'{"event": "x", "id": "\\ud800"}'),
      ]),
    *(Bad(f"ledger-{command}-nested", run_with(command, first(b"[" * 200_000)), DAMAGED)
      for command in ("log", "report")),
    *(Bad(f"ledger-{command}-huge-number", run_with(command, first(b'{"event": "x", "n": ' + b"9" * 5000 + b"}")),
          DAMAGED) for command in ("log", "report")),
    *(Bad(f"ledger-{command}-{name}", run_with(command, entry(**changes)), f"line 1 .*{field} is missing or of another")
      for command, name, changes, field in [
          ("log", "without-id", {"id": ...}, "id"), ("log", "prompt-a-number", {"prompt": 3}, "prompt"),
          ("log", "without-subject", {"subject": ...}, "subject"), ("log", "target-null", {"target": None}, "target"),
          ("show", "id-a-number", {"id": 3}, "id"), ("show", "number-a-word", {"number": "first"}, "number"),
          ("report", "batch-a-word", {"batch": "first"}, "batch"), ("report", "without-batch", {"batch": ...}, "batch"),
          ("undo", "weight-a-word", {"weight": "heavy" * 9}, "weight"),
      ]),
    *(Bad(f"ledger-log-{fields['event']}-without-its-fields", run_with("log", of(**fields)), f"{gone} is missing")
      for fields, gone in [
          ({"event": "guard"}, "action"), ({"event": "guard", "action": "skip", "measured": [1]}, "measured"),
          ({"event": "undo"}, "id"), ({"event": "left_out", "id": "0", "prompt": "x"}, "subject"),
          ({"event": "batch", "batch": 0}, "edits"),
      ]),
    *(Bad(f"ledger-{command}-of-nothing", run_with(command, lambda _: []), r"ledger\.jsonl has 0 bytes.*put the orig")
      for command in ("undo",)),
    *(Bad(f"ledger-{command}-cut", run_with(command, lambda lines: lines[:4]), r"ledger\.jsonl has \d+ bytes.*put the",
          loads_model=command == "fit") for command in ("undo", "fit")),
    *(Bad(f"ledger-{command}-gone", run_with(command, lambda _: None), "ledger")
      for command in ("log", "show", "undo")),
    Bad("ledger-undo-without-the-edit", run_with("undo", lambda lines: [line.replace(b'"id": "3"', b'"id": "x"')
                                                                        for line in lines]), "does not tell of edit 3"),
]  # fmt: skip
