"""How results reach the disk: whole or not at all, and with the versions that made them."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from safetensors import SafetensorError

from lke_lightning.edits import EditError

if TYPE_CHECKING:
    from torch import Tensor

UNFINISHED = ".tmp"
"""How the hidden name of a file or folder ends that is being written."""


def replace(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file, whole or not at all, also where the power fails.

    Raises:
        EditError: it cannot be written, with the reason; what was there before still is.
    """

    def create(unfinished: Path) -> None:
        with unfinished.open("xb") as file:  # never through a link, and with the permissions that the umask leaves
            write(file)
            file.flush()
            os.fsync(file.fileno())

    _at_once(path, create)


def replace_file(path: Path, create: Callable[[Path], Any]) -> None:
    """Let `create` make a file under the path that it is given, whole or not at all, for writers that open it.

    Raises:
        EditError: it cannot be written, with the reason; what was there before still is.
    """

    def synced(unfinished: Path) -> None:
        create(unfinished)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())

    _at_once(path, synced)


def replace_folder(folder: Path, write: Callable[[Path], Any]) -> Path:
    """Write a folder, complete or not at all, also where the power fails.

    Args:
        folder: must not exist, or be empty.
        write: fills the folder that it is given.

    Returns:
        The folder, by its absolute path.

    Raises:
        EditError: there is something in it already, or it cannot be written, with the reason.
    """
    check_free(folder, is_folder=True)
    folder = folder.resolve()

    def create(unfinished: Path) -> None:
        unfinished.mkdir()
        write(unfinished)
        for part in [path for path in unfinished.rglob("*") if path.is_file()]:
            with part.open("rb") as file:
                os.fsync(file.fileno())
        if folder.exists():
            folder.rmdir()

    _at_once(folder, create)
    return folder


def _at_once(path: Path, create: Callable[[Path], None]) -> None:
    """Let `create` make something beside `path`, under a name that nobody can know before, then rename it."""
    unfinished = path.with_name(f".{path.name[:64]}.{uuid.uuid4().hex}{UNFINISHED}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        create(unfinished)
        os.replace(unfinished, path)
        sync_folder(path.parent)
    except BaseException as error:
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        elif unfinished.exists():  # not where a file stands in the place of its folder
            unfinished.unlink()
        # torch raises an error of its own after the one that a full disk raised; libraries in Rust raise their own
        if isinstance(error, EditError) or not (
            isinstance(error, OSError | RuntimeError | SafetensorError) or "(os error " in str(error)
        ):
            raise
        first = error if isinstance(error, OSError) else error.__context__
        reason = first.strerror if isinstance(first, OSError) and first.strerror else str(error).splitlines()[0]
        raise EditError(
            f"cannot write {path} ({reason}): is the disk full or the folder read-only? What was saved before is whole"
        ) from error


def check_free(path: Path, is_folder: bool) -> None:
    """Check, before any work, that a new file or folder can be made under a path; an empty folder may be there.

    Raises:
        EditError: something is there, or above it is a file or a folder that may not be written.
    """
    try:
        if is_folder and path.is_dir():
            if any(path.iterdir()):
                raise EditError(f"{path} exists and is not empty: choose another folder")
        elif path.exists():
            what = "is no folder" if is_folder else "a new file is to be written"
            raise EditError(f"{path} exists and {what}: choose another name")
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise EditError(f"cannot write {path}: {error.strerror}") from error
    check_writable(path)


def check_writable(path: Path) -> None:
    """Check, before any work, that something can be written under a path, or the path be made.

    Raises:
        EditError: above it is a file, or a folder that may not be written.
    """
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise EditError(f"cannot write {path}: {above} is a file, not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise EditError(f"cannot write {path}: the folder {above} is read-only")


def write_tensors(file: IO[bytes], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whose bytes follow from what is in it: the library writes metadata in any order."""
    import safetensors.torch  # which imports torch; commands that write text alone need not wait for it

    data = memoryview(safetensors.torch.save({name: t.cpu().contiguous() for name, t in tensors.items()}))
    begin = 8 + int.from_bytes(data[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(bytes(data[8:begin]))}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format asks tensors to begin at a multiple of 8
    file.writelines([len(text).to_bytes(8, "little"), text, data[begin:]])


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
