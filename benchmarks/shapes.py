"""Random-weight models of real shapes, and requests with the token lengths of CounterFact."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import nn

from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.tokens import Row
from lke_lightning.stage_one.rows import RequestRows
from lke_lightning.testing import tiny_tokenizer

SHAPES: dict[str, tuple[str, list[int], dict[str, Any]]] = {
    "gpt2-small": ("gpt2", [2, 3, 4], {}),
    "llama-100m": (
        "llama",
        [2, 3, 4],
        {
            "hidden_size": 640,
            "intermediate_size": 1792,
            "num_hidden_layers": 12,
            "num_attention_heads": 10,
            "num_key_value_heads": 5,
            "vocab_size": 32000,
        },
    ),
    "gpt2-xl": ("gpt2", [13, 14, 15, 16, 17], {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
    "llama3-8b": (
        "llama",
        [4, 5, 6, 7, 8],
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "rope_theta": 500000.0,
        },
    ),
}
"""Family, edited layers and sizes; the last edited layer has about the depth that papers use for the shape."""

UPTO_SLOT = {2: 9, 3: 21, 4: 22, 5: 17, 6: 12, 7: 7, 8: 5, 9: 3, 10: 2, 11: 1, 12: 1}
AFTER_SLOT = {1: 15, 2: 19, 3: 31, 4: 15, 5: 15, 6: 4, 7: 1}
"""Tokens of CounterFact prompts up to the subject's last token and after it, in percent (GPT-2 tokenizer)."""


def build(shape: str, dtype: torch.dtype, device: torch.device, tokenizer: Any = None) -> LanguageModel:
    """Make a model of a shape with random weights, made where they will live."""
    from transformers import AutoConfig, AutoModelForCausalLM

    family, layers, sizes = SHAPES[shape]
    torch.manual_seed(0)
    with device:
        network: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes), dtype=dtype)
    return LanguageModel(network, tokenizer or tiny_tokenizer(), layers)


def requests(count: int, vocabulary: int, contexts: int = 6, context_tokens: int = 11) -> list[RequestRows]:
    """Draw requests with one-token targets: the bare prompt, prompts behind shared contexts, an essence prompt."""
    draw = random.Random(0)

    def some(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(vocabulary) for _ in range(length))

    prefixes = [(), *(some(context_tokens) for _ in range(contexts - 1))]
    is_a = some(2)
    made = []
    for _ in range(count):
        [upto] = draw.choices(list(UPTO_SLOT), list(UPTO_SLOT.values()))
        [after] = draw.choices(list(AFTER_SLOT), list(AFTER_SLOT.values()))
        prompt, target = some(upto + after), some(1)
        rows = tuple(Row(prefix + prompt, len(prefix) + upto - 1) for prefix in prefixes)
        essence = Row(prompt[:upto] + is_a, upto - 1)
        made.append(RequestRows(rows, (target,) * contexts, essence, len(essence.ids) - 1))
    return made
