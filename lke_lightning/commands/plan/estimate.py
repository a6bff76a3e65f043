"""From counts and rates to seconds and bytes: arithmetic only, nothing is measured or read here."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from lke_lightning.commands.plan.rates import Rates
from lke_lightning.commands.plan.shape import Shape
from lke_lightning.commands.plan.work import Tokens, active


@dataclass(frozen=True)
class Text:
    """Ordinary text that a run reads."""

    tokens: int
    """How many; 0: none, because nothing is to be computed from it."""
    at_once: int
    """Tokens of one pass."""
    blocks: int
    """Blocks that are run."""


@dataclass(frozen=True)
class Run:
    """The settings of a run, as far as its costs depend on them."""

    edits: int
    batch_size: int
    steps: float
    """Steps that a request is assumed to take on average."""
    max_steps: int
    check_every: int
    site: Literal["block", "matrix"]
    max_tokens: int
    """Tokens that descend together."""
    contexts: int
    tokens: Tokens
    scores_before: bool
    evaluated: float
    """Edits scored by all evaluations after the start, those just after each batch left out."""
    statistics: Text
    statistics_layers: int
    """Layers whose statistics are not cached."""
    perplexity: Text
    perplexities: int
    """How often it is measured."""
    checkpoint_every: int
    """Batches between checkpoints; 0: only at the end."""
    checkpoints_kept: int
    """-1: all; 0: none are written."""
    keep_on_host: bool
    ledger_bytes: float
    """Bytes that one edit adds to the ledger."""
    process_bytes: int
    """What a process with everything imported holds."""
    import_seconds: float
    on_gpu: bool

    @property
    def batches(self) -> int:
        """Count the batches."""
        return -(-self.edits // self.batch_size)

    @property
    def together(self) -> int:
        """Count the requests that descend together."""
        fitting = max(1, int(self.max_tokens // max(1.0, self.tokens.whole)))
        return min(self.batch_size, self.edits, fitting)

    def checkpoints(self) -> list[int]:
        """Return how many edits are in each checkpoint that is written."""
        if self.checkpoints_kept == 0:
            return []
        every = self.checkpoint_every or self.batches
        after = sorted({*range(every, self.batches + 1, every), self.batches})
        return [min(self.edits, batches * self.batch_size) for batches in after]


@dataclass(frozen=True)
class Stage:
    """What one activity of a run is expected to cost."""

    name: str
    seconds: float
    seconds_few: float
    """If requests stop soon."""
    seconds_all: float
    """If all take every step."""
    host: float = 0.0
    """Peak memory of the process while it goes on, bytes."""
    device: float = 0.0
    """Peak memory of the GPU while it goes on, bytes; 0 without one."""
    disk: float = 0.0
    """Bytes that it leaves on the disk."""


def estimate(run: Run, shape: Shape, rates: Rates) -> list[Stage]:
    """Estimate every activity of a run, in order."""
    batches, size, deep = run.edits / run.batch_size, min(run.batch_size, run.edits), shape.blocks - 1
    readout = len(shape.layers) * rates.solve.readout_seconds
    scoring = (rates.score.takes(size, deep) + readout) / size
    score_bytes = rates.score.holds(size, deep)
    start = run.import_seconds + shape.weights_bytes / rates.hashing
    start += run.edits * run.tokens.encoding_seconds + rates.contexts.takes(1, deep)
    reading = Text(run.perplexity.tokens, run.perplexity.at_once, shape.blocks)
    kept = _text(rates, reading) * run.perplexities

    def stage(name: str, seconds: float, transient: float = 0.0, disk: float = 0.0, edited: float = 1.0) -> Stage:
        host, device = _memory(run, shape, rates, transient, edited)
        return Stage(name, seconds, seconds, seconds, host, device, disk)

    first, *rest = [
        stage("start and load", start, edited=0),
        stage("key statistics", *_statistics(run, shape, rates), edited=0),
        stage("solvers, first inverse", *_preparation(shape, rates), edited=0),
        *([stage("evaluation before", run.edits * scoring, score_bytes, edited=0)] if run.scores_before else []),
        *([stage("perplexity", kept, rates.perplexity.holds(reading.at_once, deep))] if run.perplexities else []),
        replace(
            stage("stage one", stage_one(run, shape, rates, run.steps), _descent_bytes(run, shape, rates)),
            seconds_few=stage_one(run, shape, rates, run.steps / 2),
            seconds_all=stage_one(run, shape, rates, run.max_steps),
        ),
        stage("stage two", batches * stage_two(run, shape, rates), rates.read.holds(size, deep) + rates.solve.bytes),
        stage("evaluation just after", run.edits * scoring, score_bytes),
        stage("evaluation final", run.evaluated * scoring, score_bytes),
        stage("checkpoints", *_checkpoints(run, shape, rates)),
        stage("ledger", 0.0, 0.0, run.edits * run.ledger_bytes),
    ]
    if run.on_gpu:  # weights are loaded in the host's memory first
        first = replace(first, host=first.host + shape.weights_bytes)
    return [first, *rest]


def stage_one(run: Run, shape: Shape, rates: Rates, mean_steps: float) -> float:
    """Return the seconds of all descents if requests take so many steps on average."""
    upper = shape.above + (run.site == "matrix")
    counts = active(run.together, mean_steps, run.max_steps, run.check_every)
    # The lower blocks run the slots' rows once, forward only: about half of what a step does in an upper block.
    lower = rates.step.block_seconds.at(run.together) / 2 * shape.layers[-1]
    once = rates.record.takes(run.together, shape.blocks - 1) + lower
    each = sum(rates.step.takes(count, upper) for count in counts[1:])  # the record holds the first forward
    drops = sum(
        min(1.0, before - after) * rates.drop.takes(before, upper) for before, after in itertools.pairwise(counts)
    )
    return run.edits / run.together * (once + each + drops)


def stage_two(run: Run, shape: Shape, rates: Rates) -> float:
    """Return the seconds of one batch: layers are read one after the other, each from the one before."""
    size, layers = min(run.batch_size, run.edits), shape.layers
    starts = [0, *layers[:-1]]
    keys = sum(layer - start for start, layer in zip(starts, layers, strict=True))
    outputs = sum(layers[-1] - layer for layer in layers) / run.contexts  # of the bare prompts only
    reading = len(layers) * rates.read.seconds.at(size) + (keys + outputs) * rates.read.block_seconds.at(size)
    return reading + len(layers) * rates.solve.seconds


def _text(rates: Rates, text: Text) -> float:
    """Return the seconds of predicting a text once."""
    at_once = min(text.tokens, text.at_once)
    return text.tokens / at_once * rates.perplexity.takes(at_once, text.blocks - 1) if at_once else 0.0


def _statistics(run: Run, shape: Shape, rates: Rates) -> tuple[float, float, float]:
    """Return seconds, bytes beside what is held, and bytes on the disk."""
    text, square = run.statistics, shape.d_key**2
    at_once = min(text.tokens, text.at_once)
    if not at_once:
        return 0.0, 4.0 * square * len(shape.layers), 0.0
    passes, more = text.tokens / at_once, run.statistics_layers - 1
    seconds = passes * (rates.statistics.takes(at_once, text.blocks - 1) + more * rates.product.at(at_once))
    seconds += text.tokens * rates.encoding
    written = 4.0 * square * run.statistics_layers
    keys = at_once * (shape.d_key + shape.d_out) * shape.dtype.itemsize * more
    rows = 40.0 * text.tokens  # ids as Python numbers
    return (
        seconds + written / rates.saving,
        rates.statistics.holds(at_once) + keys + rows + 8.0 * square * more,
        written,
    )


def _preparation(shape: Shape, rates: Rates) -> tuple[float, float, float]:
    count, solve = len(shape.layers), rates.solve
    moments = 4.0 * shape.d_key**2 * count
    peak = moments + (count - 1) * (solve.on_device + solve.on_host) + solve.init_bytes
    return count * solve.init_seconds, peak - count * (solve.on_device + solve.on_host), count * solve.eigen_bytes


def _descent_bytes(run: Run, shape: Shape, rates: Rates) -> float:
    upper = shape.above + (run.site == "matrix")
    lower = shape.blocks - 1 - upper
    return rates.step.holds(run.together, upper) + lower * rates.record.block_bytes.at(run.together)


def checkpoint_bytes(run: Run, shape: Shape, rates: Rates, edits: int) -> float:
    """Return the size of a checkpoint after so many edits: changes, the solver's memory, scores."""
    layer = 4.0 * shape.d_key * shape.d_out + rates.solve.saved + edits * rates.solve.growth
    return len(shape.layers) * layer + edits * rates.scores_bytes * (1 + run.scores_before)


def _checkpoints(run: Run, shape: Shape, rates: Rates) -> tuple[float, float, float]:
    sizes = [checkpoint_bytes(run, shape, rates, edits) for edits in run.checkpoints()]
    stay = sizes if run.checkpoints_kept < 0 else sizes[-run.checkpoints_kept :] if sizes else []
    return sum(sizes) / rates.saving, 0.0, sum(stay)


def _memory(run: Run, shape: Shape, rates: Rates, transient: float, edited: float) -> tuple[float, float]:
    """Return peaks of host and device while something holds so much beside model and solvers."""
    count, solve = len(shape.layers), rates.solve
    matrices = count * shape.d_key * shape.d_out * (shape.dtype.itemsize + 4.0)
    near = 1 if run.keep_on_host and run.on_gpu else count
    device = shape.weights_bytes + matrices + near * solve.on_device + transient
    host = count * solve.on_host + (count - near) * solve.on_device + edited * run.edits * count * solve.growth
    if not run.on_gpu:
        return run.process_bytes + host + device, 0.0
    return run.process_bytes + host, device


def total(stages: list[Stage]) -> Stage:
    """Sum seconds and disk; memory is the largest."""
    return Stage(
        "total",
        *(sum(getattr(stage, name) for stage in stages) for name in ("seconds", "seconds_few", "seconds_all")),
        *(max(getattr(stage, name) for stage in stages) for name in ("host", "device")),
        sum(stage.disk for stage in stages),
    )


def largest(stages: list[Stage], kind: Literal["host", "device"]) -> Iterator[str]:
    """Yield the names of the activities by memory, the largest first."""
    yield from (stage.name for stage in sorted(stages, key=lambda stage: -getattr(stage, kind)))
