"""The edited model as a plain transformers folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lke_lightning.editor import Editor
from lke_lightning.export.card import CARD, about
from lke_lightning.export.change import changes
from lke_lightning.low_rank import LowRank
from lke_lightning.results import replace_folder

UNDO = """This folder holds the edited weights alone. The unedited model is the base model. Single edits are taken back,
exactly where the method allows it, on the run that made this: `python -m lke_lightning undo RUN --edit ID`, then
`export` again. An export with `--format delta` is the change alone, which can be added and taken away."""


def write_merged(editor: Editor, folder: Path, checkpoint: Mapping[str, Any] | None = None) -> dict[str, LowRank]:
    """Write the edited model, its tokenizer and a model card, complete or not at all.

    Args:
        editor: holds the model and its edits.
        folder: must not exist, or be empty.
        checkpoint: of the run, for the card.

    Raises:
        EditError: a change is not finite, or the folder is not empty or cannot be written.
    """
    card = about(editor, changes(editor), checkpoint).card("transformers", "finetune", UNDO)

    def write(unfinished: Path) -> None:
        with editor.as_read():
            editor.language_model.network.save_pretrained(unfinished)
        editor.language_model.text.tokenizer.save_pretrained(unfinished)
        (unfinished / CARD).write_text(card, encoding="utf-8")

    replace_folder(folder, write)
    return {}
