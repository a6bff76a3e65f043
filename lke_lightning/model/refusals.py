"""Which models cannot be loaded or edited, and why: decided from structure and configuration, never from a name."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lke_lightning.edits import EditError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Kinds of layers whose past is keys and values of tokens, which can be cached and continued anywhere."""


def why(where: str, error: Exception) -> str:
    """Explain in a sentence why a model cannot be loaded.

    Args:
        where: a folder, or a hub name.
        error: what loading it raised.
    """
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    if not Path(where).is_dir():
        return f"neither a folder with a model nor a hub name that can be reached ({reason})"
    if not (Path(where) / "config.json").is_file():
        return "neither a folder with a model nor a hub name: the folder has no config.json"
    if isinstance(error, pickle.UnpicklingError):
        return "its weights are a pickle of more than tensors, which is not opened: convert them to safetensors"
    if "ignore_mismatched_sizes" in reason:
        return "the shapes of its weights do not match config.json"
    if "trust_remote_code" in str(error):
        return "it comes with code of its own: --model.trust_remote_code true runs it, if you trust its authors"
    return reason


def check_complete(report: Mapping[str, Any], name: str) -> None:
    """Raise `EditError` if weights are missing from the files, and therefore random.

    Args:
        report: `output_loading_info` of transformers; weights tied to others are not missing there.
        name: name of the model in the message.
    """
    missing = sorted(report["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise EditError(f"the files of {name!r} lack the weights {missing[0]}{more}: they would be random")


def check_numbers(network: nn.Module) -> None:
    """Raise `EditError` if a weight has non-finite entries."""
    for name, weight in network.named_parameters():
        is_plain = type(weight.data) is torch.Tensor and weight.is_floating_point() and weight.itemsize > 1
        if is_plain and weight.numel() and not all(bound.isfinite() for bound in weight.aminmax()):
            raise EditError(f"the weights {name} of this model have infinite or NaN entries")


def check_vocabulary(network: PreTrainedModel, tokenizer: Any) -> None:
    """Raise `EditError` if a tokenizer has tokens without an embedding in the network."""
    embeddings: Any = network.get_input_embeddings()
    highest, rows = max(tokenizer.get_vocab().values(), default=-1), embeddings.weight.shape[0]
    if highest >= rows:
        raise EditError(
            f"the tokenizer's ids go up to {highest}, but the model has only {rows} embeddings: use the "
            "tokenizer that belongs to it, or resize its embeddings (resize_token_embeddings)"
        )


def check_whole(network: nn.Module) -> None:
    """Raise `EditError` if a network is spread over devices or not in memory."""
    places = {str(place) for place in (getattr(network, "hf_device_map", None) or {}).values()}
    if len(places) > 1 or places & {"disk", "meta"}:
        raise EditError(
            f"this model is spread over {', '.join(sorted(places))} by device_map: its hooks move tensors behind the "
            "trainer's back. Load it without device_map; --trainer.accelerator and .devices choose where it runs"
        )
    if any(weight.is_meta for weight in network.parameters()):
        raise EditError("this model has weights that are not loaded (on the meta device): load them first")


def check_kind(network: PreTrainedModel) -> None:
    """Raise `EditError` if locate-then-edit methods do not apply to this kind of network."""
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
    """Raise `EditError` if a block is a mixture of experts: no single matrix stores its facts."""
    parts = ((name, f"{name.rsplit('.', 1)[-1]} {type(module).__name__}") for name, module in block.named_modules())
    experts = [name for name, words in parts if "expert" in words.lower()]
    if experts:
        raise EditError(
            f"{what} is a mixture of experts ({experts[0]}): a token's key reaches only those that its router picks, "
            "and the router's choice is no part of the least-squares problem. Only dense layers can be edited"
        )


def check_matrix(matrix: Any, name: str) -> None:
    """Raise `EditError` unless a matrix has a plain floating-point weight."""
    weight = getattr(matrix, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2:
        raise EditError(f"{name} has no two-dimensional weight: name another with --model.matrix")
    # quantized weights are integers, or floating-point subclasses that hold integers (torchao)
    if not weight.is_floating_point() or type(weight) not in (torch.Tensor, nn.Parameter) or weight.itemsize < 2:
        raise EditError(
            f"{name} is quantised ({type(weight.data).__name__}, {weight.dtype}): its steps are larger than edits. "
            "Load the model unquantised, or quantise all but the edited matrices (name them in the quantisation "
            "configuration's modules_to_not_convert)"
        )
