"""The memory that stands beside the network, with a Python file that attaches it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lke_lightning.editor import Editor
from lke_lightning.edits import EditError
from lke_lightning.export.card import CARD, about
from lke_lightning.export.change import base_name, sample
from lke_lightning.low_rank import LowRank
from lke_lightning.results import check_free, replace_folder, write_tensors

UNDO = """The base model is unchanged: load it without `attach`. Single edits are taken back on the run that made this,
where the method allows it: `python -m lke_lightning undo RUN --edit ID`, then `export` again."""


def write_module(editor: Editor, folder: Path, checkpoint: Mapping[str, Any] | None = None) -> dict[str, LowRank]:
    """Write the memory that stands beside the network as a folder, complete or not at all; docs/export.md.

    Args:
        editor: holds the model and its edits.
        folder: must not exist, or be empty.
        checkpoint: of the run, for the card.

    Raises:
        EditError: edits are in the weights or undone, the memory has no such form, or the folder is not empty or
            cannot be written.
    """
    check_free(folder, is_folder=True)
    model = editor.language_model
    if len(model.beside) != 1 or any(weight.delta.any() for weight in model.edited.values()):
        raise EditError("--format module is for edits that stand beside the weights: use merged, delta, lora or gguf")
    [module] = model.beside.values()
    if module.is_empty:
        raise EditError("no edit holds: there is nothing to export")
    tensors, facts, program = module.exported()
    facts |= {
        "base_model": base_name(editor),
        "base_hash": model.base_hash,
        "sample": sample(model.weight(model.target_layer).base),
        "method": editor.method,
        "edits": len(editor.edited),
    }
    card = about(editor, {}, checkpoint).card("transformers", "adapter", UNDO)

    def write(unfinished: Path) -> None:
        (unfinished / "memory.json").write_text(json.dumps(facts, indent=2) + "\n")
        with (unfinished / "memory.safetensors").open("wb") as file:
            write_tensors(file, tensors, {"format": "pt"})
        (unfinished / "attach.py").write_text(program)
        (unfinished / CARD).write_text(card, encoding="utf-8")

    replace_folder(folder, write)
    return {}
