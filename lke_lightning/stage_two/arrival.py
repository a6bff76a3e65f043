"""After a batch was written: how much of it arrived, and where it was lost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lke_lightning.distributed import Team
from lke_lightning.edits import SLOT, EditError
from lke_lightning.model.activations import capture, in_rows
from lke_lightning.model.batching import by_length, within_memory
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.tokens import Row
from lke_lightning.model.units import Text, texts
from lke_lightning.stage_two.register import Register
from lke_lightning.stage_two.solvers import EditSystem
from lke_lightning.step import Arrival, EditStep

MAX_TOKENS = 16384
"""How many tokens run at once."""

ENOUGH = 0.5
"""The part of a batch, and of the way to its targets, that has to arrive."""

TAKEN_BACK_AT_MOST = 3
"""After so many batches in a row that were taken back, a run stops."""


class Watch:
    """Looks at each batch of a run after it was written, and says so where less than half of it arrived."""

    def __init__(self) -> None:
        self._taken_back = 0
        self._lost_in = ""

    def look(self, model: LanguageModel, step: EditStep, register: Register, systems: Mapping[int, EditSystem]) -> None:
        """Measure what arrived into `step.arrival`; warn where it is little, at first and when the reason changes.

        Args:
            model: the language model, as the batch has left it.
            step: the batch.
            register: the edits made so far, with those of the batch.
            systems: what stage two solved, by layer.

        Raises:
            EditError: the batch was taken back, and nothing was written before it or the last ones were taken back too.
        """
        self._taken_back = self._taken_back + 1 if step.taken_back else 0
        if step.taken_back:
            if not len(register):
                raise EditError(f"nothing was written: {step.taken_back}")
            if self._taken_back >= TAKEN_BACK_AT_MOST:
                raise EditError(f"the last {self._taken_back} batches were taken back: {step.taken_back}")
            rank_zero_warn(f"a batch is left out: {step.taken_back}")
        if not step.requests:
            return
        step.arrival = arrival(model, step)
        if step.arrival is None:
            return
        lost_in, what = _diagnosis(model, step, step.arrival, systems)
        if lost_in and lost_in != self._lost_in:
            rank_zero_warn(f"after {len(register)} edits: {what}")
        self._lost_in = lost_in or self._lost_in


@torch.no_grad()
def arrival(model: LanguageModel, step: EditStep) -> Arrival | None:
    """Measure how much of a batch is in the weights, by one pass over its bare prompts; processes divide them.

    Returns:
        What arrived; `None`: a module beside the network answers, and what the network says does not tell.
    """
    if model.answering is not None:
        return None
    team = Team.of(model.network)
    mine = team.share(range(len(step)))
    requests = [step.requests[i] for i in mine]
    found = texts(model.text, requests, [SLOT], step.expansion)
    parts, _ = within_memory(
        lambda part: _outcomes(model, step, part),
        list(zip(mine, found, strict=True)),
        lambda item: len(item[1].ids),
        MAX_TOKENS,
    )
    outcomes = team.gather([outcome for part in parts for outcome in part])
    written = [written for written, _ in outcomes] if step.targets.are_known else None
    return Arrival(written, [is_first for _, is_first in outcomes])


def _outcomes(model: LanguageModel, step: EditStep, part: Sequence[tuple[int, Text]]) -> list[tuple[float, bool]]:
    """Return for each request, by its place in the batch, which part of the way was gone and whether it is said."""
    architecture = model.architecture
    module = architecture.blocks.__getitem__ if step.targets.site == "block" else architecture.matrix
    target_layers = [layers[-1] for layers in step.layers(model.layers)]
    weights = {layer: model.weight(layer) for layer in model.layers}
    found: dict[int, tuple[float, bool]] = {}
    for members in by_length([len(text.ids) for _, text in part], MAX_TOKENS, model.device):
        chosen = [part[i] for i in members]
        batch = model.text.pad([Row(text.ids[:-1], text.slots[0]) for _, text in chosen], model.device)
        reads = [
            (place, len(text.ids) - len(text.answer) + j - 1, label)
            for place, (_, text) in enumerate(chosen)
            for j, label in enumerate(text.answer)
        ]
        places, positions, labels = torch.tensor(reads, device=model.device).T
        with ExitStack() as stack:
            seen = {i: stack.enter_context(capture(module(i))) for i in {target_layers[n] for n, _ in chosen}}
            states = model.states(batch, places, positions)
        by_layer = {layer: in_rows(tap.output, len(batch)) for layer, tap in seen.items()}
        wrong = torch.zeros(len(batch), dtype=torch.long, device=model.device)
        wrong.index_add_(0, places, (model.head(states).argmax(1) != labels).long())
        outputs = [by_layer[target_layers[n]][i, list(text.slots)] for i, (n, text) in enumerate(chosen)]
        written = step.targets.written([number for number, _ in chosen], outputs, weights)
        for (number, _), gone, mistakes in zip(chosen, written, wrong.tolist(), strict=True):
            found[number] = gone, mistakes == 0
    return [found[number] for number, _ in part]


def _diagnosis(
    model: LanguageModel, step: EditStep, found: Arrival, systems: Mapping[int, EditSystem]
) -> tuple[str, str]:
    """Return where a batch was lost and what to do, in one sentence; twice nothing where enough of it arrived."""
    said = sum(found.first_choice)
    if found.written is None:
        what = f"{said} of {len(step)} targets are the model's first choice: {step.targets.ADVICE}"
        return ("", "") if said >= ENOUGH * len(step) else ("stage two", what)
    written = statistics.median(found.written)
    if said >= ENOUGH * len(step) and written >= ENOUGH:
        return "", ""
    what = (
        f"{said} of {len(step)} targets are the model's first choice, and {written:.0%} of the way to them was written "
        "(median): "
    )
    reached = step.targets.reached
    silent = [known for known, is_first in zip(reached, found.first_choice, strict=True) if not is_first]
    if said < ENOUGH * len(step) and sum(silent) < ENOUGH * len(silent):
        return "stage one", f"{what}stage one reached {sum(reached)} of them; {step.targets.ADVICE}"
    what += f"stage one reached {sum(reached)} of them, "
    if step.targets.site == "block" and model.site == "matrix":
        return "site", f"{what}a norm behind the MLP changed what was written; set stage_one.site to matrix"
    if written < 0:
        advice = "edit lower layers, or lower stage_one.relative_lr (or lr, where it is given)"
        return "too much", f"{what}what was written leads away from the targets: it was too much; {advice}"
    if not systems:
        return "stage two", f"{what}what stage two stored is not what the model reads there; see its options"
    if _solved(model, step, systems) >= ENOUGH:
        weights = [model.weight(layer) for layer in model.layers]
        lost = math.hypot(*(weight.lost() for weight in weights))
        whole = math.hypot(*(weight.delta.norm().item() for weight in weights))
        if lost > ENOUGH * whole:
            dtype = str(model.network.dtype).removeprefix("torch.")
            return "dtype", f"{what}{dtype} loses {lost / whole:.0%} of the change; set model.dtype to float32"
    return "stage two", (
        f"{what}stage two did not write them; give BaseStatistics, or what else preserves, less weight (a higher "
        "fulfilment), or edit more layers"
    )


def _solved(model: LanguageModel, step: EditStep, systems: Mapping[int, EditSystem]) -> float:
    """Return which part of what target layers were asked their solves have given, before any rounding (median)."""
    shares = []
    for layer in {layers[-1] for layers in step.layers(model.layers)}:
        system = systems[layer]
        given = system.keys @ model.weight(layer).delta.T - system.changes  # type: ignore[operator]  # `_system` gives it
        shares.append(1 - (system.residuals - given).norm(dim=1) / system.residuals.norm(dim=1))
    return torch.cat(shares).nanmedian().item()
