"""The network of a run as numbers, from its configuration alone: no weight is read."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lke_lightning.edits import EditError
from lke_lightning.model.architecture import Architecture, matrix_shape
from lke_lightning.model.language_model import resolve


@dataclass(frozen=True)
class Shape:
    """Sizes of a network. Bytes are those of the dtype it runs in."""

    config: Any
    """Its transformers configuration."""
    dtype: torch.dtype
    blocks: int
    layers: list[int]
    """Edited ones, ascending."""
    matrix: str
    """Path of the edited matrix inside a block."""
    d_key: int
    d_out: int
    vocabulary: int
    weights_bytes: int
    block_bytes: int
    """Weights of one block."""
    block_parameters: int
    """Entries of the matrices of one block; a forward does two operations with each of them for every token."""

    @property
    def above(self) -> int:
        """Count the blocks above the target layer."""
        return self.blocks - 1 - self.layers[-1]

    @property
    def one_block_bytes(self) -> int:
        """Weights of the network that a machine is measured with: two blocks, everything around them."""
        return self.weights_bytes - (self.blocks - 2) * self.block_bytes


def read_shape(
    pretrained: str, dtype: torch.dtype, layers: list[int] | None, matrix: str | None, trust_remote_code: bool = False
) -> Shape:
    """Find the sizes of a network from its configuration, on no device at all.

    Args:
        pretrained: a folder, a hub name or `demo`.
        dtype: dtype in which the network will run.
        layers: layers to edit; `None`: those that the configuration names as `edit_layers`.
        matrix: path of the edited matrix inside a block, for architectures that are not recognised.
        trust_remote_code: run code that comes with the model.

    Raises:
        EditError: there is no configuration, or such a network cannot be edited.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(resolve(pretrained), trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise EditError(f"cannot read the configuration of {pretrained!r}: {error}") from error
    with torch.device("meta"):
        network = from_config(config, dtype, trust_remote_code)
    architecture = Architecture.of(network, matrix)
    chosen = list(layers or getattr(config, "edit_layers", None) or [])
    architecture.check_layers(chosen)
    d_out, d_key = matrix_shape(architecture.matrix(chosen[0]))
    block = architecture.blocks[chosen[-1]]
    return Shape(
        config,
        dtype,
        len(architecture.blocks),
        chosen,
        architecture.matrix_name,
        d_key,
        d_out,
        network.get_output_embeddings().weight.shape[0],
        _bytes(network),
        _bytes(block),
        sum(weight.numel() for weight in block.parameters() if weight.dim() == 2),
    )


def from_config(config: Any, dtype: torch.dtype, trust_remote_code: bool = False) -> nn.Module:
    """Make the network of a configuration, with weights as the present device and context give them."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code).eval()


def shallow(config: Any, blocks: int) -> Any:
    """Copy a configuration and leave only its first blocks."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:blocks]
    text.num_hidden_layers = blocks
    return config


def _bytes(module: nn.Module) -> int:
    return sum(weight.nbytes for weight in module.parameters())
