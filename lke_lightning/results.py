"""How results reach the disk: whole or not at all, and with the versions that made them."""

from __future__ import annotations

import os
import platform
import tempfile
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
    except (OSError, RuntimeError) as error:
        unfinished.unlink(missing_ok=True)
        # torch raises an error of its own after the one that a full disk raised
        first = error if isinstance(error, OSError) else error.__context__
        reason = first.strerror if isinstance(first, OSError) and first.strerror else str(error).splitlines()[0]
        raise EditError(
            f"cannot write {path} ({reason}): is the disk full or the folder read-only? What was saved before is whole"
        ) from error


def made_folder(path: str | Path) -> Path:
    """Return a folder for results, which is made if it is not there, before the work that would be lost without it.

    Raises:
        EditError: it cannot be made or written into.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return Path(path)
    except OSError as error:
        raise EditError(f"cannot write into the folder {path} ({error.strerror}): name another") from error


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
