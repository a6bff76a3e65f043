"""Gather what a run would use, measure, estimate, and print."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from lke_lightning.callbacks.checkpoint import RunCheckpoint
from lke_lightning.commands.plan import calibration, report, text
from lke_lightning.commands.plan.calibration import Setting
from lke_lightning.commands.plan.estimate import Run, Stage, Text, estimate, total
from lke_lightning.commands.plan.machine import free_memory, resident
from lke_lightning.commands.plan.rates import Rates
from lke_lightning.commands.plan.shape import Shape, read_shape
from lke_lightning.commands.plan.work import SAMPLE, count_tokens, spread, stand_in_contexts
from lke_lightning.data import EditStream
from lke_lightning.editor import Editor
from lke_lightning.edits import EditError
from lke_lightning.evaluation.scorecard import Scorecard
from lke_lightning.model.language_model import resolve
from lke_lightning.model.tokens import TextEncoder
from lke_lightning.results import write
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_two.statistics import KeyStatistics
from lke_lightning.stage_two.update import WeightUpdate

STEPS_SHARE = 0.6
"""Assumed share of `stage_one.max_steps` that requests take on average: 0.35 to 0.97 were measured."""

CALIBRATED = 256
"""Requests of a batch that are measured together at most; larger batches are continued from there."""

MEASURED_ON_CPU = 2 * 2**30
"""Bytes of two blocks and what surrounds them: on a CPU, measuring larger ones takes minutes."""

LEDGER_BYTES = 450
"""Of one edit in the ledger, beside its own texts."""

Fit = Callable[[list[str], Callable[..., None]], None]
"""Parses arguments of `fit` and calls the function with the trainer, the editor and the stream, unused as yet."""


@dataclass(frozen=True)
class Plan:
    """What a run is expected to cost, and why."""

    stages: list[Stage]
    assumptions: list[str]
    warnings: list[str]

    @property
    def total(self) -> Stage:
        """All stages together."""
        return total(self.stages)


def plan(args: list[str], fit: Fit) -> None:
    """Print the expected memory, disk and time of a run before any weights are read.

    Args:
        args: `--steps` and `--json` of its own; the rest are arguments of `fit`.
        fit: see `Fit`.

    Raises:
        EditError: what `fit` would refuse: settings, records, a model that is not there.
    """
    parser = argparse.ArgumentParser(
        prog="lke_lightning plan",
        allow_abbrev=False,
        description="Say what memory, disk and time a run will take, before it loads any weights.",
        epilog="All other arguments are those of fit: see python -m lke_lightning fit --help.",
    )
    parser.add_argument("--steps", type=float, help=f"mean steps of a request; default: {STEPS_SHARE} x max_steps")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures into a file as well")
    own, rest = parser.parse_known_args(args)

    def show(trainer: Trainer, editor: Editor, stream: EditStream) -> None:
        found = prepare(trainer, editor, stream, own.steps)
        report.show(found.stages, found.total, found.assumptions, found.warnings)
        if own.json:
            write(own.json, json.dumps(report.as_json(found.stages, found.total, found.assumptions), indent=1) + "\n")

    fit(rest, show)


def prepare(
    trainer: Trainer, editor: Editor, stream: EditStream, steps: float | None = None, free: int | None = None
) -> Plan:
    """Work out what a run of these would cost.

    Args:
        trainer: with the stages, the scorecard and the checkpoint as callbacks.
        editor: its model is not loaded.
        stream: its records are read.
        steps: that a request takes on average; `None`: `STEPS_SHARE` of `stage_one.max_steps`.
        free: bytes of memory that may be used to measure; default: what the machine has free.

    Raises:
        EditError: `steps` below 1, or what `fit` would refuse.
    """
    import_seconds = time.process_time()
    stage_one, stage_two = _part(trainer, TargetOptimization), _part(trainer, WeightUpdate)
    if steps is None:
        steps = max(1.0, STEPS_SHARE * stage_one.max_steps)
    if steps < 1:
        raise EditError(f"--steps is {steps:g}: every request takes at least one")
    shape = read_shape(
        editor.pretrained, _dtype(trainer, editor), editor.layers, editor.matrix, editor.trust_remote_code
    )
    encoder = TextEncoder(_tokenizer(editor))
    stream.setup("fit")
    contexts = stand_in_contexts(stage_one.context_templates, stream.requests, encoder)
    run = _settings(trainer, stream, contexts, encoder, shape.blocks)
    run = replace(run, steps=min(steps, run.max_steps), import_seconds=import_seconds)
    documents = text.documents_of(stage_two.statistics, stream.requests)
    run, notes = _with_statistics(run, stage_two, shape, documents, encoder)
    setting = Setting(
        shape=shape,
        stage_one=stage_one,
        stage_two=stage_two,
        tokenizer=encoder.tokenizer,
        requests=spread(stream.requests, min(run.batch_size, CALIBRATED)),
        contexts=contexts,
        documents=documents,
        length=getattr(stage_two.statistics, "length", 512),
        score_tokens=_part(trainer, Scorecard).measurement.max_tokens,
        statistics_tokens=run.statistics.at_once if run.statistics.tokens else 0,
        perplexity_tokens=min(run.perplexity.at_once, run.perplexity.tokens),
        device=trainer.strategy.root_device,
        precision=trainer.precision_plugin.forward_context,
        trust_remote_code=editor.trust_remote_code,
    )
    rates = _rates(setting, run, free_memory(setting.device) if free is None else free)
    stages = estimate(run, shape, rates)
    return Plan(stages, [*_assumptions(run, shape, rates), *notes], _warnings(stages, trainer, setting))


def _tokenizer(editor: Editor) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(resolve(editor.pretrained), trust_remote_code=editor.trust_remote_code)
    except (OSError, ValueError) as error:
        raise EditError(f"cannot read the tokenizer of {editor.pretrained!r}: {error}") from error


def _settings(trainer: Trainer, stream: EditStream, contexts: list[str], encoder: TextEncoder, blocks: int) -> Run:
    """Take from the parts of a run what its costs depend on; every request takes all steps, statistics are there."""
    stage_one, scorecard, checkpoint = (_part(trainer, kind) for kind in (TargetOptimization, Scorecard, RunCheckpoint))
    requests, device, measured = stream.requests, trainer.strategy.root_device, scorecard.measurement
    batch_size = min(stream.batch_size, len(requests))
    sample = spread(requests, SAMPLE)
    return Run(
        edits=len(requests),
        batch_size=batch_size,
        steps=stage_one.max_steps,
        max_steps=stage_one.max_steps,
        check_every=stage_one.check_every or (1 if device.type == "cpu" else 4),
        site=stage_one.site,
        max_tokens=stage_one.max_tokens,
        contexts=len(contexts),
        tokens=count_tokens(sample, contexts, encoder, stage_one.reference_quirks, min(batch_size, SAMPLE)),
        scores_before=scorecard.before,
        evaluated=_evaluated(trainer, len(requests), batch_size),
        statistics=Text(0, 0, 0),
        statistics_layers=0,
        perplexity=Text(measured.text_tokens if measured.text else 0, measured.max_tokens, blocks),
        perplexities=2 if measured.text else 0,
        checkpoint_every=checkpoint.every_n_train_steps,
        checkpoints_kept=checkpoint.keep,
        keep_on_host=_part(trainer, WeightUpdate).keep_on_host,
        ledger_bytes=LEDGER_BYTES + sum(len(r.text) + len(r.target) for r in sample) / len(sample),
        process_bytes=resident(),
        import_seconds=0.0,
        on_gpu=device.type == "cuda",
    )


def _part(trainer: Trainer, kind: type) -> Any:
    found = next((part for part in trainer.callbacks if isinstance(part, kind)), None)
    return kind() if found is None else found


def _dtype(trainer: Trainer, editor: Editor) -> torch.dtype:
    true = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
    return true.get(str(trainer.precision), getattr(torch, editor.dtype_name))


def _evaluated(trainer: Trainer, edits: int, batch_size: int) -> float:
    """Count the edits that all evaluations of a run score: each scores what was edited until then."""
    if trainer.limit_val_batches == 0:
        return 0.0
    batches, interval = -(-edits // batch_size), trainer.val_check_interval
    every = max(1, int(batches * interval)) if isinstance(interval, float) else int(interval)
    return float(sum(min(edits, done * batch_size) for done in range(every, batches + 1, every)))


def _with_statistics(
    run: Run, stage_two: WeightUpdate, shape: Shape, documents: list[str], encoder: TextEncoder
) -> tuple[Run, list[str]]:
    statistics = stage_two.statistics
    if not isinstance(statistics, KeyStatistics):
        return run, [f"Statistics come from {type(statistics).__name__}: reading them is not counted."]
    missing = text.uncached_layers(statistics, shape, encoder)
    if not missing:
        return run, [
            f"Statistics of this text are in {statistics.cache.folder}; that they belong to these weights is assumed, "
            "because weights are not read here."
        ]
    tokens = text.available_tokens(statistics, text.wanted_tokens(statistics, shape), documents, encoder)
    run = replace(
        run,
        statistics=Text(tokens, statistics.batch_tokens, missing[-1] + 1),
        statistics_layers=len(missing),
    )
    where = "" if statistics.corpus.is_here else "; the text is not on this machine, fetching it is not counted"
    return run, [f"Statistics of layers {missing} are not cached: {tokens:,} tokens are read{where}."]


def _rates(setting: Setting, run: Run, free: int) -> Rates:
    # Twice: activations, and what the allocator does not give back.
    most = free / 2 if setting.device.type != "cpu" else min(free / 2, MEASURED_ON_CPU)
    if setting.shape.one_block_bytes <= most:
        try:
            return calibration.calibrate(setting)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    return calibration.estimate_by_arithmetic(setting, run.tokens)


def _assumptions(run: Run, shape: Shape, rates: Rates) -> list[str]:
    return [
        f"{run.edits} edits in {run.batches} batches; layers {shape.layers} of {shape.blocks}, keys of {shape.d_key}, "
        f"{shape.weights_bytes / 2**20:,.0f} MiB of weights.",
        f"Rates: {rates.how}.",
        f"Steps of stage one are not known before: {run.steps:g} of at most {run.max_steps} on average, the same "
        "share stopping at every step (--steps); in brackets: half of that, and all steps for all.",
        "Not counted: waiting for the disk while weights are loaded, what other callbacks do, edits that replace "
        "earlier ones. A GPU's own context, and what allocators hold back, come on top of the memory.",
    ]


def _warnings(stages: list[Stage], trainer: Trainer, setting: Setting) -> list[str]:
    whole = total(stages)
    found = []
    host, device = whole.host, whole.device
    if host > free_memory(torch.device("cpu")) + resident():
        stage = max(stages, key=lambda s: s.host)
        found.append(f"the host's memory is too small: {report.size(host)} at {stage.name!r}. {_advice(stage)}")
    if device and device > free_memory(setting.device):
        stage = max(stages, key=lambda s: s.device)
        found.append(f"the GPU's memory is too small: {report.size(device)} at {stage.name!r}. {_advice(stage)}")
    folder = Path(trainer.default_root_dir).absolute()
    folder = next(path for path in (folder, *folder.parents) if path.is_dir())
    if whole.disk > shutil.disk_usage(folder).free:
        needed = report.size(whole.disk)
        found.append(f"{needed} do not fit on the disk of {folder}: use another trainer.default_root_dir")
    return found


def _advice(stage: Stage) -> str:
    specific = {
        "stage one": "a smaller stage_one.max_tokens or data.batch_size, ",
        "key statistics": "a smaller stage_two.statistics.batch_tokens, ",
        "solvers, first inverse": "fewer model.layers, stage_two.solver.dtype float32 or stage_two.keep_on_host, ",
        "stage two": "a smaller data.batch_size, ",
    }
    common = "model.dtype bfloat16, or a larger machine" if not stage.name.startswith("eval") else (
        "a smaller scorecard.max_tokens, model.dtype bfloat16, or a larger machine")  # fmt: skip
    return f"What helps: {specific.get(stage.name, '')}{common}."
