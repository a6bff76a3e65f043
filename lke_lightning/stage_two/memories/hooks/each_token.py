"""A memory of edits beside one matrix of a transformers model: attach(AutoModelForCausalLM.from_pretrained(X), folder).

Each token decides for itself: rows may be padded on either side, and run with a cache.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file


def attach(model: torch.nn.Module, folder: str | Path) -> None:
    """Let the memory in a folder stand beside the unedited model that it was made for."""
    about = json.loads(Path(folder, "memory.json").read_text())
    memory = about | load_file(Path(folder, "memory.safetensors"), device=str(model.device))
    weight, sample = (matrix := model.get_submodule(about["matrix"])).weight.detach().flatten(), about["sample"]
    seen = weight[:: len(weight) // len(sample)][: len(sample)].float().cpu()
    if not torch.allclose(seen, torch.tensor(sample), rtol=0.01, atol=1e-6):
        raise ValueError(f"this memory belongs to another model, {about['base_model']}")
    matrix.register_forward_hook(lambda _, args, output: read(memory, args[0], output))  # noqa: F821 - it is behind
