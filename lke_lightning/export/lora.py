"""The change as a LoRA adapter, for peft and for servers that load adapters at run time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lke_lightning.editor import Editor
from lke_lightning.edits import EditError
from lke_lightning.export.card import CARD, about
from lke_lightning.export.change import changes
from lke_lightning.low_rank import LowRank, approximate
from lke_lightning.model.architecture import is_transposed
from lke_lightning.model.language_model import resolve
from lke_lightning.results import check_free, replace_folder, write_tensors

TOLERANCE = 1e-3
"""Relative Frobenius error up to which an adapter is the change, unless another is asked for."""
UNDO = """The base model is unchanged: use it without the adapter, or switch the adapter off (in peft
`with model.disable_adapter()`, or `model.unload()`). Single edits are taken back, exactly where the method allows it,
on the run that made this: `python -m lke_lightning undo RUN --edit ID`, then `export` again."""


def write_lora(
    editor: Editor,
    folder: Path,
    rank: int | None = None,
    tolerance: float = TOLERANCE,
    checkpoint: Mapping[str, Any] | None = None,
) -> dict[str, LowRank]:
    """Write the change of the edited matrices as a LoRA adapter that peft loads, complete or not at all.

    All matrices get one rank: llama.cpp scales each by `lora_alpha` over its own rank and knows no pattern of ranks.

    Args:
        editor: holds the model and its edits.
        folder: where `adapter_config.json`, `adapter_model.safetensors` and a model card are written.
        rank: of every matrix; `None`: the lowest at which all of them keep `tolerance`.
        tolerance: the relative Frobenius error that a matrix may have; a larger one makes a smaller adapter.
        checkpoint: of the run, for the card.

    Returns:
        The approximation of each matrix, by the name of its weight in the network's `state_dict`.

    Raises:
        EditError: the rank is below 1 or takes as much room as the whole change (the message says which error a lower
            one would have), an edited matrix is of a kind that peft does not know, a change is not finite, or the
            folder is not empty or cannot be written.
    """
    check_free(folder, is_folder=True)
    found = changes(editor)
    for name, change in found.items():
        if not (isinstance(change.matrix, nn.Linear) or is_transposed(change.matrix)):
            raise EditError(f"{name} is of a {type(change.matrix).__name__}, not a linear layer: use --format delta")
    remedy = "use --format delta"
    low = {name: approximate(name, change.total, rank, tolerance, remedy) for name, change in found.items()}
    largest = max(part.rank for part in low.values())
    for name, part in low.items():
        if part.rank < largest:
            low[name] = approximate(name, found[name].total, largest, remedy=remedy)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": resolve(editor.pretrained),
        "inference_mode": True,
        "target_modules": sorted(name.removesuffix(".weight") for name in low),
        "fan_in_fan_out": any(is_transposed(change.matrix) for change in found.values()),
        "r": largest,
        "lora_alpha": largest,  # the factors are scaled by alpha / r: they are the change as they are
        "lora_dropout": 0.0,
        "bias": "none",
    }
    tensors: dict[str, Tensor] = {}
    for name, part in low.items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        tensors |= {f"{prefix}.lora_A.weight": part.down, f"{prefix}.lora_B.weight": part.up}
    card = about(editor, found, checkpoint).card("peft", "adapter", UNDO)

    def write(unfinished: Path) -> None:
        (unfinished / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        with (unfinished / "adapter_model.safetensors").open("wb") as file:
            write_tensors(file, tensors, {"format": "pt"})
        (unfinished / CARD).write_text(card, encoding="utf-8")

    replace_folder(folder, write)
    return low
