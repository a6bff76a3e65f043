"""What memories of trained matrices have in common: they are read by means over tokens, and learnt from texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lke_lightning.edits import EditError
from lke_lightning.model.cache import Padded
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.tokens import Row
from lke_lightning.model.units import Whole, texts
from lke_lightning.stage_two.memories.hooks import running
from lke_lightning.stage_two.memories.side import Rule, SideMemory, SideModule
from lke_lightning.stage_two.statistics import KeyStatistics
from lke_lightning.step import EditStep

if TYPE_CHECKING:
    from lke_lightning.model.architecture import Matrix

ORDINARY, LENGTH = 64, 24
"""How many texts stand for all others, and their tokens at most."""


class RunningModule(SideModule):
    """Decides at a token by a mean over the row's tokens up to it."""

    token_wise: ClassVar[bool] = False
    attachment: ClassVar[ModuleType] = running

    def install(self, model: LanguageModel) -> None:
        """Hook the network, too: which tokens are real, and what came before them, is known there."""
        super().install(model)
        self.running = running.Running()
        self.hooks.append(model.network.register_forward_pre_hook(self.running.begin, with_kwargs=True))
        self.hooks.append(model.network.register_forward_hook(self.running.end))


@dataclass(frozen=True)
class Lessons:
    """Texts that run up to the memory's layer once, and from there at every step."""

    model: LanguageModel
    layer: int
    batch: Padded
    hidden: Tensor
    """Input of the block, (rows, length, hidden size)."""
    keys: Tensor
    """Input of the matrix, (rows, length, d_key)."""
    outputs: Tensor
    """Of the matrix without any memory, (rows, length, d_out)."""
    owners: Tensor
    """The request of each row, (rows,) int64."""
    firsts: Tensor
    """Which rows are bare prompts with answers, one for each request, (requests,) int64."""
    prompts: Tensor
    """Tokens of these that are prompt, (requests,) int64."""
    others: Tensor
    """Which rows are about something else, one for each request if any, (requests or 0,) int64."""
    reads: Tensor
    """Row, position and token of all that is to be said, (reads, 3) int64."""

    @classmethod
    @torch.no_grad()
    def build(cls, model: LanguageModel, step: EditStep, layer: int, others: Sequence[Sequence[int]] = ()) -> Lessons:
        """Run a batch's prompts in all contexts, with their answers, and a text about something else for each."""
        found, count = texts(model.text, step.requests, step.contexts, Whole()), len(step.contexts)
        rows = [text.ids[:-1] for text in found] + [tuple(ids) for ids in others]
        firsts = range(0, len(found), count)
        owners = [i // count for i in range(len(found))] + [*range(len(others))]
        reads = [
            (row, len(text.ids) - len(text.answer) + j - 1, token)
            for row, text in enumerate(found)
            for j, token in enumerate(text.answer)
        ]
        prompts = [len(found[i].ids) - len(found[i].answer) for i in firsts]
        batch = model.text.pad([Row(ids, 0) for ids in rows], model.device)
        modules = [model.architecture.blocks[layer], model.architecture.matrix(layer)]
        with SideMemory.module(model).switched_off():
            (hidden, _), (keys, outputs) = model.observe(batch, modules, stop=layer + 1)
        numbers = (owners, [*firsts], prompts, [*range(len(found), len(rows))], reads)
        return cls(
            model, layer, batch, hidden, keys.to(model.wide_dtype), outputs.to(model.wide_dtype),
            *(torch.tensor(part, dtype=torch.long, device=model.device) for part in numbers),
        )  # fmt: skip

    def means(self, values: Tensor) -> Tensor:
        """Return the means of values (rows, length, size) over each row's tokens up to each of them."""
        real = self.batch.mask.unsqueeze(-1).to(values)
        return (values * real).cumsum(1) / real.cumsum(1)

    def at_last(self, values: Tensor) -> Tensor:
        """Return values (rows, length, ...) at the last real token of each row."""
        return values[torch.arange(len(values), device=values.device), self.batch.mask.sum(1) - 1]

    def nll(self, rule: Rule) -> tuple[Tensor, Tensor]:
        """Run the texts with what a rule makes of the matrix's output.

        Returns:
            The mean negative log-likelihood of each request's answer over its contexts, (requests,), and whether the
            bare prompt is answered by it, (requests,) bool.
        """
        rows, positions, tokens = self.reads.T
        with SideMemory.module(self.model).read_by(rule):
            states = self.model.states(self.batch, rows, positions, self.layer, self.hidden)
        logits = self.model.head(states).to(self.model.wide_dtype)
        losses = torch.nn.functional.cross_entropy(logits, tokens, reduction="none")
        of_rows = losses.new_zeros(len(self.batch)).index_add(0, rows, losses)
        counts = losses.new_zeros(len(self.batch)).index_add(0, rows, torch.ones_like(losses))
        is_edit = counts > 0
        owners, requests = self.owners[is_edit], len(self.firsts)
        total = losses.new_zeros(requests).index_add(0, owners, (of_rows / counts)[is_edit])
        wrong = torch.zeros_like(counts).index_add(0, rows, (logits.argmax(1) != tokens).to(counts))
        return total * requests / len(owners), wrong[self.firsts] == 0


@torch.enable_grad()
def learn(
    parameter: Tensor,
    losses: Callable[[Tensor], tuple[Tensor, Tensor]],
    lr: float,
    sgd: bool,
    max_steps: int,
    enough: float,
    tidy: Callable[[Tensor], None] | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, dict[str, list[Any]]]:
    """Train a matrix until every request's loss is small enough; one whose is pauses.

    Args:
        parameter: where it begins; it is not changed.
        losses: makes the loss of each request, (requests,), and whether it is answered, of the matrix.
        lr: learning rate.
        sgd: take plain gradient descent, as published, in the place of Adam.
        max_steps: forward passes at most.
        enough: the loss that is small enough.
        tidy: changes the matrix in place after every step.
        mask: which entries may change, of the matrix's shape, bool.

    Returns:
        The matrix, and what is known of it in `Targets`, by the names of its fields.
    """
    matrix = parameter.clone().requires_grad_()
    optimizer = (torch.optim.SGD if sgd else torch.optim.Adam)([matrix], lr=lr)
    first: list[float] = []
    for step in range(1, max_steps + 1):
        loss, said = losses(matrix)
        first = first or loss.tolist()
        done = loss <= enough
        if done.all() or step == max_steps:
            break
        optimizer.zero_grad()
        torch.where(done, 0, loss).sum().backward()
        if mask is not None:
            matrix.grad *= mask  # type: ignore[operator]  # the line above has filled it
        optimizer.step()
        if tidy is not None:
            with torch.no_grad():
                tidy(matrix)
    if not matrix.isfinite().all() or not loss.isfinite().all():
        raise EditError("what the memory learnt is not finite: lower stage_two.lr")
    reasons = ["LossBelow" if is_done else "MaxSteps" for is_done in done.tolist()]
    told = {"losses": loss.tolist(), "first_losses": first, "reasons": reasons, "reached": said.tolist()}
    return matrix.detach(), {**told, "steps": [step] * len(reasons)}


class TrainedMemory(SideMemory):
    """Learns a matrix beside the network from the texts of a batch."""

    needs_targets, USE = False, "learns from the texts and needs no targets"
    relative_lr: float
    """Adam's rate, in root mean squares of the matrix's entries."""
    lr: float | None
    """That of plain gradient descent; it counts where it is given."""
    corpus: str | list[str] | None
    """Ordinary text; as for `KeyStatistics`."""

    def rate(self, model: LanguageModel) -> float:
        """Return the learning rate: as given, or relative to the entries of the matrix beside which it learns."""
        return self.relative_lr * spread(model.architecture.matrix(model.layers[-1])) if self.lr is None else self.lr

    def ordinary(self, model: LanguageModel) -> list[tuple[int, ...]]:
        """Return the beginnings of some ordinary texts, as tokens."""
        found: list[tuple[int, ...]] = []
        documents = KeyStatistics(self.corpus).corpus(model).documents(model)
        with model.unedited() if model.beside else nullcontext():
            while len(found) < ORDINARY and (document := next(documents, None)) is not None:
                ids = model.text.encode([document])[0][:LENGTH]
                found += [ids] if len(ids) > 1 else []
        return found

    @staticmethod
    def note(step: EditStep, told: dict[str, Any]) -> None:
        """Tell the batch what learning took."""
        step.targets = replace(step.targets, **told)


def spread(matrix: Matrix) -> float:
    """Return the root mean square of a matrix's entries."""
    return matrix.weight.detach().float().square().mean().sqrt().item()


def observed(model: LanguageModel, rows: Sequence[Sequence[int]], layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the inputs and outputs of a layer's matrix without a memory, (tokens, size), and each token's row."""
    batch = model.text.pad([Row(tuple(ids), 0) for ids in rows], model.device)
    with model.unedited():
        [(keys, outputs)] = model.observe(batch, [model.architecture.matrix(layer)], stop=layer + 1)
    real = batch.mask.bool()
    wide = model.wide_dtype
    return keys[real].to(wide), outputs[real].to(wide), real.nonzero()[:, 0]
