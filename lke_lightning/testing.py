"""Tiny random models and a tokenizer, for tests of this package and of plug-ins."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

WORDS = [
    "the",
    "a",
    "of",
    "in",
    "is",
    "was",
    "born",
    "city",
    "river",
    "plays",
    "speaks",
    "works",
    "for",
    "mother",
    "tongue",
    "capital",
    "native",
    "sport",
    "guitar",
    "piano",
]


def tiny_tokenizer(texts: Iterable[str] = (" ".join(WORDS),), bos: bool = False, vocabulary: int = 400) -> Any:
    """Train a byte-level BPE on some texts.

    Args:
        texts: what to train on; every text can be encoded whatever they are.
        bos: put a BOS in front of every text, as Llama does.
        vocabulary: number of tokens, 256 bytes included.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def tiny_network(family: str, vocabulary: int = 400, layers: int = 4, seed: int = 0, **changes: Any) -> nn.Module:
    """Build a random causal language model of a transformers family, in float64.

    Args:
        family: `model_type` of transformers, such as `gpt2`, `llama` or `gemma3_text`.
        vocabulary: number of tokens.
        layers: number of blocks.
        seed: seed of the weights.
        changes: fields of the configuration to set beside the tiny sizes.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": vocabulary,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    if family not in ("gpt2", "gptj", "gpt_neox", "opt"):
        sizes |= {"num_key_value_heads": 2, "head_dim": 8}
    if family == "gpt2":
        sizes |= {"n_inner": sizes.pop("intermediate_size")}
    if family == "gptj":
        sizes |= {"n_inner": sizes.pop("intermediate_size"), "rotary_dim": 4}
    if family == "opt":
        sizes |= {"ffn_dim": sizes.pop("intermediate_size"), "word_embed_proj_dim": 32}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family, **(sizes | changes))
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
        for weight in network.parameters():  # the usual initialisation is too small to tell positions apart
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.15)
    return network.eval()
