"""Checkpoints on disk: written whole or not at all, checked before they are trusted, found by name."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lke_lightning.configuration import NODES, unfolded
from lke_lightning.edits import EditError
from lke_lightning.results import UNFINISHED
from lke_lightning.shapes import lacking

FOLDER, LAST, PATTERN = "checkpoints", "last.ckpt", "batch-*.ckpt"

FORMAT = 2
"""Of what `Editor.on_save_checkpoint` writes; raised whenever this version cannot continue from earlier ones."""

CONTENTS = {
    "state_dict": dict[str, torch.Tensor],
    "hyper_parameters": dict[str, Any],
    "global_step": int,
    "loops": dict[str, Any],
    "callbacks": {
        "TargetOptimization": {"contexts": list[str]},
        "WeightUpdate": {"memory": dict[str, dict[str, torch.Tensor]], "statistics": dict[str, str]},
        "Recorder": {"size": int},
    },
    "editing": {
        "base_hash": str,
        "layers": list[int],
        "chat": dict[str, Any],
        "register": {
            "ids": list[str],
            "facts": list[list[str]],
            "replaces": list[int | None],
            "groups": list[int],
            "states": list[str],
        },
        "seconds": dict[str, float],
        "configuration": dict[str, dict[str, Any]],
        "stream": {"batch_size": int, "digests": torch.Tensor, "ends": list[int]},
        "random": {"torch": torch.Tensor, "python": list[Any]},
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
    """Load a checkpoint without reading its tensors into memory or comparing their checksums.

    Raises:
        EditError: as for `read`, as far as can be seen without reading everything.
    """
    damage = damage_of(path, with_tensors=False)
    if damage:
        raise _damaged(path, damage)
    return _load(path, mmap=True)


def _load(path: Path, mmap: bool) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # bytes that are no pickle raise whatever comes first
        damage = damage_of(path)
        if damage or not isinstance(error, pickle.UnpicklingError):
            raise _damaged(path, damage or (str(error).splitlines() or [type(error).__name__])[0]) from error
        raise EditError(
            f"{path} is no checkpoint of an editing run: it holds more than tensors and plain values"
        ) from error
    if not isinstance(checkpoint, dict) or "editing" not in checkpoint:
        raise EditError(f"{path} is not a checkpoint of an editing run")
    written = checkpoint["editing"].get("format", 1) if isinstance(checkpoint["editing"], dict) else None
    if written != FORMAT:
        raise EditError(
            f"{path} has the checkpoint format {written!s:.20}, this version of lke_lightning reads format {FORMAT}: "
            "export its edits with the version that wrote it, or edit anew"
        )
    missing = lacking(checkpoint, CONTENTS)
    if missing:
        raise EditError(
            f"the checkpoint {path} lacks {missing}, or holds something else there: it was changed by another program; "
            "use another one"
        )
    check_agrees(checkpoint, path)
    return checkpoint


def check_agrees(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Raise `EditError` where parts of a checkpoint, each of the right type, cannot be of one run."""
    editing, callbacks = checkpoint["editing"], checkpoint["callbacks"]
    random, generator = editing["random"], torch.get_rng_state()
    sound = {
        "the layers of its memory": {*callbacks["WeightUpdate"]["memory"]} == {*map(str, editing["layers"])},
        "the length of its ledger": callbacks["Recorder"]["size"] >= 0,
        "its number of batches": checkpoint["global_step"] >= 0,
        "its random numbers": (random["torch"].shape, len(random["python"])) == (generator.shape, 3),
        "its settings": unfolded(checkpoint["hyper_parameters"]) <= NODES,  # that hold themselves, or unfold endlessly
        "its stages": unfolded(editing["configuration"]) <= NODES,
    }
    wrong = [name for name, is_sound in sound.items() if not is_sound]
    if wrong:
        raise EditError(
            f"{wrong[0]} in the checkpoint {path} cannot be: it was changed by another program; use another"
        )


@contextmanager
def understood(what: str) -> Iterator[None]:
    """Take whatever goes wrong while a part of a checkpoint is taken over for a change by another program.

    Raises:
        EditError: something does; its message names what.
    """
    try:
        yield
    except EditError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EditError(
            f"{what} in the checkpoint cannot be used ({reason}): it was changed by another program; use another one"
        ) from error


def _damaged(path: Path, damage: str) -> EditError:
    others = [other for other in _numbered(path.parent) if other != path.resolve() and not damage_of(other)]
    offer = f"continue from the one before it: --ckpt_path {others[-1]}" if others else "there is no other beside it"
    return EditError(f"the checkpoint {path} is damaged ({damage}): {offer}")


def damage_of(path: Path, with_tensors: bool = True) -> str | None:
    """Say what is wrong with the bytes of a checkpoint; `None`: its records have their checksums (CRC-32).

    Args:
        path: the checkpoint.
        with_tensors: read all of it; otherwise the plain values alone, which are small.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if not with_tensors:
                archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
                return None
            record = archive.testzip()
    except Exception as error:  # bytes that are no archive raise whatever comes first
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
        raise EditError(
            f"{str(place)!r} is neither a checkpoint nor the folder of a run with one (for a model that no run has "
            "edited, `ask` has --pretrained)"
        )
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
