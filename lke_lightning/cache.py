"""Tensors that are costly to compute, kept on disk between runs; each file is checked when it is read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_warn
from platformdirs import user_cache_dir
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lke_lightning.edits import EditError
from lke_lightning.results import check_writable, replace, write_tensors

VARIABLE = "LKE_CACHE"
"""Environment variable that names the folder where no option does."""


def default_folder() -> Path:
    """Return the folder that `LKE_CACHE` names, or the user's cache folder."""
    return Path(os.environ.get(VARIABLE) or user_cache_dir("lke_lightning"))


class TensorCache:
    """Groups of tensors, each under a kind and a key that identifies their inputs.

    Args:
        folder: where they are kept; `None`: the folder that `LKE_CACHE` names, or the user's cache folder.
        option: what an error message calls the folder.

    Raises:
        EditError: the folder is a file, or it does not exist and cannot be made. One that may only be read will do.
    """

    def __init__(self, folder: str | None, option: str) -> None:
        self.folder = Path(folder) if folder else default_folder()
        named = option if folder or not os.environ.get(VARIABLE) else VARIABLE
        try:
            if self.folder.is_dir():
                return
            if self.folder.exists():
                raise EditError(f"{self.folder} is a file, not a folder")
            check_writable(self.folder)
        except (EditError, OSError) as error:
            raise EditError(f"{named} cannot be the folder of a cache: {error}; name another") from error

    def file(self, kind: str, key: Mapping[str, str]) -> Path:
        """Return where tensors are, or would be."""
        text = json.dumps(dict(key), sort_keys=True)
        return self.folder / kind / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"

    def get(self, kind: str, key: Mapping[str, str]) -> dict[str, Tensor] | None:
        """Return tensors, on the CPU; `None`: they are missing, or damaged, with a warning."""
        file = self.file(kind, key)
        try:
            if not file.is_file():
                return None
            with safe_open(file, "pt") as stored:
                metadata = stored.metadata() or {}
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a dict
            wrong = [name for name in key if metadata.get(name) != key[name]]
            if wrong:
                raise ValueError(f"it belongs to another {', '.join(wrong)}")
            if metadata.get("sha256") != digest(tensors):
                raise ValueError("its checksum is wrong" if "sha256" in metadata else "it has no checksum")
        except (SafetensorError, OSError, ValueError) as error:
            rank_zero_warn(f"The cached file {file} is damaged and is made anew: {error}")
            return None
        return tensors

    def put(self, kind: str, key: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
        """Store tensors; if that fails, warn and continue."""
        metadata = {**key, "sha256": digest(tensors)}
        try:
            replace(self.file(kind, key), lambda file: write_tensors(file, tensors, metadata))
        except EditError as error:
            rank_zero_warn(f"The result could not be cached for the next run: {error}")


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of the names, dtypes, shapes and bytes of tensors."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
