"""How results reach the disk: whole or not at all, and with the versions that made them."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from lke_lightning.edits import EditError


def replace(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file, whole or not at all, also where the power fails.

    Raises:
        EditError: it cannot be written, with the reason; what was there before still is.
    """
    unfinished = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
        unfinished.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise EditError(
            f"cannot write {path} ({reason}): is the disk full or the folder read-only? What was saved before is whole"
        ) from error


def sync_folder(folder: Path) -> None:
    """Make sure that a renamed file keeps its new name where the power fails."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        EditError: it cannot be written.
    """
    replace(path, lambda file: file.write(text.encode()))


def versions() -> dict[str, str]:
    """Return the versions of this package, of what it computes with, and of Python."""
    packages = ("lke-lightning", "torch", "lightning", "transformers")
    return {**{name: version(name) for name in packages}, "python": platform.python_version()}
