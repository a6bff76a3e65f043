"""Modules that stand beside the network and change what it does, without changing its weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lke_lightning.edits import EditError

Generate = Callable[[Sequence[str], int], list[str]]
"""Continues texts by at most so many tokens, up to a line break; the network alone does it."""


class Beside(nn.Module, ABC):
    """A module that a stage two lets stand beside the network (`LanguageModel.attach`).

    Its buffers are saved in checkpoints with the change of the weights, under whatever shape they have by then; it is
    made again from its class and `settings` wherever a checkpoint is opened, before they are loaded.
    """

    settings: dict[str, Any]
    """The plain values it was made with, by argument."""
    is_on: bool = True
    """Whether it has any effect; `LanguageModel.unedited` switches it off."""
    token_wise: ClassVar[bool] = True
    """Whether what it does at a token depends on that token's own activations alone, and not on tokens before it.

    Where it does, it is shown whole texts: nothing is run once for several of them (`Prefixes`)."""
    is_scored: ClassVar[bool] = True
    """Whether likelihoods of given answers tell what the edited model answers. Otherwise `answer` gives the answers."""

    def __init__(self) -> None:
        super().__init__()
        self.hooks: list[RemovableHandle] = []
        """Those that `install` put into the network; `LanguageModel.detach` takes them out."""

    @abstractmethod
    def install(self, model: Any) -> None:
        """Put `hooks` into a `LanguageModel`; without edits, and while it is off, they change nothing, bit for bit.

        Raises:
            EditError: it cannot stand beside this model.
        """

    @property
    @abstractmethod
    def is_empty(self) -> bool:
        """Whether it holds no edit, and changes nothing."""

    @abstractmethod
    def clear(self) -> None:
        """Forget all edits: what the network does is what it did without it, bit for bit."""

    def exported(self) -> tuple[dict[str, Tensor], dict[str, Any], str]:
        """Return what `export --format module` writes: tensors, plain values, and the text of a Python file for them.

        Raises:
            EditError: there is no such form of it.
        """
        raise EditError(f"a {type(self).__name__} cannot be exported: there is no form of it without this package")

    @property
    def size(self) -> int:
        """Bytes of what it holds."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def answer(self, prompts: Sequence[str], new_tokens: int, generate: Generate) -> list[str]:
        """Answer questions, where `is_scored` is not true.

        Args:
            prompts: the questions.
            new_tokens: how long an answer may become.
            generate: see `Generate`.
        """
        return generate(prompts, new_tokens)

    def is_of(self, units: Sequence[int]) -> bool:
        """Whether it can be that of a run whose edits have so many units each; asked when a checkpoint was loaded."""
        return True

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Let it have no effect."""
        was, self.is_on = self.is_on, False
        try:
            yield
        finally:
            self.is_on = was

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, buffer in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if buffer is not None and saved is not None and saved.shape[1:] == buffer.shape[1:]:  # else it is refused
                setattr(self, name, saved.to(buffer))
        super()._load_from_state_dict(state_dict, prefix, *args)
