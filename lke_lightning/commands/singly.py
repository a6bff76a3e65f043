"""Edits one by one, each on the unedited model: what a single edit does to its fact and to the model."""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from lke_lightning.callbacks.scorecard import Scorecard
from lke_lightning.data import EditStream, as_fact
from lke_lightning.editor import Editor
from lke_lightning.edits import KINDS, EditBatch, EditError, EditRequest, check_number
from lke_lightning.evaluation.summary import INTERVALS, section
from lke_lightning.evaluation.teacher_forced import Scores
from lke_lightning.evaluation.text_perplexity import MEPPL
from lke_lightning.evaluation.unedited import UneditedScores, user_cache
from lke_lightning.ledger import locked
from lke_lightning.progress import track
from lke_lightning.results import made_folder, versions, write
from lke_lightning.stage_two.register import Register
from lke_lightning.stages import Stages

LINES, SUMMARY, HARD = "singly.jsonl", "singly.json", "hard.jsonl"

Fit = Callable[[list[str], Callable[[Trainer, Editor, EditStream], None]], None]
"""Parses arguments of `fit` and calls the function with trainer, editor and stream in its place."""


def singly(args: list[str], fit: Fit) -> None:
    """Make each batch of edits on the unedited model, score it, measure the perplexity of short texts, take it back.

    The protocol of single editing, and that of *The Butterfly Effect of Model Editing* (arXiv 2402.09656): an edit
    after which the texts' mean perplexity (ME-PPL) is a multiple of what it was has ruined the model. Such edits are
    written to `hard.jsonl`, as facts that `--data JsonLines` reads. `singly.jsonl` has a line for each batch; an
    interrupted run goes on with the same command, to the rounding of the solver's memory.

    Args:
        args: see the parser; the rest are arguments of `fit`.
        fit: see `Fit`.

    Raises:
        EditError: `fit` would refuse these arguments, or the output is of something else.
    """
    parser = argparse.ArgumentParser(
        prog="lke_lightning singly",
        allow_abbrev=False,
        description="Make each batch of edits on the unedited model, score it and take it back.",
        epilog="All other arguments are those of fit, of one fact a batch by default.",
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where results go; again: goes on")
    parser.add_argument(
        "--text", metavar="FILE", help="ME-PPL's file: records with a field Text; without it, no ME-PPL"
    )
    parser.add_argument(
        "--ruined", type=float, default=10.0, metavar="X", help="ruined: ME-PPL is X times as large (10)"
    )
    own, rest = parser.parse_known_args(args)
    check_number("--ruined", own.ruined, above=1)
    text = None if own.text is None else MEPPL(own.text)
    if text is not None:
        text.check()

    def run(trainer: Trainer, editor: Editor, stream: EditStream) -> None:
        if trainer.world_size > 1:
            raise EditError(f"singly runs in one process, not {trainer.world_size}: give --trainer.devices 1")
        with locked(made_folder(own.output)), trainer.precision_plugin.forward_context():
            Singles(trainer, editor, stream, Path(own.output), text, own.ruined).run()

    fit(["--data.batch_size", "1", *rest], run)


class Singles:
    """A pass over a stream in which no batch meets another.

    Args:
        trainer: has the stages and the scorecard, and says where and in what precision they run.
        editor: loads its model.
        stream: the edits.
        folder: where lines and summary go.
        text: measures ME-PPL; `None`: it is not measured.
        ruined: the multiple of the unedited model's ME-PPL above which an edit is a hard one.
    """

    def __init__(
        self, trainer: Trainer, editor: Editor, stream: EditStream, folder: Path, text: MEPPL | None, ruined: float
    ) -> None:
        self.editor, self.stream, self.folder, self.text, self.ruined = editor, stream, folder, text, ruined
        self.scorecard = next(part for part in trainer.callbacks if isinstance(part, Scorecard))
        stream.setup("fit")
        self.scorecard.measurement.prepare(stream.requests)
        self.stages = editor.stages = Stages.among(trainer.callbacks)
        editor.configure_model()
        editor.to(trainer.strategy.root_device)
        editor.readout = self.stages.two.readout
        self.precision = str(trainer.precision)

    def run(self) -> None:
        """Edit what is not in the folder yet, and summarize all.

        Raises:
            EditError: the folder holds results of something else.
        """
        editor, batches = self.editor, self.stream.batches
        done = self._lines()
        known = UneditedScores(editor.language_model, self.precision, user_cache())
        requests, size = self.stream.requests, 100
        before: dict[str, Scores] = {}
        for i in track(range(0, len(requests), size), "Scoring the unedited model"):
            before |= self.scorecard.measurement.score(editor, requests[i : i + size], False, known)[0]
        known.keep()
        at_first = self._perplexity()
        self.stages.prepare(editor.language_model, requests)
        with (self.folder / LINES).open("a") as file:
            for number in track(range(len(done), len(batches)), "Editing", "batches"):
                line = self._single(number, [requests[i] for i in batches[number]])
                file.write(json.dumps(line) + "\n")
                file.flush()
                done.append(line)
        self._summarize(done, before, at_first)

    def _single(self, number: int, requests: list[EditRequest]) -> dict[str, Any]:
        """Make a batch, measure what it did, take it back."""
        editor, stages, register = self.editor, self.stages, Register()
        model, start = editor.language_model, time.perf_counter()
        torch.manual_seed(number)  # so that no batch depends on those before it
        random.seed(number)
        mark = stages.mark(model, register)
        step = stages.edit(model, EditBatch(requests), register)
        made, seconds = list(step.requests), time.perf_counter() - start
        scores = self.scorecard.measurement.score(editor, made, True)[0] if made else {}
        norms = [model.weight(layer).norms() for layer in model.layers]
        line = {
            "batch": number,
            "left_out": [request.id for request, _ in step.left_out],
            "steps": list(step.targets.steps),
            "seconds": round(seconds, 3),
            "norm_growth": round(max((now / before for before, now in norms), default=1.0), 6),
            "perplexity": self._perplexity(),
            "scores": {name: {kind: rows.tolist() for kind, rows in part.items()} for name, part in scores.items()},
        }
        stages.roll_back(model, register, mark)
        return line

    def _perplexity(self) -> float | None:
        """Return ME-PPL, infinite where it is beyond a float; `None`: it is not measured."""
        if self.text is None:
            return None
        with self.editor.as_read():
            found = self.text.measure(self.editor.language_model, self.scorecard.measurement.max_tokens)["perplexity"]
        return math.inf if found is None else found

    def _lines(self) -> list[dict[str, Any]]:
        """Return what an interrupted run has written; a line that is not whole is cut off.

        Raises:
            EditError: it is of other edits, another model or method.
        """
        path, editor = self.folder / LINES, self.editor
        settings = {
            "method": editor.method,
            "model": editor.language_model.base_hash,
            "configuration": editor.configuration,
            "stream": {
                "batches": len(self.stream.batches),
                "hash": self.stream.consumed(len(self.stream.batches))["digests"].sum().item(),
            },
            "text": self.text and self.text.path,
        }
        begun = (
            [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            if path.exists()
            else []
        )
        if begun and json.loads(begun[0]) != json.loads(json.dumps(settings)):
            raise EditError(f"{path} holds results of another method, model or data: name another --output")
        write(path, "".join(begun) or json.dumps(settings) + "\n")
        return list(map(json.loads, begun[1:]))

    def _summarize(self, lines: list[dict[str, Any]], before: dict[str, Scores], at_first: float | None) -> None:
        """Write the summary and the hard edits, and print both."""
        scores = {
            name: {kind: torch.tensor(rows) for kind, rows in part.items() if rows}
            for line in lines for name, part in line["scores"].items()
        }  # fmt: skip
        names = list(scores)
        found = {
            "method": self.editor.method,
            "model": self.editor.pretrained,
            "data": self.stream.name,
            "protocol": "each batch alone, on the unedited model",
            "edits": len(names),
            "batches": len(lines),
            "before": section(before, names, before),
            "just_after": section(scores, names, before),
            "intervals": INTERVALS,
            "seconds_per_batch": round(sum(line["seconds"] for line in lines) / len(lines), 3),
            "versions": versions(),
        }
        said = f"{found['method']}, {len(names)} edits of {self.stream.name}, each batch on the unedited model\n"
        for kind in KINDS:
            said += f"  {kind} {_figure(found['before'], kind)} > {_figure(found['just_after'], kind)}"
        if at_first is not None:
            found["me_ppl"] = self._damage(lines, at_first)
            said += (
                "\n  ME-PPL {before:.1f} > {median:.1f} (median) and {worst:.4g} (worst); above {above:g}: {ruined}"
            ).format(**found["me_ppl"])
        write(self.folder / SUMMARY, json.dumps(found, indent=1) + "\n")
        print(f"{said}\n{self.folder / SUMMARY}")

    def _damage(self, lines: list[dict[str, Any]], at_first: float) -> dict[str, Any]:
        """Write the edits that ruined the model into a file, and tell how the texts' perplexity changed."""
        after = sorted(line["perplexity"] for line in lines)
        limit = self.ruined * at_first
        numbers = [line["batch"] for line in lines if not line["perplexity"] <= limit]
        hard = [self.stream.requests[i] for number in numbers for i in self.stream.batches[number]]
        write(self.folder / HARD, "".join(json.dumps(as_fact(request)) + "\n" for request in hard))
        return {
            "text": self.text and self.text.path,
            "before": at_first,
            "median": after[len(after) // 2],
            "worst": after[-1],
            "above": round(limit, 4),
            "ruined": len(numbers),
            "hard": [request.id for request in hard],
        }


def _figure(summary: dict[str, Any], kind: str) -> str:
    measure = summary[kind]["success"]
    value = summary[kind]["accuracy"] if measure is None else measure
    return "-" if value is None else f"{value:.3f}"
