"""A codebook of edits (GRACE, arXiv 2211.11031), read at one matrix of a transformers model.

Beside its folder: `attach(AutoModelForCausalLM.from_pretrained(base), folder)`; every token decides for itself.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file


def read(memory: dict, keys: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Return the value of the nearest stored key where a key (..., d_key) lies in its ball, elsewhere the output."""
    asked = keys.flatten(0, -2).to(memory["keys"])
    distances = torch.cdist(asked, memory["keys"], compute_mode="use_mm_for_euclid_dist")
    distance, nearest = distances.masked_fill(memory["radii"] < 0, torch.inf).min(1)
    inside = (distance <= memory["radii"][nearest]).view(keys.shape[:-1])
    values = memory["values"][memory["returned"][nearest]].view(output.shape).to(output.dtype)
    return torch.where(inside.unsqueeze(-1), values, output)


def attach(model: torch.nn.Module, folder: str | Path) -> torch.utils.hooks.RemovableHandle:
    """Let the memory in a folder stand beside the model that it was made for; return the handle that removes it."""
    about = json.loads(Path(folder, "memory.json").read_text())
    memory = load_file(Path(folder, "memory.safetensors"), device=str(model.device))
    matrix = model.get_submodule(about["matrix"])
    sample = matrix.weight.detach().flatten()[:: matrix.weight.numel() // len(about["sample"])][: len(about["sample"])]
    if not torch.allclose(sample.float().cpu(), torch.tensor(about["sample"]), rtol=0.02, atol=1e-6):
        raise ValueError(f"this memory belongs to another model, {about['base_model']}")
    return matrix.register_forward_hook(lambda _, args, output: read(memory, args[0], output))
