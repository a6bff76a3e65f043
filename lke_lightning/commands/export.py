"""Take the edited model away."""

from __future__ import annotations

from pathlib import Path

from lke_lightning.editor import Editor
from lke_lightning.edits import EditError


def export(ckpt_path: str, output: str) -> None:
    """Write the edited model of a checkpoint as a plain transformers folder.

    Args:
        ckpt_path: a checkpoint that `fit` wrote.
        output: folder to write; it must not exist or be empty.
    """
    if not Path(ckpt_path).is_file():
        raise EditError(f"no checkpoint {ckpt_path!r}")
    editor = Editor.load_from_checkpoint(ckpt_path, map_location="cpu", weights_only=True)
    print(f"{len(editor.edited)} edits written to {editor.save_pretrained(output)}")
