"""Measure this machine: the real engine on real records and a network of the real width, two blocks deep and one."""

from __future__ import annotations

import copy
import io
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lke_lightning.commands.plan import rates
from lke_lightning.commands.plan.rates import NOTHING, Cost, Curve, Rates
from lke_lightning.commands.plan.shape import Shape, from_config, shallow
from lke_lightning.commands.plan.solving import solver
from lke_lightning.commands.plan.work import Tokens, rows_of
from lke_lightning.edits import EditRequest
from lke_lightning.evaluation.perplexity import perplexity
from lke_lightning.evaluation.teacher_forced import score
from lke_lightning.model.language_model import LanguageModel, content_hash
from lke_lightning.model.prefix import Prefixes
from lke_lightning.model.tokens import Row
from lke_lightning.stage_one.objectives import StepView
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_one.packed import PackedRows
from lke_lightning.stage_one.rows import RequestRows, build_rows
from lke_lightning.stage_one.stopping import StopRule
from lke_lightning.stage_two.reading import SlotReader
from lke_lightning.stage_two.update import WeightUpdate

SIZES = (1, 8, 64, 512)
"""Requests that are run together; those above the size of a batch are left out."""

TEXT_SIZES = (64, 512, 2048, 8192)
"""Tokens of ordinary text that are run together; those above the size of a batch are left out."""

STEPS = 8
"""Steps of a descent that are timed, at most."""


@dataclass(frozen=True)
class Setting:
    """What a run would use, as far as measuring needs it."""

    shape: Shape
    stage_one: TargetOptimization
    stage_two: WeightUpdate
    tokenizer: Any
    requests: list[EditRequest]
    """Typical ones, of one batch."""
    contexts: list[str]
    documents: list[str]
    """Ordinary text, for key statistics and perplexity."""
    length: int
    """Tokens after which documents are cut."""
    score_tokens: int
    """How many tokens an evaluation runs at once."""
    statistics_tokens: int
    """How many tokens of text key statistics run at once; 0: none are computed."""
    perplexity_tokens: int
    """How many tokens of text perplexity runs at once; 0: it is not measured."""
    device: torch.device
    precision: Callable[[], AbstractContextManager[Any]]
    trust_remote_code: bool


def calibrate(setting: Setting) -> Rates:
    """Measure everything.

    Raises:
        torch.OutOfMemoryError: one block is too large for the device.
    """
    with setting.precision():
        model = _network(setting)
        start = time.perf_counter()
        content_hash(model.network)
        hashing = sum(w.nbytes for w in model.network.state_dict().values()) / (time.perf_counter() - start)
        two = _activities(setting, model, 2)
        del model.architecture.blocks[1]
        model.network.config.get_text_config().num_hidden_layers = 1
        one = _activities(setting, model, 1)
        costs = {name: Cost(one[name][0], two[name][0] - one[name][0], one[name][1], two[name][1] - one[name][1])
                 for name in one}  # fmt: skip
        prefixes = costs.pop("prefixes")
        costs["record"] = replace(
            costs["record"], block_seconds=prefixes.block_seconds, block_bytes=prefixes.block_bytes
        )
        return Rates(
            "measured here: the engine on your records, with two blocks and one block of the model's own shape",
            product=_product(setting) if setting.statistics_tokens else NOTHING,
            encoding=_encoding(setting, model),
            solve=solver(setting.stage_two, setting.shape, len(setting.requests), setting.device),
            hashing=hashing,
            saving=saving_rate(),
            scores_bytes=_scores_bytes(model, setting.requests[:20]),
            **costs,
        )


def estimate_by_arithmetic(setting: Setting, tokens: Tokens) -> Rates:
    """Make rates from the speed of a matrix product alone, where a block does not fit: overhead is left out."""
    shape, device = setting.shape, setting.device
    size = 2048 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device).to(shape.dtype)
    speed = 2 * size**3 / rates.timed(lambda: a @ a, device)
    block, head = 2 * shape.block_parameters / speed, 2 * shape.vocabulary * shape.d_out / speed

    def cost(run: float, reads: float, backward: int = 1) -> Cost:
        width = shape.d_out * shape.dtype.itemsize
        return Cost(
            Curve.proportional(run * block + reads * head * backward),
            Curve.proportional(run * block * backward),
            Curve.proportional(reads * shape.vocabulary * 4 * 3),
            Curve.proportional(run * width * (12 if backward > 1 else 2)),
        )

    step = cost(tokens.from_slot, tokens.reads, backward=2)
    return Rates(
        f"by arithmetic, two blocks being too large to measure here: {speed / 1e9:.0f} GFLOP/s, no overhead",
        record=cost(tokens.before_slot + tokens.from_slot, tokens.reads),
        step=Cost(Curve.proportional(tokens.reads * head * 2), step.block_seconds, step.bytes, step.block_bytes),
        drop=Cost(NOTHING, NOTHING),
        read=cost(tokens.upto_slot, 0),
        score=cost(tokens.questions, tokens.answers),
        contexts=cost(200, 50),
        statistics=cost(1, 0),
        product=Curve.proportional(2 * shape.d_key**2 / speed),
        perplexity=cost(1, 1),
        encoding=0.0,
        solve=solver(setting.stage_two, shape, len(setting.requests), device),
        hashing=1e9,
        saving=saving_rate(),
        scores_bytes=2000,
    )


def _network(setting: Setting) -> LanguageModel:
    """Build two blocks of the network, and all around them, quickly: values matter little, their being finite does."""
    from transformers.initialization import no_init_weights

    shape = setting.shape
    with setting.device, no_init_weights():
        network = from_config(shallow(shape.config, 2), shape.dtype, setting.trust_remote_code)
    network.tie_weights()
    some = torch.randn(2**20, device=setting.device, generator=torch.Generator(setting.device).manual_seed(0)) * 0.02
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() < 2:
                weight.fill_(1)
            else:
                for part in weight.view(-1).split(len(some)):
                    part.copy_(some[: len(part)])
    return LanguageModel(network, setting.tokenizer, [0], shape.matrix)


Activity = tuple[Curve, Curve]
"""Seconds and bytes by size."""


def _activities(setting: Setting, model: LanguageModel, depth: int) -> dict[str, Activity]:
    """Measure every activity at one depth; descents have depth - 1 blocks above their target layer."""
    device, requests, contexts = setting.device, setting.requests, setting.contexts
    built = build_rows(requests, contexts, model.text, setting.stage_one.reference_quirks)
    sizes = [size for size in SIZES if size < len(requests)] + [len(requests)]

    def prefixes(count: int) -> Callable[[], Any]:
        sequences = [row.ids[: row.slot] for request in built[:count] for row in rows_of(request)]
        return torch.no_grad()(lambda: Prefixes.run(model, sequences, setting.stage_one.max_tokens))

    def read(count: int) -> Callable[[], Any]:
        weights = (
            setting.stage_two.keys.key_weights(len(contexts), False),
            setting.stage_two.keys.anchor_weights(len(contexts)),
        )

        def call() -> None:
            reader = SlotReader(model, requests[:count], contexts)
            reader.keys(depth - 1, weights)
            reader.outputs("block", weights[1])

        return call

    def drop(count: int) -> Callable[[], Any]:
        packed = PackedRows.build(model, built[:count], "block", setting.stage_one.max_tokens)
        packed.predict(packed.replay.initial.new_zeros(count, packed.replay.initial.shape[1]))
        kept = torch.arange(count, device=device) % 10 > 0 if count > 1 else torch.ones(1, dtype=torch.bool).to(device)
        return torch.no_grad()(lambda: packed.keep(kept))

    text_rows = _text_rows(setting, model)

    def observe(tokens: int) -> Callable[[], Any]:
        batch = model.text.pad(_enough(text_rows, tokens), device)
        return lambda: _moment(model, batch, depth)

    def read_text(tokens: int) -> Callable[[], Any]:
        return lambda: perplexity(model, setting.documents, tokens, max_tokens=setting.score_tokens)

    found = _descents(setting, model, built, sizes) | {
        "prefixes": rates.measured(prefixes, sizes, device),
        "drop": rates.measured(drop, sizes, device),
        "score": rates.measured(lambda n: lambda: score(model, requests[:n], setting.score_tokens), sizes, device),
        "contexts": rates.measured(lambda _: lambda: setting.stage_one.context_templates.sample(model), [1], device),
        "statistics": _of_text(observe, setting.statistics_tokens, text_rows, device),
        "perplexity": _of_text(read_text, setting.perplexity_tokens, text_rows, device),
    }
    model.layers = [depth - 1]
    found["read"] = rates.measured(read, sizes, device)
    model.layers = [0]
    return found


def _of_text(
    make: Callable[[int], Callable[[], Any]], at_once: int, rows: Sequence[Row], device: torch.device
) -> Activity:
    """Measure what is done with text up to so many tokens; nothing where it will not be done."""
    most = min(at_once, sum(len(row.ids) for row in rows))
    return rates.measured(make, [*(s for s in TEXT_SIZES if s < most), most], device) if most else (NOTHING, NOTHING)


def _descents(
    setting: Setting, model: LanguageModel, built: Sequence[RequestRows], sizes: Sequence[int]
) -> dict[str, Activity]:
    """Measure what precedes the first step of a descent, and a step."""
    clock, stage = _Clock(setting.device), copy.copy(setting.stage_one)
    stage.stopping, stage.max_steps, stage.site = [clock], 1 + STEPS, "block"
    record, step, held = [], [], []
    stage.descend(model, built[:1])
    for size in dict.fromkeys(sizes):
        start = clock.restart()
        stage.descend(model, built[:size])
        gaps = [later - earlier for earlier, later in itertools.pairwise(clock.times)]
        record.append((size, clock.times[0] - start))
        step.append((size, statistics.median(gaps)))
        clock.restart()
        held.append((size, float(rates.peak(lambda size=size: stage.descend(model, built[:size]), setting.device))))
        if clock.is_late:
            break
    seconds = Curve(tuple(record)), Curve(tuple(step))
    bytes_held = Curve(tuple(held))
    return {"record": (seconds[0], bytes_held), "step": (seconds[1], bytes_held)}


class _Clock(StopRule):
    """Notes when each step of a descent is reached; stops none, until they have taken long enough."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.restart()

    def restart(self) -> float:
        self.times: list[float] = []
        self._start = time.perf_counter()
        return self._start

    @property
    def is_late(self) -> bool:
        return bool(self.times) and self.times[-1] - self._start > rates.BUDGET

    def __call__(self, step: StepView, loss: Tensor) -> Tensor:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.times.append(time.perf_counter())
        return torch.full_like(loss, self.is_late and len(self.times) > 1, dtype=torch.bool)


def _text_rows(setting: Setting, model: LanguageModel) -> list[Row]:
    ids = (model.text.encode([document])[0][: setting.length] for document in setting.documents)
    return sorted((Row(row, len(row) - 1) for row in ids if row), key=lambda row: len(row.ids))


def _enough(rows: Sequence[Row], tokens: int) -> list[Row]:
    """Choose neighbours in length, from the middle of the text on, that have so many tokens."""
    chosen, total = [], 0
    middle = len(rows) // 2
    for row in [*rows[middle:], *reversed(rows[:middle])]:
        chosen.append(row)
        total += len(row.ids)
        if total >= tokens:
            break
    return chosen


def _moment(model: LanguageModel, batch: Any, depth: int) -> Tensor:
    """Do what key statistics do with one batch and one layer."""
    [(keys, _)] = model.observe(batch, [model.architecture.matrix(depth - 1)], stop=depth)
    flat = keys[batch.mask.bool()].to(model.wide_dtype)
    return torch.zeros(flat.shape[1], flat.shape[1], dtype=torch.float64, device=flat.device) + flat.T @ flat


def _product(setting: Setting) -> Curve:
    d_key, device = setting.shape.d_key, setting.device

    def make(tokens: int) -> Callable[[], Any]:
        keys = torch.randn(tokens, d_key, device=device)
        total = torch.zeros(d_key, d_key, dtype=torch.float64, device=device)
        return lambda: total.add_(keys.T @ keys)

    return rates.measured(make, TEXT_SIZES, device)[0]


def _encoding(setting: Setting, model: LanguageModel) -> float:
    start = time.perf_counter()
    tokens = sum(len(model.text.encode([document])[0]) for document in setting.documents[:200])
    return (time.perf_counter() - start) / max(1, tokens)


def saving_rate() -> float:
    """Measure how fast tensors reach the disk, in bytes per second."""
    with tempfile.TemporaryFile() as file:
        start = time.perf_counter()
        torch.save(torch.zeros(2**23), file)
        file.flush()
        os.fsync(file.fileno())
        return 2**25 / (time.perf_counter() - start)


def _scores_bytes(model: LanguageModel, requests: Sequence[EditRequest]) -> float:
    """Measure what the scores of a request take in a checkpoint."""
    file = io.BytesIO()
    scores = score(model, requests)
    torch.save({request.id: one for request, one in zip(requests, scores, strict=True)}, file)
    return file.tell() / len(requests)
