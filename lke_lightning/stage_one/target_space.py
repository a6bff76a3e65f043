"""Constraints on targets: projections applied to delta after every step.

What a projection has to know of the descent is its state, a dict of tensors that `start` makes and `step` takes and
returns. Where it has requests in front, they are all of the descent: those that are done stay in it. What has to
survive a batch is in the memory of stage one, which `look` takes and returns.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lke_lightning.edits import check_number
from lke_lightning.stage_one.history import UpdateHistory

State = dict[str, Tensor]


@dataclass(frozen=True)
class Move:
    """One update of the optimizer. What has requests in front has all of the descent, also those that are done."""

    number: int
    """Which update this is, from 1."""
    before: Tensor
    """delta before it, (requests, hidden size)."""
    change: Tensor
    """delta after it, not projected yet, (requests, hidden size)."""
    gradient: Tensor
    """Of each request's loss at `before`, (requests, hidden size)."""
    reached: Tensor
    """Whether a stop rule was met at `before`, (requests,) bool."""
    initial_norm: Tensor
    """Norm of the unchanged activation, (requests,)."""


class TargetSpace(ABC):
    """A set that delta is projected onto."""

    first_pass: int = 0
    """Updates after which the descent begins anew, with a fresh optimizer and stop rules that have seen nothing; until
    then nobody is done."""
    keeps: tuple[str, ...] = ()
    """Parts of the state that objectives may read."""
    remembers: bool = False
    """Whether it compares a batch with earlier ones, all of them with targets at the last edited layer."""

    def look(self, history: UpdateHistory, keys: Callable[[], Tensor], memory: State) -> tuple[State, State]:
        """Look at a batch before its descents: return what `start` wants to know of each request, and the memory.

        Every process looks at the whole batch.

        Args:
            history: of the target layer's matrix.
            keys: reads the keys of the bare prompts at that matrix, (requests, d_key).
            memory: what is remembered of earlier batches; it is not changed.
        """
        return {}, memory

    def start(self, initial: Tensor, seen: State, history: UpdateHistory) -> State:
        """Return the state at the beginning of a descent.

        Args:
            initial: the unchanged activations, (requests, hidden size).
            seen: what `look` returned of these requests.
            history: of the target layer's matrix.
        """
        return {}

    @abstractmethod
    def step(self, state: State, move: Move) -> tuple[Tensor, State]:
        """Return the projected delta (requests, hidden size) and the next state; what is given is not changed."""


class NormBall(TargetSpace):
    """|delta| <= factor * |initial activation|.

    Args:
        factor: radius, `clamp_norm_factor` of the published code (ROME 4, MEMIT family 0.75).
    """

    def __init__(self, factor: float = 0.75) -> None:
        check_number("NormBall.factor", factor, above=0)
        self.factor = factor

    def project(self, change: Tensor, initial_norm: Tensor) -> Tensor:
        """Scale vectors (requests, hidden size) that are too long back to the radius."""
        limit = self.factor * initial_norm
        norm = change.norm(dim=1)
        return change * (limit / norm).clamp(max=1).nan_to_num(nan=1.0).unsqueeze(1)

    def step(self, state: State, move: Move) -> tuple[Tensor, State]:
        """Project onto the ball."""
        return self.project(move.change, move.initial_norm), state


class ScoredCoordinates(TargetSpace):
    """Few coordinates of the activation, those that matter most (EAC's anchors, arXiv 2503.00035).

    The first `dense_steps` updates find delta in the space that this one lies in. Coordinate j then has the score
    |g_j delta_j|, with g the mean of the gradients. The descent begins anew on those of the highest scores alone; the
    others are exactly 0. Requests that meet a stop rule before wait where they are. `max_steps` counts both passes: 10
    and 15 updates, as published for MEMIT, are 26 forward passes.

    Args:
        share: of all coordinates, how many may be changed; fewer preserve more and reach less (MEMIT 0.05, ROME 0.2).
        dense_steps: updates of the first pass.
        from_dense: begin the second pass with what the first has found there, as published for ROME, not with 0.
        within: the space that this one lies in. Default: `NormBall(0.75)`.
    """

    keeps = ("score", "support")

    def __init__(
        self,
        share: float = 0.05,
        dense_steps: int = 10,
        from_dense: bool = False,
        within: TargetSpace | None = None,
    ) -> None:
        check_number("ScoredCoordinates.share", share, above=0, at_most=1)
        check_number("ScoredCoordinates.dense_steps", dense_steps, at_least=1)
        self.share, self.from_dense, self.within = share, from_dense, within or NormBall()
        self.first_pass, self.remembers = dense_steps, self.within.remembers

    def look(self, history: UpdateHistory, keys: Callable[[], Tensor], memory: State) -> tuple[State, State]:
        """Let the space around this one look."""
        return self.within.look(history, keys, memory)

    def start(self, initial: Tensor, seen: State, history: UpdateHistory) -> State:
        """Begin with no gradient and no coordinates."""
        none = torch.zeros(len(initial), dtype=torch.bool, device=initial.device)
        zeros, support = torch.zeros_like(initial), torch.zeros_like(initial, dtype=torch.bool)
        own = {"gradient": zeros, "updates": zeros[:, :1], "waits": none, "score": zeros, "support": support}
        return self.within.start(initial, seen, history) | own

    def step(self, state: State, move: Move) -> tuple[Tensor, State]:
        """Collect gradients, choose coordinates at the end of the first pass, and keep to them in the second."""
        if move.number > self.first_pass:
            return self.within.step(state, replace(move, change=move.change * state["support"]))
        change, state = self.within.step(state, move)
        waits = (state["waits"] | move.reached).unsqueeze(1)
        change = torch.where(waits, move.before, change)
        gradient = state["gradient"] + torch.where(waits, 0, move.gradient)
        updates = state["updates"] + ~waits
        state = state | {"gradient": gradient, "updates": updates, "waits": waits.squeeze(1)}
        if move.number < self.first_pass:
            return change, state
        score = (gradient / updates.clamp(min=1) * change).abs()
        chosen = score.topk(max(1, int(self.share * change.shape[1])), dim=1).indices
        support = state["support"].scatter(1, chosen, True)
        begin = change * support if self.from_dense else torch.zeros_like(change)
        return begin, state | {"score": score, "support": support}


class NoiseTrigger:
    """Tells at which edits earlier ones are unusually loud (DeltaEdit, arXiv 2505.07899).

    The noise of an edit is |A k|, what the sum A of all earlier updates adds at its key. It is unusual where it is
    farther from the running mean than `deviation` times the root of the running variance. What is unusual is not
    averaged.

    Args:
        deviation: `var` of the published code (1.5 for Llama 3, 3 for GPT-2 XL); a larger one triggers less often.
        after: edits before which nothing is unusual.
        momentum: of the running mean and variance; a larger one forgets more slowly.
    """

    def __init__(self, deviation: float = 1.5, after: int = 20, momentum: float = 0.9) -> None:
        check_number("NoiseTrigger.deviation", deviation, at_least=0)
        check_number("NoiseTrigger.after", after, at_least=0)
        check_number("NoiseTrigger.momentum", momentum, at_least=0, below=1)
        self.deviation, self.after, self.momentum = deviation, after, momentum

    def __call__(self, noises: Sequence[float], past: Sequence[float]) -> tuple[list[bool], list[float]]:
        """Judge edits one after the other.

        Args:
            noises: of each edit; 0 where there is no earlier one. What is not finite is not unusual: its edit will be
                left out.
            past: how many edits there were, and the mean and variance of their noise; mean 0: none had any.

        Returns:
            Whether each noise is unusual, and the `past` of the next edit.
        """
        edits, mean, variance = past
        unusual = []
        for noise in noises:
            edits += 1
            distance = abs(noise - mean)
            fires = edits > self.after and variance > 0 and math.inf > distance > self.deviation * math.sqrt(variance)
            unusual.append(fires)
            if fires or not 0 < noise < math.inf:
                continue
            if mean == 0:
                mean = noise
                continue
            mean = self.momentum * mean + (1 - self.momentum) * noise
            variance = self.momentum * variance + (1 - self.momentum) * (noise - mean) ** 2
        return unusual, [edits, mean, variance]


class OrthogonalTo(TargetSpace):
    """The orthogonal complement of what earlier edits write: of the strongest left singular vectors of their sum A.

    Without a trigger, every edit is kept off them (O-Edit+, arXiv 2410.11469). With one, only edits at which A is
    unusually loud are (DeltaEdit, arXiv 2505.07899), and what A adds at their own key is removed with the rest: as
    published, the vectors are those of [A k | A], but here A k itself is always among them, and exactly.

    The edits of a batch are judged one after the other, all beside the A of before the batch. A batch with triggered
    edits takes d_out * at_most * d_out numbers for each of its requests; published are batches of one edit.

    Args:
        at_most: share of all directions that may be removed, `space` of DeltaEdit's code; a larger one keeps edits
            farther apart and leaves less room for each.
        relative_threshold: squares of A's singular values count above this share of the largest.
        threshold: they count above this instead, in the units of the weights, as published (DeltaEdit 0.1).
        trigger: which edits are kept off. `None`: all.
        within: the space that this one lies in. Default: `NormBall(0.75)`.
    """

    def __init__(
        self,
        at_most: float = 0.25,
        relative_threshold: float = 0.01,
        threshold: float | None = None,
        trigger: NoiseTrigger | None = None,
        within: TargetSpace | None = None,
    ) -> None:
        check_number("OrthogonalTo.at_most", at_most, above=0, below=1)
        check_number("OrthogonalTo.relative_threshold", relative_threshold, at_least=0, below=1)
        check_number("OrthogonalTo.threshold", 0 if threshold is None else threshold, at_least=0)
        self.at_most, self.relative_threshold, self.threshold = at_most, relative_threshold, threshold
        self.trigger, self.within = trigger, within or NormBall()
        self.first_pass, self.keeps = self.within.first_pass, self.within.keeps
        self.remembers = trigger is not None or self.within.remembers

    def look(self, history: UpdateHistory, keys: Callable[[], Tensor], memory: State) -> tuple[State, State]:
        """Judge the noise of each edit; the memory gets it as `noise`: edits, mean and variance, (3,) float64."""
        seen, memory = self.within.look(history, keys, memory)
        if self.trigger is None:
            return seen, memory
        noise = keys() @ history.change.T
        past = memory["noise"].tolist() if "noise" in memory else [0.0, 0.0, 0.0]
        unusual, past = self.trigger(noise.norm(dim=1).tolist(), past)
        loud = torch.where(torch.tensor(unusual, device=noise.device).unsqueeze(1), noise, 0)  # not a product with NaN
        return seen | {"noise": loud}, memory | {"noise": torch.tensor(past, dtype=torch.float64)}

    def start(self, initial: Tensor, seen: State, history: UpdateHistory) -> State:
        """Find the directions: (d_out, n) for all requests, or (requests, d_out, n), filled with 0."""
        limits = int(self.at_most * initial.shape[1]), self.relative_threshold, self.threshold
        if self.trigger is None:
            removed = history.directions(*limits)
        else:
            noises = seen.get("noise", torch.zeros_like(initial))  # none where nobody has looked
            nothing = noises.new_zeros(len(noises[0]), 0, dtype=torch.float64)
            found = [history.directions(*limits, noise) if noise.any() else nothing for noise in noises]
            removed = pad_sequence([directions.T for directions in found], batch_first=True).mT
        return self.within.start(initial, seen, history) | {"removed": removed.to(initial)}

    def step(self, state: State, move: Move) -> tuple[Tensor, State]:
        """Remove the directions."""
        removed = state["removed"]
        held = move.change.unsqueeze(1) @ removed @ removed.mT
        return self.within.step(state, replace(move, change=move.change - held.squeeze(1)))
