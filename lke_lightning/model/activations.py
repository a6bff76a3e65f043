"""Read and change the activations of a network: beside `Beside.install`, the only place that registers hooks.

Everything is undone when its `with` block ends, whatever happened inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lke_lightning.model.architecture import Architecture

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Captured:
    """What a module last received and returned during a `capture` block."""

    input: Tensor
    output: Tensor


@contextmanager
def capture(module: nn.Module) -> Iterator[Captured]:
    """Keep the last first-argument and the last hidden state returned by a module."""
    captured = Captured()

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        captured.input = args[0] if args else kwargs["hidden_states"]
        hidden = output[0] if isinstance(output, tuple) else output
        captured.output = hidden.clone()  # parallel blocks (Falcon) add the attention into the MLP's output, in place

    handle = module.register_forward_hook(keep, with_kwargs=True)
    try:
        yield captured
    finally:
        handle.remove()


def in_rows(states: Tensor, rows: int) -> Tensor:
    """View states as (rows, length, size), also where a block hands its MLP all tokens in one row, as OPT's does."""
    return states if states.dim() == 3 else states.unflatten(0, (rows, -1))


@contextmanager
def change_output(module: nn.Module, change: Callable[[Tensor], Tensor], rows: int = 1) -> Iterator[None]:
    """Apply `change` to the tensor that a module returns, viewed as (rows, length, size).

    Args:
        module: a block, or an edited matrix.
        change: takes and returns (rows, length, size).
        rows: how many rows run; matters only where the module sees all tokens in one row.
    """

    def changed(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output  # GPT-J's blocks return tuples
        new = change(in_rows(hidden, rows)).view(hidden.shape)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = module.register_forward_hook(changed)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def before_head(network: PreTrainedModel, rows: Tensor, positions: Tensor) -> Iterator[Captured]:
    """Capture the head's inputs at (row, position) as `output`, (reads, hidden size), and skip the head."""
    captured = Captured()

    def divert(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        captured.output = args[0][rows, positions]
        return (args[0][:, :0], *args[1:])

    handle = network.get_output_embeddings().register_forward_pre_hook(divert)
    try:
        yield captured
    finally:
        handle.remove()


@contextmanager
def into_head(network: PreTrainedModel, states: Tensor) -> Iterator[None]:
    """Let the head see `states` (reads, hidden size): logits come out as (1, reads, vocabulary).

    The model's own transforms of logits after the head (scaling, soft-capping) still apply.
    """
    handle = network.get_output_embeddings().register_forward_pre_hook(
        lambda _module, args: (states.unsqueeze(0), *args[1:])
    )
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def is_changed_behind(network: PreTrainedModel, architecture: Architecture) -> bool:
    """Tell whether blocks change what their MLP output matrix returns before they add it to the residual stream.

    Norms behind the MLP do (Gemma 2 and 3, OLMo 2 and 3). Found by what happens to a few tokens in the first block: a
    module is given the matrix's output as it is, and returns something else.
    """
    block, matrix = architecture.blocks[0], architecture.matrix(0)
    returned: list[Tensor] = []
    changed: list[nn.Module] = []

    def look(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if module is matrix:
            returned.append(output.flatten().clone())
        elif returned and args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            given, made = args[0].flatten(), output.flatten()
            if torch.equal(given, returned[-1]) and not torch.equal(made, given):
                changed.append(module)

    # several, because the embedding of one that fills gaps, often the first, may be zero, and so may all that follows
    embeddings: Any = network.get_input_embeddings()
    tokens = torch.linspace(0, len(embeddings.weight) - 1, 4, device=network.device).long()
    with only_blocks(network, architecture, 0, 1):  # which may run the network itself, so the hooks come later
        handles = [module.register_forward_hook(look) for module in block.modules()]
        try:
            network(input_ids=tokens.unsqueeze(0), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
    return bool(changed)


class _Bypass(nn.Module):
    """Stands in for a block: returns a given hidden state, or the one it receives, without computing.

    Attributes that the model reads from the block (such as `attention_type`) come from the block itself.
    """

    def __init__(self, block: nn.Module, returns_tuple: bool, hidden: Tensor | None) -> None:
        super().__init__()
        self.block = block
        self._returns_tuple = returns_tuple
        self._hidden = hidden

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor | tuple[Tensor]:
        hidden = hidden_states if self._hidden is None else self._hidden
        return (hidden,) if self._returns_tuple else hidden

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)


@contextmanager
def only_blocks(
    network: PreTrainedModel, architecture: Architecture, start: int, stop: int, hidden: Tensor | None = None
) -> Iterator[None]:
    """Run only blocks `start` to `stop - 1`; `hidden` is what block `start` receives (needed where start > 0)."""
    blocks = architecture.blocks
    returns_tuple = _returns_tuple(network, blocks) if start > 0 or stop < len(blocks) else False
    originals = list(blocks)
    try:
        for i, block in enumerate(originals):
            if not start <= i < stop:
                blocks[i] = _Bypass(block, returns_tuple, hidden if i == start - 1 else None)
        yield
    finally:
        for i, block in enumerate(originals):
            blocks[i] = block


@torch.no_grad()
def _returns_tuple(network: PreTrainedModel, blocks: nn.ModuleList) -> bool:
    """Return whether blocks return a tuple (GPT-J) or a tensor, by running one token once per network."""
    kind = type(blocks[0])
    if kind not in _RETURNS_TUPLE:
        outputs: list[Any] = []
        handle = blocks[0].register_forward_hook(lambda _module, _args, output: outputs.append(output))
        try:
            network(input_ids=torch.zeros((1, 1), dtype=torch.long, device=network.device), use_cache=False)
        finally:
            handle.remove()
        _RETURNS_TUPLE[kind] = isinstance(outputs[0], tuple)
    return _RETURNS_TUPLE[kind]


_RETURNS_TUPLE: dict[type, bool] = {}
"""A fact about each class of block, which no run can change."""
