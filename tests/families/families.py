"""The families that are tested, each as tiny as it can be, with what is special about it switched on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

WINDOW = {"sliding_window": 6}
"""Shorter than the rows of the tests."""
TWO_KINDS = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2}


@dataclass(frozen=True)
class Family:
    """A family as users know it."""

    models: str
    kind: str
    """`model_type` of transformers."""
    special: str
    """What a program that knows Llama alone would get wrong."""
    changes: dict[str, Any] = field(default_factory=dict)
    site: str = "block"
    """Where the structure puts targets: a norm behind the MLP changes what is written there on its way to the block's
    output."""
    daily: bool = False
    """Run through `fit` in every test run, not in slow ones alone."""


FAMILIES = {
    "gpt2": Family("GPT-2", "gpt2", "weights stored transposed, learned positions, biases", daily=True),
    "gptj": Family("GPT-J", "gptj", "attention and MLP in parallel, blocks return tuples", daily=True),
    "gpt_neo": Family(
        "GPT-Neo", "gpt_neo", "local attention", {"attention_types": [[["global", "local"], 2]], "window_size": 6}
    ),
    "gpt_neox": Family("GPT-NeoX, Pythia", "gpt_neox", "attention and MLP in parallel, partial rotation", daily=True),
    "gpt_neox-sequential": Family(
        "Pythia-like, not parallel", "gpt_neox", "the same one after the other", {"use_parallel_residual": False}
    ),
    "opt": Family("OPT", "opt", "positions offset by two, MLP sees all tokens in one row, biases", daily=True),
    "opt-post": Family(
        "OPT-350M", "opt", "norms behind the blocks, narrower embeddings",
        {"do_layer_norm_before": False, "word_embed_proj_dim": 16}
    ),
    "bloom": Family("BLOOM", "bloom", "biases by distance (ALiBi)"),
    "mpt": Family("MPT", "mpt", "biases by distance (ALiBi), MLP called ffn"),
    "falcon": Family("Falcon 7B", "falcon", "parallel, attention added into the MLP's output in place", daily=True),
    "falcon-new": Family(
        "Falcon 40B, Falcon 2", "falcon", "two norms, grouped queries",
        {"new_decoder_architecture": True, "num_kv_heads": 2}
    ),
    "falcon-rw": Family(
        "Falcon-RW", "falcon", "biases by distance (ALiBi)",
        {"alibi": True, "parallel_attn": False, "multi_query": False}
    ),
    "gpt_bigcode": Family("StarCoder", "gpt_bigcode", "one head for keys and values"),
    "starcoder2": Family("StarCoder 2", "starcoder2", "sliding window, biases", WINDOW),
    "codegen": Family("CodeGen", "codegen", "attention and MLP in parallel"),
    "llama": Family("Llama 2 and 3, SmolLM and SmolLM 2, Yi", "llama", "grouped queries", daily=True),
    "llama-biased": Family("Llama-like with biases", "llama", "biases", {"mlp_bias": True, "attention_bias": True}),
    "smollm3": Family("SmolLM 3", "smollm3", "layers without positions"),
    "mistral": Family("Mistral", "mistral", "sliding window", WINDOW, daily=True),
    "qwen2": Family(
        "Qwen 2 and 2.5", "qwen2", "biases, sliding window above some layers",
        {**WINDOW, "use_sliding_window": True, "max_window_layers": 2},
    ),
    "qwen3": Family("Qwen 3", "qwen3", "norms on queries and keys"),
    "gemma": Family("Gemma", "gemma", "embeddings scaled, norms count from one"),
    "gemma2": Family(
        "Gemma 2", "gemma2", "soft-capped logits and attention, sliding windows, four norms",
        {**WINDOW, "final_logit_softcapping": 5.0, "attn_logit_softcapping": 2.0}, site="matrix", daily=True,
    ),
    "gemma3": Family("Gemma 3", "gemma3_text", "windows and rotations by kind of layer", TWO_KINDS, site="matrix"),
    "phi": Family("Phi 1 and 2", "phi", "attention and MLP in parallel, biases"),
    "phi3": Family("Phi-3", "phi3", "gate and up in one matrix, sliding window", WINDOW),
    "phi4": Family("Phi-4", "phi3", "partial rotation", {"partial_rotary_factor": 0.5}),
    "olmo": Family("OLMo", "olmo", "norms without weights"),
    "olmo2": Family("OLMo 2", "olmo2", "norms behind attention and MLP", site="matrix"),
    "olmo3": Family("OLMo 3", "olmo3", "the same with sliding windows", TWO_KINDS, site="matrix"),
    "stablelm": Family("StableLM 2", "stablelm", "partial rotation"),
    "stablelm-parallel": Family(
        "StableLM, parallel", "stablelm", "attention and MLP in parallel", {"use_parallel_residual": True}
    ),
    "granite": Family(
        "Granite", "granite", "logits, residuals, embeddings and attention scaled",
        {"logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0, "attention_multiplier": 0.2},
    ),
    "cohere": Family("Command R", "cohere", "parallel, logits scaled", {"logit_scale": 0.3}),
    "cohere2": Family("Command R7B", "cohere2", "parallel, sliding windows", WINDOW),
    "glm4": Family("GLM 4", "glm4", "gate and up in one matrix, four norms", site="matrix"),
    "exaone4": Family("EXAONE 4", "exaone4", "norms behind, sliding windows", WINDOW, site="matrix"),
    "nemotron": Family("Nemotron", "nemotron", "MLP without a gate"),
    "gemma4": Family(
        "Gemma 4 without shared keys", "gemma4_text", "inputs by layer, heads by kind of layer",
        {**WINDOW, "vocab_size_per_layer_input": 400, "hidden_size_per_layer_input": 8, "head_dim": 8,
         "global_head_dim": 16}, site="matrix",
    ),
}  # fmt: skip
