"""A memory of edits beside one matrix of a transformers model: attach(AutoModelForCausalLM.from_pretrained(X), folder).

A token decides by itself and by those before it in its row, which the cache counts. Either padding will do, no beams.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


class Running:
    """Means over a row's tokens up to each of them; their sums and number go with the cache."""

    def begin(self, _: Any, args: tuple, kwargs: dict) -> None:
        """See which tokens are real, and what the cache knows of those before them."""
        ids = next(x for x in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args) if x is not None)
        mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
        mask = torch.ones_like(ids) if mask is None or mask.dim() != 2 else mask[:, -ids.shape[1] :]
        self.real = mask.view(*ids.shape[:2], -1)[..., :1].bool()
        self.sums = getattr(cache, "sums", {}).get(0 if cache is None else cache.get_seq_length(), 0.0)

    def means(self, values: torch.Tensor) -> torch.Tensor:
        """Return the means of values (rows, length, size)."""
        counted = torch.cat([values, torch.ones_like(values[..., :1])], dim=-1)
        sums = self.sums + torch.where(self.real, counted, 0.0).cumsum(1)
        self.sums = sums[:, -1:]
        return sums[..., :-1] / sums[..., -1:].clamp(min=1)

    def end(self, _: Any, args: tuple, output: Any) -> None:
        """Leave the sums with the cache."""
        if (cache := getattr(output, "past_key_values", None)) is not None:
            cache.sums = {cache.get_seq_length(): self.sums}


def attach(model: torch.nn.Module, folder: str | Path) -> None:
    """Let the memory in a folder stand beside the unedited model that it was made for."""
    about = json.loads(Path(folder, "memory.json").read_text())
    memory = about | load_file(Path(folder, "memory.safetensors"), device=str(model.device))
    weight, sample = (matrix := model.get_submodule(about["matrix"])).weight.detach().flatten(), about["sample"]
    seen = weight[:: len(weight) // len(sample)][: len(sample)].float().cpu()
    if not torch.allclose(seen, torch.tensor(sample), rtol=0.01, atol=1e-6):
        raise ValueError(f"this memory belongs to another model, {about['base_model']}")
    model.register_forward_pre_hook((running := Running()).begin, with_kwargs=True)
    model.register_forward_hook(running.end)
    matrix.register_forward_hook(lambda _, args, output: read(memory, running, args[0], output))  # noqa: F821
