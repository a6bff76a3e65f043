"""Checkpoints on disk: written whole or not at all, checked before they are trusted, found by name."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_info

from lke_lightning.edits import EditError
from lke_lightning.results import UNFINISHED, replace

FOLDER, LAST, PATTERN = "checkpoints", "last.ckpt", "batch-*.ckpt"

FORMAT = 2
"""Of what `Editor.on_save_checkpoint` writes; raised whenever this version cannot continue from earlier ones."""

CONTENTS = {
    "state_dict": dict,
    "hyper_parameters": dict,
    "global_step": int,
    "loops": dict,
    "callbacks": {
        "TargetOptimization": {"contexts": list},
        "WeightUpdate": {"memory": dict, "statistics": dict},
        "Recorder": {"size": int},
    },
    "editing": {
        "base_hash": str,
        "layers": list,
        "chat": dict,
        "register": {"ids": list, "facts": list, "replaces": list, "groups": list, "states": list},
        "seconds": dict,
        "configuration": dict,
        "stream": {"batch_size": int, "digests": torch.Tensor, "ends": list},
        "random": {"torch": torch.Tensor, "python": list},
    },
}
"""What a checkpoint of an editing run holds at least, and of which type."""


def file_name(batches: int) -> str:
    """Name the checkpoint of a run by how many batches it has edited; names sort in that order."""
    return PATTERN.replace("*", f"{batches:08}")


def read(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint on the CPU, without running any pickle, after all its checksums were compared.

    Raises:
        EditError: it is not there, is damaged (the message names the newest whole one beside it), or is not a
            checkpoint of an editing run in this version's format.
    """
    path = Path(path)
    if not path.is_file():
        raise EditError(f"no checkpoint {str(path)!r}")
    damage = damage_of(path)
    if damage:
        raise _damaged(path, damage)
    checkpoint = _load(path, mmap=False)
    broken = [name for name, value in checkpoint["state_dict"].items() if not value.isfinite().all()]
    if broken:
        raise EditError(f"the checkpoint {path} holds numbers that are not finite in {broken[0]}: use an earlier one")
    return checkpoint


def peek(path: Path) -> dict[str, Any]:
    """Load a checkpoint without reading its tensors into memory, and without comparing checksums.

    Raises:
        EditError: as for `read`, as far as can be seen without reading everything.
    """
    return _load(path, mmap=True)


def _load(path: Path, mmap: bool) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise EditError(
            f"{path} is no checkpoint of an editing run: it holds more than tensors and plain values"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error
    if not isinstance(checkpoint, dict) or "editing" not in checkpoint:
        raise EditError(f"{path} is not a checkpoint of an editing run")
    written = checkpoint["editing"].get("format", 1) if isinstance(checkpoint["editing"], dict) else None
    if written != FORMAT:
        raise EditError(
            f"{path} has the checkpoint format {written}, this version of lke_lightning reads format {FORMAT}: export "
            "its edits with the version that wrote it, or edit anew"
        )
    missing = _missing(checkpoint, CONTENTS)
    if missing:
        raise EditError(f"the checkpoint {path} lacks {missing}: it was changed by another program; use another one")
    return checkpoint


def _missing(found: Any, wanted: Any, name: str = "") -> str | None:
    """Name the first part of a checkpoint that is not there or of another kind than `CONTENTS` says."""
    if not isinstance(wanted, dict):
        return None if isinstance(found, wanted) else name
    if not isinstance(found, dict):
        return name
    parts = ((f"{name}.{part}".lstrip("."), part, kind) for part, kind in wanted.items())
    problems = (path if part not in found else _missing(found[part], kind, path) for path, part, kind in parts)
    return next((problem for problem in problems if problem), None)


def _damaged(path: Path, damage: str) -> EditError:
    others = [other for other in _numbered(path.parent) if other != path.resolve() and not damage_of(other)]
    offer = f"continue from the one before it: --ckpt_path {others[-1]}" if others else "there is no other beside it"
    return EditError(f"the checkpoint {path} is damaged ({damage}): {offer}")


def damage_of(path: Path) -> str | None:
    """Say what is wrong with the bytes of a checkpoint; `None`: every record has its checksum (CRC-32)."""
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        return f"cut short or overwritten: {error}"
    return None if record is None else f"the checksum of {record} is wrong"


def newest(run: str | Path) -> Path | None:
    """Return the checkpoint of a run's folder that has the most batches, or `None`."""
    return next(reversed(_numbered(Path(run) / FOLDER)), None)


def find(place: str | Path) -> Path:
    """Turn a checkpoint's path or a run's folder into a checkpoint's path.

    Raises:
        EditError: there is none.
    """
    place = Path(place)
    if place.is_file():
        return place.resolve()
    found = newest(place) if place.is_dir() else None
    if found is None:
        raise EditError(f"{str(place)!r} is neither a checkpoint nor the folder of a run with one")
    return found


def keep_newest(folder: Path, count: int, spared: Path | None = None) -> None:
    """Delete all but the newest `count` checkpoints of a folder and `spared`, and what was never finished."""
    for old in _numbered(folder)[:-count]:
        if spared is None or old != spared.resolve():
            old.unlink(missing_ok=True)
    for unfinished in folder.glob(f".{PATTERN}.*{UNFINISHED}"):  # of a run that was killed while it wrote
        unfinished.unlink(missing_ok=True)


def set_newer_aside(path: Path) -> None:
    """Rename the checkpoints beside one that have more batches: a run that goes on from it leaves them behind."""
    for newer in _numbered(path.parent):
        if newer.name > path.name:
            newer.rename(newer.with_name(newer.name + ".discarded"))


def link_last(path: Path) -> None:
    """Let `last.ckpt` beside a checkpoint lead to it."""
    unfinished = path.with_name(LAST + ".tmp")
    unfinished.unlink(missing_ok=True)
    unfinished.symlink_to(path.name)
    os.replace(unfinished, path.with_name(LAST))


def _numbered(folder: Path) -> list[Path]:
    return sorted(path.resolve() for path in folder.glob(PATTERN))


class SafeCheckpointIO(CheckpointIO):
    """What Lightning saves and loads checkpoints with."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, whole or not at all."""
        replace(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint that is whole."""
        checkpoint = read(path)
        rank_zero_info(f"Continuing from {path}")
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)
