"""Stage two of editors that learn from the texts: descend the loss of a batch in the edited matrices."""

from __future__ import annotations

import math
import statistics as averages
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from lke_lightning.distributed import Team
from lke_lightning.edits import EditError, EditRequest, check_number
from lke_lightning.model.backward import backward
from lke_lightning.model.batching import within_memory
from lke_lightning.model.draws import drawn
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.tokens import Row
from lke_lightning.model.units import Expansion
from lke_lightning.progress import track
from lke_lightning.stage_two.register import UNDONE, Register
from lke_lightning.stage_two.room import Space
from lke_lightning.stage_two.solvers import EditSystem
from lke_lightning.stage_two.stage import Again, StageTwo
from lke_lightning.stage_two.statistics import Statistics
from lke_lightning.stage_two.tuning.constraints import StepConstraint
from lke_lightning.stage_two.tuning.objectives import Example, TargetTokens, TuningObjective
from lke_lightning.stage_two.tuning.order import DepthFirst, Order
from lke_lightning.stage_two.tuning.parameters import Change, Dense, Parametrisation
from lke_lightning.step import EditStep

OptimizerOf = Callable[[Iterable], Optimizer]
"""Makes an optimiser of parameters; in YAML one of `torch.optim` with its other arguments."""

STATES = 2
"""Numbers that an optimiser keeps of each parameter; Adam's."""


@dataclass(frozen=True)
class _Mark:
    """A moment of a run that it can return to."""

    deltas: dict[int, Tensor]
    memory: dict[int, dict[str, Tensor]]
    edits: int


@dataclass
class _Lesson:
    """A batch that is being learnt; lists have an entry for each of its edits."""

    examples: list[Example]
    weights: list[float]
    key: tuple[object, ...]
    """What its random numbers follow from."""
    steps: list[int] = field(default_factory=list)
    first_losses: list[float] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin with nothing learnt."""
        count = len(self.examples)
        self.steps, self.first_losses, self.reasons = [0] * count, [math.nan] * count, ["MaxSteps"] * count


class FineTuning(StageTwo):
    """Descend the mean loss of a batch's texts in the edited matrices, one per layer; all else of the model is frozen.

    For each part of the batch (`order`), up to `epochs` times: for each minibatch the gradient of the mean loss over
    its edits with respect to each edited matrix, a step of the optimiser on the parameters of the change, and what the
    constraint allows of it. A minibatch whose loss is below `enough` takes no step, and a part is done when the mean
    over an epoch is (arXiv 2012.00363 as in the code of 2202.05262). The optimiser is new for every part. The change is
    float32 or better; what the network computes with is rounded to its dtype after every step.

    FT-L: `LastPromptToken` and `Box`. FT-M: as it is. LoRA: `LowRankAdapter`. LocFT-BF: `BreadthFirst`. CrispEdit:
    `BreadthFirst` and `LowCurvature`. SAUL: `TargetThenSentence`.

    Args:
        objective: which tokens are learnt. Default: `TargetTokens`.
        parametrisation: which parameters make the change. Default: `Dense`.
        constraint: which steps are allowed. Default: all.
        order: in which order edits are learnt. Default: `DepthFirst`, the whole batch at once.
        optimizer: one of torch's, by its class and its arguments beside the parameters. Default: Adam, 0.02.
        epochs: how often each part is gone through at most.
        enough: the loss, a mean per token, below which no step is taken.
        statistics: ordinary text, for constraints that measure on it.
        norm_limit: as in `WeightUpdate`: a batch that would make the norm of an edited matrix so many times larger is
            taken back. `None`: no limit.
        seed: of all random numbers, with the ids of the edits.
        max_tokens: how many tokens are run at once, at first; where memory runs out it is halved. Results depend on it
            up to rounding.

    Raises:
        EditError: an argument is out of range, the optimiser cannot be made, or parts do not go together.
    """

    needs_targets, USE = False, "learns from the texts and needs no targets"

    def __init__(
        self,
        objective: TuningObjective | None = None,
        parametrisation: Parametrisation | None = None,
        constraint: StepConstraint | None = None,
        order: Order | None = None,
        optimizer: OptimizerOf | None = None,
        epochs: int = 25,
        enough: float = 0.01,
        statistics: Statistics | None = None,
        norm_limit: float | None = 30.0,
        seed: int = 0,
        max_tokens: int = 8192,
    ) -> None:
        check_number("stage_two.epochs", epochs, at_least=1)
        check_number("stage_two.enough", enough, at_least=0)
        check_number("stage_two.norm_limit", 2 if norm_limit is None else norm_limit, above=1)
        check_number("stage_two.max_tokens", max_tokens, at_least=1)
        self.objective, self.parametrisation = objective or TargetTokens(), parametrisation or Dense()
        self.constraint, self.order = constraint, order or DepthFirst()
        if constraint is not None and not self.parametrisation.is_free:
            raise EditError(
                f"{type(constraint).__name__} constrains any step, and {type(self.parametrisation).__name__} cannot "
                "make any: leave stage_two.constraint out, or set stage_two.parametrisation to Dense"
            )
        self.optimizer = optimizer or (lambda parameters: torch.optim.Adam(parameters, lr=0.02))
        _try(self.optimizer)
        self.epochs, self.enough, self.statistics = epochs, enough, statistics
        self.norm_limit, self.seed, self.max_tokens = norm_limit, seed, max_tokens
        self.memory: dict[int, dict[str, Tensor]] = {}
        """The constraint's, by layer; of every layer, perhaps nothing, once there is a run."""
        self._text: str | None = None
        """Which text the objective draws from."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the constraint remembers, and which text the objective draws from."""
        return {**super().state_dict(), "statistics": {} if self._text is None else {"text": self._text}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        super().load_state_dict(state_dict)
        self._text = state_dict["statistics"].get("text")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """Learn the batch, and log what it took."""
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        step = pl_module.step
        if step.requests:
            pl_module.log("stage_two/loss", step.loss, batch_size=len(step))
            pl_module.log("stage_two/median_steps", float(averages.median(step.targets.steps)), batch_size=len(step))

    def spaces(self, shapes: Sequence[tuple[int, int]], edits: int, wide: int, on_gpu: bool) -> list[Space]:
        """Return what a step holds, and what the constraint remembers and makes of it."""
        entries = sum(d_out * d_key for d_out, d_key in shapes)
        moved = sum(self.parametrisation.count(*shape) for shape in shapes)
        kept = 0 if self.constraint is None else 8 * sum(self.constraint.count(*shape) for shape in shapes)
        return [
            Space("their change before a batch, and their gradients", 3 * entries * wide),
            Space("parameters, their gradients and the optimiser's state", (2 + STATES) * moved * wide),
            *([Space("what the constraint remembers", 2 * kept, saved=kept)] if kept else []),
        ]

    def prepare(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest] = (),
        contexts: Sequence[str] = ("{}",),
        expansion: Expansion | None = None,
    ) -> None:
        """Read the texts that parts need, measure what the constraint measures, and check the requests.

        Raises:
            EditError: a text cannot be read, is not that of the checkpoint, or a request cannot be learnt.
        """
        with model.unedited():
            text = self.objective.prepare(model)
            if self._text not in (None, text):
                raise EditError(
                    "the sentences are not those that this run began with: give stage_two.objective the same text"
                )
            self._text = text
            if not any(self.memory.values()):
                begun = {} if self.constraint is None else self.constraint.start(model, self.statistics)
                self.memory = {layer: begun.get(layer, {}) for layer in model.layers}
        self.objective.examples(model.text, requests, self.seed)

    @torch.no_grad()
    def write(
        self, model: LanguageModel, step: EditStep, register: Register, again: Again | None = None
    ) -> dict[int, EditSystem]:
        """Learn a batch, and enter its edits into the register; what it took is in the targets then.

        `first_losses` are those of the first time that an edit is seen, `losses` those at the end.

        Raises:
            EditError: the loss is not finite; nothing is changed then.
        """
        if not step.requests:
            return {}
        before = self.mark(model, register)
        norms = {layer: model.weight(layer).norms()[1] for layer in model.layers}
        examples = self.objective.examples(model.text, step.requests, self.seed)
        key = (self.seed, *(request.id for request in step.requests))
        lesson = _Lesson(examples, [request.weight for request in step.requests], key)
        try:
            if self.constraint is not None:
                self.constraint.begin(self.memory, model.device)
            for part in self.order.parts(len(examples)):
                self._learn(model, lesson, part)
            outcomes = self._outcomes(model, lesson.examples)
            if not all(math.isfinite(loss) for loss, _ in outcomes):
                raise EditError("the loss is not finite: lower the learning rate of stage_two.optimizer")
            growth = {layer: model.weight(layer).norms()[1] / norm for layer, norm in norms.items()}
            layer = Team.of(model.network).first(max(growth, key=growth.__getitem__))
            if self.norm_limit is not None and not growth[layer] <= self.norm_limit:
                self.roll_back(model, register, before)
                step.take_back(
                    f"its batch would multiply the norm of layer {layer}'s matrix by {growth[layer]:.3g}, and the "
                    f"limit is {self.norm_limit:g}; lower the learning rate of stage_two.optimizer"
                )
                return {}
            if self.constraint is not None:
                texts = [Row(example.ids, 0) for example in examples]
                self.memory = self.constraint.learnt(model, texts, self.memory)
        except BaseException:
            self.roll_back(model, register, before)
            raise
        losses, reached = (list(part) for part in zip(*outcomes, strict=True))
        step.targets = replace(
            step.targets,
            steps=lesson.steps,
            losses=losses,
            first_losses=lesson.first_losses,
            reasons=lesson.reasons,
            reached=reached,
        )
        register.enter(step.requests, step.targets.groups, step.targets.units)
        return {}

    def _learn(self, model: LanguageModel, lesson: _Lesson, part: list[int]) -> None:
        """Learn a part of a batch to its end, and write the share of it that is to be written."""
        weights = {layer: model.weight(layer) for layer in model.layers}
        starts = {layer: weight.delta.clone() for layer, weight in weights.items()}
        change = self.parametrisation.start(weights, drawn(*lesson.key, part, "start"))
        optimizer = self.optimizer(change.parameters)
        for epoch in track(range(self.epochs), "learning", "epochs"):
            seen: list[float] = []
            for minibatch in self.order.epoch(part, drawn(*lesson.key, epoch)):
                losses, gradients = self._gradients(model, lesson, minibatch)
                seen += losses
                for place, loss in zip(minibatch, losses, strict=True):
                    if not lesson.steps[place] and math.isnan(lesson.first_losses[place]):
                        lesson.first_losses[place] = loss
                if averages.fmean(losses) < self.enough:
                    continue
                with torch.autocast(model.device.type, enabled=False):
                    self._step(weights, starts, change, gradients, optimizer)
                for place in minibatch:
                    lesson.steps[place] += 1
            if averages.fmean(seen) < self.enough:
                for place in part:
                    lesson.reasons[place] = "LossBelow"
                break
        team = Team.of(model.network)
        for layer, weight in weights.items():
            learnt = starts[layer] + self.parametrisation.share * (weight.delta - starts[layer])
            whole = self.parametrisation.share == 1
            weight.restore(team.first_tensor(weight.delta.clone() if whole else learnt))

    def _step(
        self,
        weights: Mapping[int, Any],
        starts: Mapping[int, Tensor],
        change: Change,
        gradients: Mapping[int, Tensor],
        optimizer: Optimizer,
    ) -> None:
        """Take a step down the gradients with respect to the matrices, as far as the constraint allows it."""
        followed = self.constraint.followed if self.constraint is not None else lambda _, gradient: gradient
        optimizer.zero_grad()
        with torch.enable_grad():
            torch.autograd.backward(
                [change.of(layer) for layer in weights], [followed(layer, gradients[layer]) for layer in weights]
            )
        optimizer.step()
        for layer, weight in weights.items():
            after = starts[layer] + change.of(layer)
            if self.constraint is not None:
                after = self.constraint.allowed(layer, weight, after)
                change.set(layer, after - starts[layer])
            weight.restore(after)

    def _gradients(
        self, model: LanguageModel, lesson: _Lesson, minibatch: list[int]
    ) -> tuple[list[float], dict[int, Tensor]]:
        """Return the loss of each edit, and the gradients of their weighted mean by layer; processes divide them."""
        team = Team.of(model.network)
        sums = {layer: torch.zeros_like(model.weight(layer).delta) for layer in model.layers}

        def run(part: list[int]) -> list[float]:
            chosen = [lesson.examples[place] for place in part]
            batch, rows, positions, labels, own = _read(model, chosen)
            counts = [len(example.labels) for example in chosen]
            shares = [lesson.weights[place] / count for place, count in zip(part, counts, strict=True)]
            by_token = torch.tensor(shares, dtype=model.wide_dtype, device=model.device)[rows]

            def loss(logits: Tensor) -> Tensor:
                return (cross_entropy(logits, labels, reduction="none") * by_token).sum()

            found = backward(model, batch, rows, positions, loss)
            with torch.autocast(model.device.type, enabled=False):
                for total, gradient in zip(sums.values(), found.by_weights(model.wide_dtype), strict=True):
                    total += gradient
            return [loss for loss, _ in _told(found.logits, labels, counts, own)]

        by_length = sorted(minibatch, key=lambda place: len(lesson.examples[place].ids))
        mine = team.share(by_length)
        parts, self.max_tokens = within_memory(
            run, mine, lambda place: len(lesson.examples[place].ids), self.max_tokens
        )
        losses = dict(zip(by_length, team.gather([loss for part in parts for loss in part]), strict=True))
        gradients = {layer: team.sum(total) / len(minibatch) for layer, total in sums.items()}
        if not all(map(math.isfinite, losses.values())):
            raise EditError("the loss is not finite: lower the learning rate of stage_two.optimizer")
        return [losses[place] for place in minibatch], gradients

    def _outcomes(self, model: LanguageModel, examples: Sequence[Example]) -> list[tuple[float, bool]]:
        """Return the loss of each edit, and whether what it asks is the model's first choice; processes divide them."""
        team = Team.of(model.network)

        def run(part: list[Example]) -> list[tuple[float, bool]]:
            batch, rows, positions, labels, own = _read(model, part)
            logits = model.logits(batch, rows, positions).to(model.wide_dtype)
            return _told(logits, labels, [len(example.labels) for example in part], own)

        mine = team.share(examples)
        parts, self.max_tokens = within_memory(run, mine, lambda example: len(example.ids), self.max_tokens)
        return team.gather([outcome for part in parts for outcome in part])

    def mark(self, model: LanguageModel, register: Register) -> _Mark:
        """Mark the present state, so that `roll_back` can return to it."""
        deltas = {layer: model.weight(layer).delta.clone() for layer in model.layers}
        return _Mark(deltas, dict(self.memory), len(register))

    def roll_back(self, model: LanguageModel, register: Register, mark: _Mark) -> None:
        """Return to a moment of the run, bit for bit; later edits are forgotten."""
        for layer, delta in mark.deltas.items():
            model.weight(layer).restore(delta)
        self.memory = dict(mark.memory)
        register.shorten(mark.edits)

    def revert(self, model: LanguageModel, register: Register) -> None:
        """Undo all edits: the weights are the unedited ones, bit for bit; what was measured is measured again."""
        for layer in model.layers:
            model.weight(layer).revert()
        self.memory = {layer: {} for layer in model.layers}
        register.deactivate(register.holding, UNDONE)

    def why_not_exact(self) -> str:
        """Return why there is no exact undo."""
        return "edits are learnt together, step by step, and later ones begin where earlier ones have ended"


def _read(model: LanguageModel, examples: Sequence[Example]) -> tuple[Any, Tensor, Tensor, Tensor, list[int]]:
    """Return the padded batch; row, position and label of each read; and how many of each example's are its own."""
    batch = model.text.pad([Row(example.ids, 0) for example in examples], model.device)
    reads = [
        (row, *read)
        for row, example in enumerate(examples)
        for read in zip(example.positions, example.labels, strict=True)
    ]
    return batch, *torch.tensor(reads, device=model.device).T, [example.own for example in examples]


def _told(logits: Tensor, labels: Tensor, counts: list[int], own: list[int]) -> list[tuple[float, bool]]:
    """Return for each example the mean loss of its own labels, and whether all of them are first choices."""
    losses = cross_entropy(logits, labels, reduction="none").split(counts)
    first = (logits.argmax(1) == labels).split(counts)
    return [
        (loss[:count].mean().item(), bool(said[:count].all()))
        for loss, said, count in zip(losses, first, own, strict=True)
    ]


def _try(make: OptimizerOf) -> None:
    """Raise `EditError` unless an optimiser can be made and takes a step of its own."""
    parameter = nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))
    parameter.grad = torch.zeros_like(parameter)
    try:
        make([parameter]).step()
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise EditError(
            f"stage_two.optimizer cannot be used: {error}; take another, such as torch.optim.Adam"
        ) from error
