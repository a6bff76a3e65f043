"""Tiny random networks of any transformers family, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
"""What configurations call the MLP's inner width."""


def tiny_network(
    family: str, vocabulary: int = 400, layers: int = 4, seed: int = 0, inner: int = 64, **changes: Any
) -> PreTrainedModel:
    """Build a random causal language model of a transformers family, in float64 and in evaluation mode.

    Hidden size 32, four heads (two for keys and values where the family groups them), 128 positions.

    Args:
        family: `model_type` of transformers, such as `gpt2`, `llama` or `gemma3_text`.
        vocabulary: number of tokens.
        layers: number of blocks.
        seed: seed of the weights.
        inner: the MLP's inner width.
        changes: fields of the configuration to set beside the tiny sizes.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "vocab_size": vocabulary,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    optional = {"num_key_value_heads": 2, "head_dim": 8, "rotary_dim": 4, "word_embed_proj_dim": 32}
    optional |= dict.fromkeys(WIDTHS, inner)
    known = AutoConfig.for_model(family).to_dict()
    sizes |= {name: value for name, value in optional.items() if name in known}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family, **(sizes | changes))
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
        for name, weight in network.named_parameters():
            if weight.dim() > 1:  # the usual initialisation is too small to tell positions apart
                nn.init.normal_(weight, std=0.15)
            elif name.endswith("bias"):  # and biases that are zero show nothing
                nn.init.normal_(weight, std=0.1)
        network.tie_weights()
    return network.eval()
