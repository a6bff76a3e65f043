"""Estimate the cost of a run: memory and disk by arithmetic, time from one batch that is really edited."""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lke_lightning.callbacks.checkpoint import RunCheckpoint
from lke_lightning.callbacks.guard import Guard
from lke_lightning.callbacks.scorecard import Scorecard
from lke_lightning.data import EditStream, RequestList
from lke_lightning.editor import Editor
from lke_lightning.edits import EditError
from lke_lightning.model.architecture import Architecture, matrix_shape
from lke_lightning.model.backward import Curvature
from lke_lightning.model.language_model import LanguageModel, located
from lke_lightning.results import write
from lke_lightning.stage_one.stage import StageOne
from lke_lightning.stage_two.placement import LayerPolicy
from lke_lightning.stage_two.room import Space
from lke_lightning.stage_two.stage import StageTwo
from lke_lightning.stage_two.statistics import KeyStatistics, Statistics
from lke_lightning.stages import Stages
from lke_lightning.trainer import SETTINGS

SAMPLE = 10
"""Tokens for each entry of a key that are read to time the statistics: enough for a matrix that can be inverted."""

SCORING = frozenset({"evaluation", "generation", "fluency"})
"""The activities in `Editor.seconds` that happen once an evaluation, not once a batch."""

Found = TypeVar("Found")

Fit = Callable[[list[str], Callable[[Trainer, Editor, EditStream], None]], None]
"""Parses arguments of `fit` and calls the function with trainer, editor and stream in its place."""


@dataclass(frozen=True)
class Duration:
    """Measured seconds of an activity, and the factor by which the run exceeds the measurement."""

    what: str
    measured: float
    times: float

    @property
    def seconds(self) -> float:
        """Seconds in the run."""
        return self.measured * self.times


@dataclass
class Plan:
    """The expected cost of a run."""

    spaces: list[Space]
    durations: list[Duration] = field(default_factory=list)
    peak: Space | None = None
    """Of the process during one batch; memory for later edits comes on top."""
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> Space:
        """The sum of all memory and disk."""
        return Space("total", *(sum(getattr(s, where) for s in self.spaces) for where in ("device", "host", "disk")))

    @property
    def seconds(self) -> float:
        """The whole time."""
        return sum(duration.seconds for duration in self.durations)

    def figures(self) -> dict[str, Any]:
        """Return everything as plain values, in bytes and seconds."""
        return {**asdict(self), "total": asdict(self.total), "seconds": self.seconds}


def plan(args: list[str], fit: Fit) -> None:
    """Print the expected memory, disk and time of a run.

    Args:
        args: `--measure` and `--json`; the rest are arguments of `fit`.
        fit: see `Fit`.

    Raises:
        EditError: `fit` would refuse these arguments; or the machine is too small, after the plan is printed.
    """
    parser = argparse.ArgumentParser(
        prog="lke_lightning plan",
        allow_abbrev=False,
        description="Estimate the memory, disk and time of a run.",
        epilog="All other arguments are those of fit: see python -m lke_lightning fit --help.",
    )
    what = "load the model and edit one batch to estimate the time; false: load no weights"
    parser.add_argument("--measure", choices=("true", "false"), default="true", help=what)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    own, rest = parser.parse_known_args(args)
    if own.json and own.json.is_dir():
        raise EditError(f"--json {own.json} is a folder: name a file")

    def show(trainer: Trainer, editor: Editor, stream: EditStream) -> None:
        if trainer.world_size > 1:
            raise EditError(f"plan estimates one process, not {trainer.world_size}: give --trainer.devices 1")
        stream.setup("fit")
        found = Plan(spaces(trainer, editor, stream))
        problem = too_small(found, trainer)
        if own.measure == "true" and problem is None:
            measure(found, trainer, editor, stream)
        else:
            found.notes.append("Nothing was measured: activations and time are not included.")
        _print(found)
        if own.json:
            write(own.json, json.dumps(found.figures(), indent=1) + "\n")
        if problem:
            raise EditError(problem)

    fit(rest, show)


def spaces(trainer: Trainer, editor: Editor, stream: EditStream) -> list[Space]:
    """Compute memory and disk from the model's configuration, without any weights.

    Raises:
        EditError: there is no configuration, or such a network cannot be edited.
    """
    update, checkpoint, edits = _part(trainer, StageTwo), _part(trainer, RunCheckpoint), len(stream.requests)
    network, shapes = skeleton(editor, update.placement)
    converted: Any = trainer.precision_plugin.convert_module(nn.Linear(1, 1, dtype=network.dtype))
    dtype = converted.weight.dtype
    wide, on_gpu = torch.promote_types(dtype, torch.float32).itemsize, trainer.strategy.root_device.type != "cpu"
    weights = sum(weight.numel() for weight in network.parameters()) * dtype.itemsize
    entries = sum(d_out * d_key for d_out, d_key in shapes)
    own = update.spaces(shapes, edits, wide, on_gpu)
    saved = wide * entries + sum(space.saved for space in own)
    batches, every = math.ceil(edits / stream.batch_size), checkpoint.every_n_train_steps
    written = min(batches, 2 + (batches // every if every else 0))
    kept = written if checkpoint.keep < 0 else min(checkpoint.keep, written)
    found = [
        Space("Python and its libraries", host=_peak_of_host()),
        Space("weights of the model", weights, weights if on_gpu else 0),  # loaded through the host's memory
        Space("edited matrices: unedited copy and change", entries * (dtype.itemsize + wide)),
        *own,
        Space(f"checkpoints: {kept}, and one being written", disk=saved * (kept + (kept > 0))),
    ]
    return found if on_gpu else [Space(s.what, 0, s.host + s.device, s.disk) for s in found]


def skeleton(editor: Editor, policy: LayerPolicy) -> tuple[nn.Module, list[tuple[int, int]]]:
    """Build an editor's network without weights; return it and (d_out, d_key) of each edited matrix.

    Raises:
        EditError: there is no configuration, or such a network cannot be edited.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype, code = getattr(torch, editor.dtype_name), {"trust_remote_code": editor.trust_remote_code}
    where, file = located(editor.pretrained)
    try:
        config = AutoConfig.from_pretrained(where, **code, **file)
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config, dtype=dtype, **code)
    except (OSError, ValueError) as error:
        raise EditError(
            f"cannot read the configuration of a causal language model from model.pretrained {editor.pretrained!r}: "
            f"give its folder or hub name. {error}"
        ) from error
    architecture = Architecture.of(network, editor.matrix)
    layers = policy.among(editor.layers or getattr(config, "edit_layers", None) or [])
    architecture.check_layers(layers)
    architecture.check_matrices(layers)
    return network, [matrix_shape(architecture.matrix(layer)) for layer in layers]


def too_small(found: Plan, trainer: Trainer) -> str | None:
    """Return a sentence that names the resource that is too small for a plan, or `None`."""
    total, device = found.total, trainer.strategy.root_device
    advice = "try --model.dtype bfloat16, fewer --model.layers, a solver in float32"
    has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if total.host > has:
        return f"the run needs {size(total.host)} of memory, but this machine has {size(has)}: {advice}"
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
    if total.device > free:
        return f"the run needs {size(total.device)} on {device}, but {size(free)} are free: {advice} or keep_on_host"
    folder = Path(trainer.default_root_dir).absolute()
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.is_dir())).free
    if total.disk > free:
        advice = "try a smaller checkpoint.keep or another trainer.default_root_dir"
        return f"the run writes {size(total.disk)}, but the disk of {folder} has {size(free)} free: {advice}"
    return None


class Sample(Statistics):
    """Key statistics of the beginning of a text, timed; cached ones are loaded.

    Args:
        given: the statistics of the run, if it uses any.
        folder: where the sample is kept, so that it does not enter the cache.
    """

    def __init__(self, given: Statistics | None, folder: str) -> None:
        self.given, self.folder = given, folder
        self.seconds, self.times = 0.0, 1.0
        self.note = "Key statistics are cached: they are loaded, not computed." if given else "No key statistics."

    def second_moments(self, model: LanguageModel) -> dict[int, Tensor]:
        """Read the sample, or the cached statistics."""
        return self._timed(model, "statistics", lambda given: given.second_moments(model))

    def curvatures(self, model: LanguageModel) -> tuple[dict[int, Curvature], int]:
        """Run the sample, or load what is cached."""
        return self._timed(model, "curvature", lambda given: given.curvatures(model))

    def _timed(self, model: LanguageModel, kind: str, read: Callable[[Any], Found]) -> Found:
        given = self.given
        if isinstance(given, KeyStatistics) and not given.is_cached(model, kind):
            wanted = given.wanted(model)
            few = min(wanted, SAMPLE * max(model.weight(layer).delta.shape[1] for layer in model.layers))
            given = KeyStatistics(given.names, few, given.length, given.batch_tokens, self.folder)
            self.times = wanted / few
            self.note = f"Key statistics: measured on {few:,} tokens; the run reads {wanted:,}, if there are as many."
        start = time.perf_counter()
        found = read(given)
        self.seconds = time.perf_counter() - start
        return found

    def eigen(self, moment: Tensor) -> tuple[Tensor, Tensor]:
        """Decompose as the run does."""
        return super().eigen(moment) if self.given is None else self.given.eigen(moment)


def measure(found: Plan, trainer: Trainer, editor: Editor, stream: EditStream) -> None:
    """Load the model, edit and score the first batch, revert the weights, and extrapolate in proportion to edits.

    Args:
        found: takes durations, peak and notes.
        trainer: has the run's parts; says where and in what precision they run.
        editor: loads its model.
        stream: the edits.

    Raises:
        EditError: `fit` would refuse these arguments, or one batch does not fit into memory.
    """
    edits, together = len(stream.requests), min(stream.batch_size, len(stream.requests))
    update, scorecard = copy.copy(_part(trainer, StageTwo)), copy.copy(_part(trainer, Scorecard))
    importing, start = time.process_time(), time.perf_counter()
    editor.stages = Stages.among(trainer.callbacks)  # which may edit some of the layers only
    editor.configure_model()
    loaded = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        sample, scorecard.report = Sample(update.statistics, folder), False
        if update.statistics is not None:
            update.statistics = sample
        scorecard.cache = None  # that of the first batch says nothing of the others
        scorecard.measurement = copy.copy(scorecard.measurement)
        scorecard.measurement.text = None  # its cost does not grow with the edits
        short = _short_trainer(trainer, [update, scorecard], folder)
        try:
            short.fit(editor, datamodule=RequestList(stream.requests[:together], together))
        except torch.OutOfMemoryError as error:
            raise EditError("one batch does not fit into the device's memory: try a smaller data.batch_size") from error
    seconds = dict(editor.seconds)
    once = time.perf_counter() - loaded - sum(seconds.values()) - sample.seconds
    found.durations = [
        Duration("starting Python", importing, 1),
        Duration("loading the model", loaded - start, 1),
        Duration("key statistics", sample.seconds, sample.times),
        Duration("contexts, first inverse and the rest", once, 1),
    ]
    final, few = final_evaluations(trainer, edits, together), scorecard.before + 1
    prepared = max(1, min(_part(trainer, StageOne).pilot, edits) / together)
    for name, spent in seconds.items():
        passes = (few + final) / (few + (final > 0)) if name in SCORING else 1
        times = prepared if name == "preparation" else edits / together * passes
        found.durations.append(Duration(name.replace("_", " "), spent, times))
    found.peak = Space("measured peak of one batch, in total", _peak_of_device(short), _peak_of_host())
    steps = sum(scorecard.steps) / max(1, len(scorecard.steps))
    found.notes += [
        f"Measured: the first {together} of {edits:,} edits, with {steps:.1f} steps of stage one on average. "
        "Extrapolated to all edits, in proportion to their number.",
        sample.note,
        "Not included: writing checkpoints, perplexity, drift, downstream tasks, edits that replace earlier ones.",
    ]
    editor.revert()


def _short_trainer(trainer: Trainer, replaced: list[Any], folder: str) -> Trainer:
    """Make a trainer of the same stages, device and precision that writes nothing."""
    device, new = trainer.strategy.root_device, {type(part): part for part in replaced}
    parts = [part for part in trainer.callbacks if isinstance(part, (StageOne, Guard, *new))]
    return Trainer(
        callbacks=[new.get(type(part), part) for part in parts], default_root_dir=folder,
        accelerator=device.type, devices=1 if device.index is None else [device.index], precision=trainer.precision,
        limit_val_batches=0 if trainer.limit_val_batches == 0 else None,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, **SETTINGS,
    )  # fmt: skip


def final_evaluations(trainer: Trainer, edits: int, batch_size: int) -> float:
    """Count how often an edit is scored, on average, by the evaluations of all edits so far."""
    if trainer.limit_val_batches == 0:
        return 0.0
    batches, interval = math.ceil(edits / batch_size), trainer.val_check_interval
    every = max(1, int(batches * interval)) if isinstance(interval, float) else interval
    return sum(min(edits, done * batch_size) for done in {*range(every, batches, every), batches}) / edits


def _part(trainer: Trainer, kind: type) -> Any:
    return next(part for part in trainer.callbacks if isinstance(part, kind))


def _peak_of_host() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _peak_of_device(trainer: Trainer) -> int:
    device = trainer.strategy.root_device
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _print(found: Plan) -> None:
    columns = {"device": "device", "host": "host memory", "disk": "disk"}
    if not found.total.device:
        columns = {"host": "memory", "disk": "disk"}
    tables = [Table("memory and disk, computed", *columns.values())]
    for space in [*found.spaces, found.total, *([found.peak] if found.peak else [])]:
        tables[0].add_row(space.what, *(size(getattr(space, c)) if getattr(space, c) else "-" for c in columns))
    if found.durations:
        tables.append(Table("time", "measured", "in the run"))
        for duration in found.durations:
            tables[1].add_row(duration.what, f"{duration.measured:,.1f} s", f"{duration.seconds:,.1f} s")
        hours = f" ({found.seconds / 3600:.1f} h)" if found.seconds > 3600 else ""
        tables[1].add_row("total", "", f"{found.seconds:,.1f} s{hours}")
    for part in (*tables, *found.notes):
        Console().print(part, soft_wrap=isinstance(part, str), markup=False, highlight=False)


def size(count: float) -> str:
    """Write bytes with a unit."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count / 2**20:.1f} MiB"
