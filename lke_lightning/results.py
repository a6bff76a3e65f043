"""How results reach the disk: whole or not at all, and with the versions that made them."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def versions() -> dict[str, str]:
    """Return the versions of this package, of what it computes with, and of Python."""
    packages = ("lke-lightning", "torch", "lightning", "transformers")
    return {**{name: version(name) for name in packages}, "python": platform.python_version()}
