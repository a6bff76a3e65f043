"""Which networks cannot be edited, and why: decided from structure and configuration, never from a name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lke_lightning.edits import EditError

ATTENTION = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Kinds of layers whose past is keys and values of tokens, which can be cached and continued anywhere."""


def check_whole(network: nn.Module) -> None:
    """Raise `EditError` where a network is spread over devices or not in memory at all."""
    places = {str(place) for place in (getattr(network, "hf_device_map", None) or {}).values()}
    if len(places) > 1 or places & {"disk", "meta"}:
        raise EditError(
            f"this model is spread over {', '.join(sorted(places))} by device_map: its hooks move tensors behind the "
            "trainer's back. Load it without device_map; --trainer.accelerator and .devices choose where it runs"
        )
    if any(weight.is_meta for weight in network.parameters()):
        raise EditError("this model has weights that are not loaded (on the meta device): load them first")


def check_kind(network: nn.Module) -> None:
    """Raise `EditError` where a network is of a kind that locate-then-edit methods do not apply to."""
    config = network.config.get_text_config()
    if getattr(network.config, "is_encoder_decoder", False) or getattr(config, "is_encoder_decoder", False):
        raise EditError("this is an encoder-decoder model: only decoder-only causal models can be edited")
    others = set(getattr(config, "layer_types", None) or ()) - ATTENTION
    if getattr(network, "_is_stateful", False) or others:
        named = f" ({', '.join(sorted(others))})" if others else ""
        raise EditError(
            f"this model keeps a recurrent state{named}: what comes before a token cannot be computed once and "
            "continued, as editing needs. Only models whose layers all attend can be edited"
        )
    if getattr(config, "num_kv_shared_layers", 0):
        raise EditError(
            f"the last {config.num_kv_shared_layers} layers of this model attend to keys and values of earlier ones: "
            "they cannot be run without those, as editing needs"
        )


def check_block(block: nn.Module, what: str) -> None:
    """Raise `EditError` where a block chooses among experts: no single matrix holds what it knows of a token."""
    experts = [name for name, _ in block.named_modules() if "expert" in name.rsplit(".", 1)[-1]]
    if experts:
        raise EditError(
            f"{what} is a mixture of experts ({experts[0]}): a token's key reaches only those that its router picks, "
            "and the router's choice is no part of the least-squares problem. Only dense layers can be edited"
        )


def check_matrix(matrix: Any, name: str) -> None:
    """Raise `EditError` unless a matrix has a plain weight of floating point that a change can be added to."""
    weight = getattr(matrix, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2:
        raise EditError(f"{name} has no weight of two dimensions: name another with --model.matrix")
    # quantised weights are integers, or floating to the eye only: subclasses that hold integers (torchao)
    if not weight.is_floating_point() or type(weight) not in (torch.Tensor, nn.Parameter) or weight.itemsize < 2:
        raise EditError(
            f"{name} is quantised ({type(weight.data).__name__}, {weight.dtype}): its steps are larger than edits. "
            "Load the model unquantised, or quantise all but the edited matrices (name them in the quantisation "
            "configuration's modules_to_not_convert)"
        )
