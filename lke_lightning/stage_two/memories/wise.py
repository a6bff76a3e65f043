"""WISE: side matrices that are told apart by how far they move activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from lke_lightning.distributed import Team
from lke_lightning.edits import EditError, check_number
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.stage_two.memories.running import (
    Lessons,
    RunningModule,
    TrainedMemory,
    learn,
    observed,
)
from lke_lightning.stage_two.register import Register
from lke_lightning.stage_two.room import Space
from lke_lightning.stage_two.solvers import EditSystem
from lke_lightning.stage_two.stage import Again
from lke_lightning.step import EditStep

ACTIVATIONS = ("hidden_act", "activation_function", "hidden_activation", "activation")
"""What configurations call the MLP's activation."""


def read(memory: dict, running: Any, keys: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Add what the side matrix makes of keys that moves activations most, in the mean so far, and past its floor."""
    from transformers.activations import ACT2FN

    act, shape = ACT2FN[memory["activation"]], (*running.real.shape[:2], -1)
    before, asked = (part.view(shape).to(memory["sides"]) for part in (output, keys))
    after = before + asked @ memory["sides"].transpose(1, 2).unsqueeze(1)
    moved = running.means((act(after) - act(before)).norm(dim=-1).movedim(0, -1))
    passes = moved > memory["floors"]
    best = torch.where(passes, moved, -1.0).argmax(-1)
    after = after.gather(0, best[None, ..., None].expand_as(after[:1])).squeeze(0).to(output.dtype)
    return torch.where(passes.any(-1, keepdim=True), after, output.view(shape)).view(output.shape)


class SideMatrices(RunningModule):
    """Side matrices of one layer: memories that are complete, and last the shard that is being learnt.

    Args:
        layer: number of the layer.
        activation: transformers' name of the function whose change is measured.
        ratio: how much of the smallest distance that an edit has in a matrix another text needs.
    """

    reader = staticmethod(read)
    sides: Tensor
    """Changes of the layer's matrix, (matrices, d_out, d_key), float32 or better."""
    floors: Tensor
    """Smallest distance of any edit in each, (matrices,)."""

    def __init__(self, layer: int, activation: str, ratio: float) -> None:
        super().__init__(layer)
        self.settings |= {"activation": activation, "ratio": ratio}
        self.activation, self.ratio = activation, ratio

    def begin(self, model: LanguageModel) -> dict[str, Tensor]:
        """Return no matrices."""
        none = torch.zeros(0, *model.weight(self.layer).delta.shape, dtype=model.wide_dtype)
        return {"sides": none, "floors": none[:, 0, 0]}

    @property
    def is_empty(self) -> bool:
        """Whether there is no matrix."""
        return not len(self.sides)

    def is_of(self, units: Sequence[int]) -> bool:
        """See `Beside.is_of`."""
        return len(self.sides) == len(self.floors) and self.activation in ACT2FN

    def rewrite(self, keys: Tensor, output: Tensor) -> Tensor:
        """Route."""
        return read({**self.tensors(), "activation": self.activation}, self.running, keys, output)

    def tensors(self) -> dict[str, Tensor]:
        """Return the matrices, and what a text has to pass."""
        return {"sides": self.sides, "floors": self.floors * self.ratio}

    def exported(self) -> tuple[dict[str, Tensor], dict[str, Any], str]:
        """Return the activation, too."""
        tensors, about, program = super().exported()
        return tensors, {**about, "activation": self.activation}, program


def ties(changes: Tensor, density: float) -> Tensor:
    """Merge changes of one matrix by TIES (arXiv 2306.01708): trim, elect signs, average what agrees.

    Args:
        changes: (changes, ...).
        density: the share of the largest entries of each that is kept.
    """
    count = max(1, round(density * changes[0].numel()))
    sizes = changes.abs().flatten(1)
    limits = sizes.kthvalue(sizes.shape[1] - count + 1, dim=1).values
    kept = torch.where(changes.abs() >= limits.view(-1, *[1] * (changes.dim() - 1)), changes, 0)
    agree = (kept.sign() == kept.sum(0).sign()) & (kept != 0)
    return (kept * agree).sum(0) / agree.sum(0).clamp(min=1)


class Wise(TrainedMemory):
    """Side matrices beside one matrix, in sparse shards that are merged (WISE, arXiv 2405.14768).

    With W the layer's matrix, W' = W + D its side, a the MLP's activation and d(t) = |a(W'k) - a(Wk)| at a token, the
    distance of a text is the mean of d over its tokens so far. A batch is learnt by the loss of its answers under W',
    plus margins: the distance of its texts is to be above beta, that of ordinary ones below alpha, and the first above
    the second by gamma. Of each shard only a random part of the entries may change. A token takes the matrix whose
    distance is largest among those that are above `ratio` times the least of any of their edits; else W.

    Args:
        relative_lr: rate of Adam, as a share of the root mean square of W's entries.
        lr: rate of plain gradient descent, as published; it counts where it is given.
        max_steps: forward passes at most.
        enough: loss at which an edit is learnt.
        margins: alpha, beta and gamma, as shares of the mean |a(Wk)| on ordinary text.
        absolute_margins: the same in the units of the activations, as published; they count where they are given.
        ratio: see above.
        part: share of the entries that a shard may change.
        shard: edits of a shard, about: it ends with the batch that reaches them.
        merge: shards that become one memory (TIES).
        density: share of a shard's entries that merging keeps.
        limit: largest change of an entry; `None`: any.
        corpus: ordinary text, as for `KeyStatistics`.
        seed: of the random parts.
    """

    def __init__(
        self,
        relative_lr: float = 0.4,
        lr: float | None = None,
        max_steps: int = 30,
        enough: float = 0.05,
        margins: Sequence[float] = (0.25, 1.0, 0.5),
        absolute_margins: Sequence[float] | None = None,
        ratio: float = 0.88,
        part: float = 0.2,
        shard: int = 500,
        merge: int = 2,
        density: float = 0.53,
        limit: float | None = None,
        corpus: str | list[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_number("stage_two.relative_lr", relative_lr, above=0)
        check_number("stage_two.lr", 1 if lr is None else lr, above=0)
        check_number("stage_two.max_steps", max_steps, at_least=1)
        check_number("stage_two.ratio", ratio, above=0, at_most=1)
        for name, share in (("part", part), ("density", density)):
            check_number(f"stage_two.{name}", share, above=0, at_most=1)
        for name, count in (("shard", shard), ("merge", merge)):
            check_number(f"stage_two.{name}", count, at_least=1)
        check_number("stage_two.enough", enough, at_least=0)
        check_number("stage_two.limit", 1 if limit is None else limit, above=0)
        for name, given in (("margins", margins), ("absolute_margins", absolute_margins or (0, 0, 0))):
            if not given or len(given) != 3:
                raise EditError(f"stage_two.{name} are three numbers: alpha, beta and gamma")
            for margin in given:
                check_number(f"stage_two.{name}", margin, at_least=0)
        self.relative_lr, self.lr, self.max_steps, self.enough = relative_lr, lr, max_steps, enough
        self.margins, self.absolute_margins, self.ratio = margins, absolute_margins, ratio
        self.part, self.shard, self.merge, self.density = part, shard, merge, density
        self.limit, self.corpus, self.seed = limit, corpus, seed

    def spaces(self, shapes: Sequence[tuple[int, int]], edits: int, wide: int, on_gpu: bool) -> list[Space]:
        """Return the matrices at the end, and what learning needs for one."""
        size, shards = wide * sum(d_out * d_key for d_out, d_key in shapes), -(-edits // self.shard)
        left = shards // self.merge + shards % self.merge
        learning = 4 * size
        return [
            Space(f"side matrices: {left}", left * size, saved=left * size),
            Space("learning: gradient, moments, mask", learning),
        ]

    def made(self, model: LanguageModel) -> SideMatrices:
        """Make the module."""
        config = model.network.config.get_text_config()
        names = [getattr(config, name, None) for name in ACTIVATIONS]
        known = [name for name in names if isinstance(name, str) and name in ACT2FN]
        return SideMatrices(model.layers[-1], (known or ["linear"])[0], self.ratio)

    def prepare(self, model: LanguageModel, *args: Any, **kwargs: Any) -> None:
        """Attach the module; take ordinary texts, and the size of activations on them."""
        super().prepare(model, *args, **kwargs)
        [layer] = model.layers
        if "ordinary" not in self.memory[layer]:
            rows = self.ordinary(model)
            act = ACT2FN[self.module(model).activation]
            unit = act(observed(model, rows, layer)[1]).norm(dim=1).mean()
            lengths = torch.tensor([len(ids) for ids in rows])
            ordinary = torch.tensor([token for ids in rows for token in ids])
            begun = torch.zeros(3, dtype=torch.long)
            self.memory[layer] |= {"ordinary": ordinary, "lengths": lengths, "unit": unit.cpu(), "counts": begun}

    def write(
        self, model: LanguageModel, step: EditStep, register: Register, again: Again | None = None
    ) -> dict[int, EditSystem]:
        """Learn a batch, and enter it into the register.

        Raises:
            EditError: what was learnt is not finite; nothing is changed then.
        """
        if not step.requests:
            return {}
        [layer], module = model.layers, self.module(model)
        memory = self.memory[layer]
        in_shard, shards, unmerged = memory["counts"].tolist()
        texts = memory["ordinary"].split(memory["lengths"].tolist())
        others = [texts[(len(register) + i) % len(texts)].tolist() for i in range(len(step))]
        lessons = Lessons.build(model, step, layer, others)
        begin = module.sides[-1] if in_shard else torch.zeros_like(model.weight(layer).delta)
        side, told = learn(
            begin, lambda side: self._losses(lessons, side, memory["unit"].to(side)), self.rate(model),
            self.lr is not None, self.max_steps, self.enough, self._within, self.mask(shards, begin),
        )  # fmt: skip
        side = Team.of(model.network).first_tensor(side)
        floor = self._floor(lessons, side)
        if in_shard:
            floor = torch.minimum(floor, module.floors[-1])
        kept = len(module.sides) - bool(in_shard)
        sides, floors = [*module.sides[:kept], side], [*module.floors[:kept], floor]
        in_shard += len(step)
        if in_shard >= self.shard:
            in_shard, shards, unmerged = 0, shards + 1, unmerged + 1
        if unmerged == self.merge:
            sides[-unmerged:] = [ties(torch.stack(sides[-unmerged:]), self.density)]
            floors[-unmerged:], unmerged = [torch.stack(floors[-unmerged:]).min()], 0
        module.sides, module.floors = torch.stack(sides), torch.stack(floors)
        self.memory[layer] = {**memory, "counts": torch.tensor([in_shard, shards, unmerged])}
        self.note(step, told)
        register.enter(step.requests, step.targets.groups, step.targets.units)
        return {}

    def mask(self, shard: int, like: Tensor) -> Tensor:
        """Return the entries that a shard, by its number, may change, of the matrix's shape, bool."""
        draw = torch.Generator().manual_seed(self.seed + shard)
        return (torch.rand(like.shape, generator=draw) < self.part).to(like.device)

    def revert(self, model: LanguageModel, register: Register) -> None:
        """Undo all edits: the model is the unedited one, bit for bit."""
        super().revert(model, register)
        for memory in self.memory.values():
            memory["counts"] = torch.zeros(3, dtype=torch.long)

    def why_not_exact(self) -> str | None:
        """Return why: edits share a matrix."""
        return "its edits are learnt into one side matrix"

    def _within(self, side: Tensor) -> None:
        if self.limit is not None:
            side.clamp_(-self.limit, self.limit)

    def _moved(self, lessons: Lessons, side: Tensor) -> Tensor:
        """Return the distances of rows up to each token, (rows, length)."""
        act = ACT2FN[self.module(lessons.model).activation]
        moved = (act(lessons.outputs + lessons.keys @ side.T) - act(lessons.outputs)).norm(dim=-1, keepdim=True)
        return lessons.means(moved).squeeze(-1)

    def _losses(self, lessons: Lessons, side: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        nll, said = lessons.nll(lambda keys, output: output + (keys.to(side) @ side.T).to(output.dtype))
        distances, edits = lessons.at_last(self._moved(lessons, side)), len(lessons.owners) - len(lessons.others)
        inside = torch.zeros_like(nll).index_add(0, lessons.owners[:edits], distances[:edits]) * len(nll) / edits
        outside = distances[lessons.others]
        margins = self.absolute_margins
        alpha, beta, gamma = [margin * unit for margin in self.margins] if margins is None else margins
        lost = (outside - alpha).relu() + (beta - inside).relu() + (gamma + outside - inside).relu()
        return nll + lost / (unit if margins is None else 1), said

    @torch.no_grad()
    def _floor(self, lessons: Lessons, side: Tensor) -> Tensor:
        """Return the smallest distance of the bare prompts where their answers are read."""
        rows, positions, _ = lessons.reads.T
        bare = torch.isin(rows, lessons.firsts)
        return self._moved(lessons, side)[rows[bare], positions[bare]].min()
