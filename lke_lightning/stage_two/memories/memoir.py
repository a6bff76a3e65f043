"""MEMOIR: a side matrix of which each edit has columns of its own kind of prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lke_lightning.distributed import Team
from lke_lightning.edits import check_number
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.stage_two.memories.running import Lessons, RunningModule, TrainedMemory, learn, observed
from lke_lightning.stage_two.register import UNDONE, Register
from lke_lightning.stage_two.room import Space
from lke_lightning.stage_two.solvers import EditSystem
from lke_lightning.stage_two.stage import Again
from lke_lightning.step import EditStep


def read(memory: dict, running: Any, keys: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Add what the matrix makes of keys under the stored mask that is nearest to a token's, if that is near enough."""
    shape = (*running.real.shape[:2], -1)
    asked = keys.view(shape).to(memory["matrix"])
    means = running.means(asked) - memory["background"]
    largest = means.abs().topk(memory["top_k"], dim=-1).indices
    masks = torch.zeros_like(means).scatter(-1, memory["permutation"][largest], 1.0)
    shares = masks @ memory["masks"].to(masks).T / memory["top_k"]
    share, nearest = shares.masked_fill(~memory["live"], -1.0).max(-1, keepdim=True)
    change = (asked * memory["masks"][nearest.squeeze(-1)]) @ memory["matrix"].T
    changed = (output.view(shape).to(change) + change).to(output.dtype)
    return torch.where(share >= memory["tau"], changed, output.view(shape)).view(output.shape)


class MaskedMatrix(RunningModule):
    """A matrix of one layer, and a mask of its columns for each edit, by the numbers of the run's register.

    Args:
        layer: number of the layer.
        top_k: columns of a mask.
        tau: the share of a mask that a token's own has to have of it.
        seed: of the permutation.
    """

    reader = staticmethod(read)
    matrix: Tensor
    """(d_out, d_key), float32 or better; zero without edits."""
    masks: Tensor
    """(edits, d_key) bool."""
    live: Tensor
    """Which are of edits that hold, (edits,) bool."""
    background: Tensor
    """Mean key on ordinary text, (d_key,)."""
    permutation: Tensor
    """(d_key,) int64."""

    def __init__(self, layer: int, top_k: int, tau: float, seed: int) -> None:
        super().__init__(layer)
        self.settings |= {"top_k": top_k, "tau": tau, "seed": seed}
        self.top_k, self.tau, self.seed = top_k, tau, seed

    def begin(self, model: LanguageModel) -> dict[str, Tensor]:
        """Return no masks, and a background still to be found."""
        matrix = torch.zeros_like(model.weight(self.layer).delta)
        size = matrix.shape[1]
        masks = torch.zeros(0, size, dtype=torch.bool)
        permutation = torch.randperm(size, generator=torch.Generator().manual_seed(self.seed))
        return {
            "matrix": matrix, "masks": masks, "live": masks[:, 0], "background": torch.zeros_like(matrix[0]),
            "permutation": permutation,
        }  # fmt: skip

    @property
    def is_empty(self) -> bool:
        """Whether no edit holds."""
        return not self.live.any()

    def is_of(self, units: Sequence[int]) -> bool:
        """See `Beside.is_of`."""
        return len(self.masks) == len(self.live) == len(units)

    def clear(self) -> None:
        """Forget all edits."""
        self.restore({"matrix": torch.zeros_like(self.matrix), "masks": self.masks[:0], "live": self.live[:0]})

    def rewrite(self, keys: Tensor, output: Tensor) -> Tensor:
        """Add what the nearest mask lets through."""
        buffers = {"matrix": self.matrix, "masks": self.masks, "live": self.live, "background": self.background}
        plain = {"permutation": self.permutation, "top_k": self.top_k, "tau": self.tau}
        return read({**buffers, **plain}, self.running, keys, output)

    def mask(self, means: Tensor) -> Tensor:
        """Return the masks of mean keys (..., d_key), bool."""
        largest = (means - self.background).abs().topk(self.top_k, dim=-1).indices
        return torch.zeros_like(means, dtype=torch.bool).scatter(-1, self.permutation[largest], True)

    def tensors(self) -> dict[str, Tensor]:
        """Return the matrix, and the masks of edits that hold."""
        kept = {"masks": self.masks[self.live], "live": self.live[self.live]}
        return {"matrix": self.matrix, "background": self.background, "permutation": self.permutation, **kept}

    def exported(self) -> tuple[dict[str, Tensor], dict[str, Any], str]:
        """Return the numbers, too."""
        tensors, about, program = super().exported()
        return tensors, {**about, "top_k": self.top_k, "tau": self.tau}, program


class Memoir(TrainedMemory):
    """One matrix beside another, of which an edit uses the columns that its prompt picks (MEMOIR, arXiv 2506.07899).

    With k the matrix's input at a token and u the mean of k over the row's tokens so far, less its mean on ordinary
    text, M(u) marks the largest `top_k` entries of |u|, put in a fixed random order. The matrix returns W k + D (M k),
    where M is the stored mask that shares most with M(u), if that is at least `tau` of its entries; else W k. An edit
    is learnt by the loss of its answer, with the mask of its prompt, where it would be read; so only its columns of D
    change.

    Args:
        share: columns of a mask, as a share of all.
        top_k: their number, as published; it counts where it is given.
        tau: see above.
        relative_lr: rate of Adam, as a share of the root mean square of W's entries.
        lr: rate of plain gradient descent, as published; it counts where it is given.
        max_steps: forward passes at most.
        enough: loss at which an edit is learnt.
        corpus: ordinary text, as for `KeyStatistics`.
        seed: of the order.
    """

    def __init__(
        self,
        share: float = 0.285,
        top_k: int | None = None,
        tau: float = 0.6,
        relative_lr: float = 0.3,
        lr: float | None = None,
        max_steps: int = 30,
        enough: float = 0.05,
        corpus: str | list[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_number("stage_two.share", share, above=0, below=1)
        check_number("stage_two.top_k", 1 if top_k is None else top_k, at_least=1)
        check_number("stage_two.tau", tau, above=0, at_most=1)
        check_number("stage_two.relative_lr", relative_lr, above=0)
        check_number("stage_two.lr", 1 if lr is None else lr, above=0)
        check_number("stage_two.max_steps", max_steps, at_least=1)
        check_number("stage_two.enough", enough, at_least=0)
        self.share, self.top_k, self.tau, self.seed, self.corpus = share, top_k, tau, seed, corpus
        self.relative_lr, self.lr, self.max_steps, self.enough = relative_lr, lr, max_steps, enough

    def spaces(self, shapes: Sequence[tuple[int, int]], edits: int, wide: int, on_gpu: bool) -> list[Space]:
        """Return the matrix and a mask for each edit, and what learning needs."""
        size = wide * sum(d_out * d_key for d_out, d_key in shapes)
        masks = edits * sum(d_key for _, d_key in shapes)
        return [
            Space(f"side matrix, masks of {edits:,} edits", size + masks, saved=size + masks),
            Space("learning: gradient and moments", 3 * size),
        ]

    def made(self, model: LanguageModel) -> MaskedMatrix:
        """Make the module."""
        size = model.weight(model.layers[-1]).delta.shape[1]
        top_k = round(self.share * size) if self.top_k is None else self.top_k
        check_number("stage_two.top_k", top_k, at_least=1, below=size)
        return MaskedMatrix(model.layers[-1], top_k, self.tau, self.seed)

    def prepare(self, model: LanguageModel, *args: Any, **kwargs: Any) -> None:
        """Attach the module, and find the mean of keys on ordinary text: of texts, each the mean of its tokens."""
        is_new = not model.beside
        super().prepare(model, *args, **kwargs)
        [layer] = model.layers
        if is_new:
            keys, _, rows = observed(model, self.ordinary(model), layer)
            counts = rows.bincount().to(keys).unsqueeze(1)
            sums = keys.new_zeros(len(counts), keys.shape[1]).index_add(0, rows, keys)
            self.module(model).background = (sums / counts).mean(0)

    def write(
        self, model: LanguageModel, step: EditStep, register: Register, again: Again | None = None
    ) -> dict[int, EditSystem]:
        """Learn a batch, and enter it into the register; edits whose facts it states anew are read no more.

        Raises:
            EditError: what was learnt is not finite; nothing is changed then.
        """
        if not step.requests:
            return {}
        [layer], module = model.layers, self.module(model)
        lessons = Lessons.build(model, step, layer)
        out = register.numbers_of(step.requests)
        means = lessons.means(lessons.keys)
        masks = module.mask(means[lessons.firsts, lessons.prompts - 1])
        own = masks[lessons.owners].unsqueeze(1)
        shares = (module.mask(means) & own).sum(-1) / module.top_k
        used = lessons.keys * (own & (shares >= self.tau).unsqueeze(-1))

        def losses(matrix: Tensor) -> tuple[Tensor, Tensor]:
            change = used @ matrix.T
            return lessons.nll(lambda _, output: (output.to(change) + change.view(output.shape)).to(output.dtype))

        matrix, told = learn(module.matrix, losses, self.rate(model), self.lr is not None, self.max_steps, self.enough)
        module.matrix = Team.of(model.network).first_tensor(matrix)
        module.masks = torch.cat([module.masks, masks])
        module.live = torch.cat([module.live, torch.ones(len(masks), dtype=torch.bool, device=masks.device)])
        module.live[out] = False
        self.memory[layer] = {**self.memory[layer], "overlap": (module.masks.sum(0) > 1).any().cpu()}
        self.note(step, told)
        register.enter(step.requests, step.targets.groups, step.targets.units)
        return {}

    def revert(self, model: LanguageModel, register: Register) -> None:
        """Undo all edits: the model is the unedited one, bit for bit; their masks stay, and which of them overlap."""
        if self.why_not_exact() is None:
            self.move(model, register, register.holding, [])
        else:
            module = self.module(model)
            module.matrix, module.live = torch.zeros_like(module.matrix), torch.zeros_like(module.live)
        register.deactivate(register.holding, UNDONE)

    def why_not_exact(self) -> str | None:
        """Return why not, where masks overlap."""
        if any(memory.get("overlap", False) for memory in self.memory.values()):
            return "masks of its edits overlap, and share columns of the matrix"
        return None

    def move(self, model: LanguageModel, register: Register, out: Sequence[int], back: Sequence[int]) -> None:
        """Set the columns of edits aside, and put those of others back."""
        self.check_exact_undo()
        module, [layer] = self.module(model), model.layers
        module.matrix = module.matrix.clone()
        kept = dict(self.memory[layer])
        for number in out:
            columns = module.masks[number]
            kept[f"undone {number}"] = module.matrix[:, columns].cpu()
            module.matrix[:, columns] = 0
        for number in back:
            if f"undone {number}" in kept:  # columns of an edit that was only replaced are still there
                module.matrix[:, module.masks[number]] = kept.pop(f"undone {number}").to(module.matrix)
        module.live[[*out, *back]] = torch.tensor([False] * len(out) + [True] * len(back), device=module.live.device)
        self.memory[layer] = kept
