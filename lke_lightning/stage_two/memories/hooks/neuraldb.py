"""A store of residuals behind a gate (NeuralDB, arXiv 2507.18028), read at one matrix of a transformers model.

Beside its folder: `attach(AutoModelForCausalLM.from_pretrained(base), folder)`; every token decides for itself.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file


def read(memory: dict, keys: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Add the residual of the stored key (..., d_key) of the highest cosine to the output where that passes gamma."""
    asked = torch.nn.functional.normalize(keys.flatten(0, -2).to(memory["keys"]), dim=1)
    cosine, nearest = (asked @ memory["keys"].T).masked_fill(~memory["open"], -1).max(1)
    passes = (cosine > memory["gamma"]).view(keys.shape[:-1])
    values = memory["values"][nearest].view(output.shape)
    return torch.where(passes.unsqueeze(-1), (output.to(values.dtype) + values).to(output.dtype), output)


def attach(model: torch.nn.Module, folder: str | Path) -> torch.utils.hooks.RemovableHandle:
    """Let the memory in a folder stand beside the model that it was made for; return the handle that removes it."""
    about = json.loads(Path(folder, "memory.json").read_text())
    memory = load_file(Path(folder, "memory.safetensors"), device=str(model.device))
    matrix = model.get_submodule(about["matrix"])
    sample = matrix.weight.detach().flatten()[:: matrix.weight.numel() // len(about["sample"])][: len(about["sample"])]
    if not torch.allclose(sample.float().cpu(), torch.tensor(about["sample"]), rtol=0.02, atol=1e-6):
        raise ValueError(f"this memory belongs to another model, {about['base_model']}")
    return matrix.register_forward_hook(lambda _, args, output: read(memory, args[0], output))
