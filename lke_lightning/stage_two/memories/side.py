"""What side memories have in common: a module at one matrix, and a stage two that fills it."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lke_lightning.edits import EditRequest
from lke_lightning.model.beside import Beside
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.units import Expansion
from lke_lightning.stage_two.memories.hooks import each_token
from lke_lightning.stage_two.placement import LastLayer
from lke_lightning.stage_two.register import UNDONE, Register
from lke_lightning.stage_two.stage import StageTwo

NAME = "memory"
"""What a side memory is called among the modules beside a network."""

Rule = Callable[[Tensor, Tensor], Tensor]
"""Makes what a matrix is to return of its keys (..., d_key) and its outputs (..., d_out)."""


class SideModule(Beside):
    """Changes what the MLP output matrix of one layer returns, by what its input is.

    Args:
        layer: number of the layer.
    """

    attachment: ClassVar[ModuleType] = each_token
    """Attaches it to a model of transformers, with `reader`, where it is exported."""
    reader: ClassVar[Callable[..., Tensor]]
    """Reads it: a function that needs torch and transformers alone."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.settings, self.layer = {"layer": layer}, layer

    def install(self, model: LanguageModel) -> None:
        """Hook the matrix, and make room for edits."""
        matrix = model.architecture.matrix(self.layer)
        self.path = next(name for name, module in model.network.named_modules() if module is matrix)
        for name, empty in self.begin(model).items():
            self.register_buffer(name, empty.to(model.device))
        self.hooks.append(matrix.register_forward_hook(self._changed))

    @abstractmethod
    def begin(self, model: LanguageModel) -> dict[str, Tensor]:
        """Return its buffers as they are without edits."""

    @abstractmethod
    def rewrite(self, keys: Tensor, output: Tensor) -> Tensor:
        """Return what the matrix is to return; see `Rule`."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return what `reader` needs, and no more."""

    def exported(self) -> tuple[dict[str, Tensor], dict[str, Any], str]:
        """Return its tensors, the matrix's name in the network, and how it is attached and read."""
        program = f"{inspect.getsource(self.attachment)}\n\n{inspect.getsource(self.reader)}"
        return self.tensors(), {"matrix": self.path}, program

    @contextmanager
    def read_by(self, rule: Rule) -> Iterator[None]:
        """Let another rule stand in the place of `rewrite`, also while it is empty."""
        self._rule = rule
        try:
            yield
        finally:
            del self._rule

    def _changed(self, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        rule: Rule | None = getattr(self, "_rule", None)
        if not self.is_on or (rule is None and self.is_empty):
            return output
        return (rule or self.rewrite)(args[0], output)

    def clear(self) -> None:
        """Forget all edits."""
        self.restore({name: buffer[:0] for name, buffer in self.named_buffers()})

    def restore(self, buffers: dict[str, Tensor]) -> None:
        """Put buffers in the place of its own."""
        for name, buffer in buffers.items():
            setattr(self, name, buffer)


@dataclass(frozen=True)
class Mark:
    """A moment of a run that it can return to."""

    buffers: dict[str, Tensor] | None
    """Of the module; `None`: there was none yet."""
    memory: dict[int, dict[str, Tensor]]
    edits: int
    """How many edits had been made."""


class SideMemory(StageTwo):
    """Remembers edits in a module beside the network, at the last of the configured layers; no weight changes."""

    placement = LastLayer()

    def __init__(self) -> None:
        self.memory = {}

    @abstractmethod
    def made(self, model: LanguageModel) -> SideModule:
        """Make the module, without edits."""

    @staticmethod
    def module(model: LanguageModel) -> Any:
        """Return the module, which `prepare` has attached."""
        return model.beside[NAME]

    def prepare(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest] = (),
        contexts: Sequence[str] = ("{}",),
        expansion: Expansion | None = None,
    ) -> None:
        """Attach the module, unless a checkpoint brought it."""
        if NAME not in model.beside:
            model.attach(NAME, self.made(model))
        self.memory = {layer: self.memory.get(layer, {}) for layer in model.layers}

    def mark(self, model: LanguageModel, register: Register) -> Mark:
        """Mark the present state, so that `roll_back` can return to it."""
        if NAME not in model.beside:
            return Mark(None, {}, len(register))
        buffers = {name: buffer.clone() for name, buffer in self.module(model).named_buffers()}
        return Mark(buffers, {layer: dict(parts) for layer, parts in self.memory.items()}, len(register))

    @torch.no_grad()
    def roll_back(self, model: LanguageModel, register: Register, mark: Mark) -> None:
        """Return to a moment of the run, bit for bit; later edits are forgotten."""
        if mark.buffers is not None:
            self.module(model).restore({name: buffer.clone() for name, buffer in mark.buffers.items()})
        elif NAME in model.beside:
            model.detach(NAME)
        self.memory = {layer: dict(parts) for layer, parts in mark.memory.items()}
        register.shorten(mark.edits)

    def revert(self, model: LanguageModel, register: Register) -> None:
        """Undo all edits: the model is the unedited one, bit for bit."""
        self.module(model).clear()
        register.deactivate(register.holding, UNDONE)
