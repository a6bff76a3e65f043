"""A causal language model as the stages see it: network, tokens, places to edit, and ways to run parts of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lke_lightning.edits import EditError
from lke_lightning.model import gguf
from lke_lightning.model.activations import (
    before_head,
    capture,
    in_rows,
    into_head,
    is_changed_behind,
    only_blocks,
)
from lke_lightning.model.architecture import Architecture
from lke_lightning.model.beside import Beside
from lke_lightning.model.cache import Padded
from lke_lightning.model.refusals import check_complete, check_numbers, check_vocabulary, check_whole, why
from lke_lightning.model.targets import Site
from lke_lightning.model.tokens import TextEncoder
from lke_lightning.model.weights import EditedWeight
from lke_lightning.progress import track, work

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEMO = "demo"
"""The name under which the model that comes with the package is loaded."""


def resolve(pretrained: str) -> str:
    """Turn the name of the embedded model into its folder; other names stay as they are."""
    return str(Path(__file__).parents[1] / "demo" / "model") if pretrained == DEMO else pretrained


def located(pretrained: str) -> tuple[str, dict[str, str]]:
    """Return what transformers' `from_pretrained` takes for the name of a model; see `gguf.located`."""
    return gguf.located(resolve(pretrained))


def load(pretrained: str, dtype: str = "float32", trust_remote_code: bool = False) -> tuple[PreTrainedModel, Any]:
    """Load a causal language model and its tokenizer.

    Args:
        pretrained: a folder, a hub name, a GGUF file in either, or `"demo"` for the model that comes with the package.
        dtype: dtype of the network, such as `"float32"` or `"bfloat16"`; that of a GGUF file's weights is given up.
        trust_remote_code: run code that comes with the checkpoint.

    Raises:
        EditError: there is no such model, it cannot be read, or some of its weights are not there.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    where, file = located(pretrained)
    options = {"trust_remote_code": trust_remote_code, **file}
    whole = {"dtype": getattr(torch, dtype), "output_loading_info": True, **(gguf.dequantised() if file else {})}
    try:
        with work(f"Loading {pretrained}"), gguf.counted() if file else nullcontext():
            tokenizer = AutoTokenizer.from_pretrained(where, **options)
            loaded: Any = AutoModelForCausalLM.from_pretrained(where, **options, **whole)
    except Exception as error:  # a dozen kinds of transformers, safetensors, the hub's client, pickle and struct
        reason = gguf.why(pretrained, where, file["gguf_file"], error) if file else why(where, error)
        raise EditError(f"cannot load a causal language model from {pretrained!r}: {reason}") from error
    network, report = loaded
    if file:
        gguf.forget_blocks(network)
        network.config.name_or_path = pretrained  # not its folder, which may hold others
    check_complete(report, pretrained)
    return network.eval(), tokenizer


def content_hash(network: nn.Module) -> str:
    """Hash the names, dtypes, shapes and bytes of all weights (sha256, 16 hex digits), one weight at a time."""
    digest = hashlib.sha256()
    for name, weight in track(sorted(network.state_dict().items()), "Hashing the weights"):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        for part in _plain_tensors(weight.detach()):
            digest.update(part.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _plain_tensors(weight: Tensor) -> Iterator[Tensor]:
    """Yield the tensors that hold a weight: itself, or what a quantised one is made of."""
    if not hasattr(weight, "__tensor_flatten__"):
        yield weight
        return
    for name in weight.__tensor_flatten__()[0]:
        yield from _plain_tensors(getattr(weight, name))


@torch.no_grad()
def _check_causal(network: PreTrainedModel, architecture: Architecture) -> None:
    """Raise `EditError` where a token sees what comes after it, by what a block makes of two texts that end unlike."""
    ids = torch.tensor([[0, 1], [0, 2]], device=network.device)
    nowhere = ids.new_zeros(0)
    with (
        only_blocks(network, architecture, 0, 1),
        before_head(network, nowhere, nowhere),
        capture(architecture.blocks[0]) as block,
    ):
        network(input_ids=ids, use_cache=False)
    one, other = in_rows(block.output, 2)
    before, last = (one - other).abs().amax(-1).tolist()
    rounding = 8 * torch.finfo(one.dtype).eps * one.abs().max().item()
    if before > 1e-3 * last + rounding:
        raise EditError(
            f"{type(network).__name__} is an encoder, in which tokens see what comes after them: only decoder-only "
            "causal models can be edited"
        )


def _check_alone(network: nn.Module) -> None:
    """Raise `EditError` where edits stand beside a network already: its weights do not tell of them."""
    hooks = [hook for module in network.modules() for hook in module._forward_hooks.values()]
    for owner in (getattr(hook, "__self__", None) for hook in hooks):
        if isinstance(owner, Beside) and not owner.is_empty:
            raise EditError(
                f"a {type(owner).__name__} with edits stands beside this model: go on with the EditedModel that made "
                "them, or revert it first"
            )


class LanguageModel(nn.Module):
    """A network with its tokenizer and the weights that may be edited.

    Args:
        network: a transformers causal language model; its parameters are frozen, only `edited` changes them.
        tokenizer: its tokenizer.
        layers: the layers whose MLP output matrix is edited, ascending; the last one is the target layer.
        matrix: path of that matrix inside a block, for architectures that are not recognised.
        chat: ask prompts as a user's message through the tokenizer's chat template; see `TextEncoder`.
        system: system prompt in front of that message.

    Raises:
        EditError: the model cannot be edited, with the reason; the architecture is not recognised; the layers do not
            exist; a chat is asked for and the tokenizer has no chat template.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        tokenizer: Any,
        layers: Sequence[int],
        matrix: str | None = None,
        chat: bool = False,
        system: str | None = None,
    ) -> None:
        super().__init__()
        check_whole(network)
        _check_alone(network)
        architecture = Architecture.of(network, matrix)
        architecture.check_layers(list(layers))
        architecture.check_matrices(list(layers))
        check_vocabulary(network, tokenizer)
        check_numbers(network)
        _check_causal(network.eval(), architecture)
        self.site: Site = "matrix" if is_changed_behind(network, architecture) else "block"
        """Where targets live best: at the matrix where a norm stands between it and the residual stream, which would
        change what is written on its way to the block's output; else at the block."""
        self.base_hash = content_hash(network)
        self.network = network.requires_grad_(False).eval()
        self.text = TextEncoder(tokenizer, chat, system, architecture.context)
        self._architecture = (architecture,)  # holds modules of the network: not to be registered a second time
        self.layers = list(layers)
        self.edited: Any = nn.ModuleDict({str(layer): EditedWeight(architecture.matrix(layer)) for layer in layers})
        """The `EditedWeight` of each layer, by its number as text."""
        self.beside: Any = nn.ModuleDict()
        """Modules that change what the network does without changing its weights, by name."""

    @property
    def architecture(self) -> Architecture:
        """The places in the network."""
        return self._architecture[0]

    @property
    def target_layer(self) -> int:
        """The last edited layer, where target activations live."""
        return self.layers[-1]

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self.network.device

    @property
    def wide_dtype(self) -> torch.dtype:
        """float32, or float64 for a float64 network: the dtype of targets, keys and deltas."""
        return torch.promote_types(self.network.dtype, torch.float32)

    @property
    def context_length(self) -> int | None:
        """How many tokens the network has positions for; `None`: its configuration names no bound."""
        return self.architecture.context

    def describe(self) -> str:
        """Say in one line what is edited: the model, its dtype, the layers, the matrix and how many parameters."""
        weights = [self.weight(layer) for layer in self.layers]
        d_out, d_key = weights[0].delta.shape
        edited = sum(weight.delta.numel() for weight in weights)
        whole = sum(weight.numel() for weight in self.network.parameters())
        asked = f", prompts through the chat template{' with a system prompt' if self.text.system else ''}"
        return (
            f"Editing {type(self.network).__name__} in {str(self.network.dtype).removeprefix('torch.')}, layers "
            f"{', '.join(map(str, self.layers))}: {self.architecture.matrix_name} ({d_out} x {d_key}), {edited:,} of "
            f"{whole:,} parameters, their change in {str(weights[0].delta.dtype).removeprefix('torch.')}"
            f"{asked if self.text.chat else ''}"
        )

    def weight(self, layer: int) -> EditedWeight:
        """Return the edited weight of a layer."""
        return self.edited[str(layer)]

    def attach(self, name: str, module: Beside) -> None:
        """Let a module stand beside the network, in the place of one of the same name.

        Raises:
            EditError: it cannot stand beside this model.
        """
        if name in self.beside:
            self.detach(name)
        module.to(self.device)
        module.install(self)
        self.beside[name] = module

    def detach(self, name: str) -> None:
        """Take a module away, and its hooks out of the network."""
        for hook in self.beside.pop(name).hooks:
            hook.remove()

    @property
    def is_token_wise(self) -> bool:
        """Whether the beginnings of texts can be run once and followed by others: all modules beside it allow that."""
        return all(module.token_wise for module in self.beside.values())

    @property
    def answering(self) -> Beside | None:
        """The module that answers questions itself (`Beside.answer`); `None`: the network does."""
        return next((module for module in self.beside.values() if module.is_on and not module.is_scored), None)

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """Let the model be what it was before the first edit, bit for bit; afterwards it is edited as it was."""
        with ExitStack() as stack:
            for weight in self.edited.values():
                if weight.delta.any():
                    stack.enter_context(weight.unedited())
            for module in self.beside.values():
                stack.enter_context(module.switched_off())
            yield

    def train(self, mode: bool = True) -> LanguageModel:
        """Stay in evaluation mode: dropout has no place in editing."""
        return super().train(False)

    def logits(self, batch: Padded, rows: Tensor, positions: Tensor) -> Tensor:
        """Compute logits (reads, vocabulary) at (row, position); see `states`."""
        return self.head(self.states(batch, rows, positions))

    def states(
        self, batch: Padded, rows: Tensor, positions: Tensor, start: int = 0, hidden: Tensor | None = None
    ) -> Tensor:
        """Compute what the head sees, (reads, hidden size), at (row, position), running blocks from `start` on.

        Args:
            batch: the rows.
            rows: (reads,) int64, which row.
            positions: (reads,) int64, which position in it, behind its prefix; the head predicts the next token there.
            start: first block to run; `hidden` (rows, length, hidden size) is its input where it is above 0.
            hidden: see `start`.
        """
        count = len(self.architecture.blocks)
        if batch.offsets is not None:
            positions = positions + batch.offsets[rows]
        with (
            only_blocks(self.network, self.architecture, start, count, hidden),
            before_head(self.network, rows, positions) as seen,
        ):
            self._run(batch)
        return seen.output

    def head(self, states: Tensor) -> Tensor:
        """Turn what the head sees (reads, hidden size) into logits (reads, vocabulary)."""
        count = len(self.architecture.blocks)
        one_token = torch.zeros((1, 1), dtype=torch.long, device=states.device)
        with only_blocks(self.network, self.architecture, count, count), into_head(self.network, states):
            return self.network(input_ids=one_token, use_cache=False).logits[0]

    @torch.no_grad()
    def observe(
        self,
        batch: Padded,
        modules: Sequence[nn.Module],
        stop: int,
        start: int = 0,
        hidden: Tensor | None = None,
    ) -> list[tuple[Tensor, Tensor]]:
        """Run blocks `start` to `stop - 1` and return (input, output) of each module, each (rows, length, size)."""
        nowhere = torch.zeros(0, dtype=torch.long, device=batch.ids.device)
        with ExitStack() as stack:
            stack.enter_context(only_blocks(self.network, self.architecture, start, stop, hidden))
            stack.enter_context(before_head(self.network, nowhere, nowhere))
            taps = [stack.enter_context(capture(module)) for module in modules]
            self._run(batch)
        rows = len(batch)
        return [(in_rows(tap.input, rows), in_rows(tap.output, rows)) for tap in taps]

    def _run(self, batch: Padded) -> Any:
        # Padding on the right needs no mask: no real token sees what comes after it, and no row is masked throughout,
        # which some attention implementations answer with NaN.
        attention = torch.ones_like(batch.mask)
        continued: dict[str, Any] = {}
        if batch.past is not None:
            attention = torch.cat([batch.past.mask, attention], dim=1)
            continued = {"past_key_values": batch.past, "position_ids": batch.positions}
        return self.network(input_ids=batch.ids, attention_mask=attention, use_cache=False, **continued)
