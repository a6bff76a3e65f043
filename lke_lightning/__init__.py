"""Lifelong knowledge editing of language models as a PyTorch Lightning trainer.

The names below are the public interface; everything else is imported by its path.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lke_lightning.api import EditedModel as EditedModel
    from lke_lightning.api import begin as begin
    from lke_lightning.api import edit as edit
    from lke_lightning.api import resume as resume
    from lke_lightning.editor import Editor as Editor
    from lke_lightning.edits import EditError as EditError
    from lke_lightning.edits import EditRequest as EditRequest
    from lke_lightning.edits import Probe as Probe

_HOMES = {
    "EditError": "edits",
    "EditRequest": "edits",
    "EditedModel": "api",
    "Editor": "editor",
    "Probe": "edits",
    "begin": "api",
    "edit": "api",
    "resume": "api",
}

__all__ = ["EditError", "EditRequest", "EditedModel", "Editor", "Probe", "begin", "edit", "resume"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `--help` shall not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
