"""Models in GGUF files: which file a name means, how transformers is told to read it, and why it cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any

from torch import nn

from lke_lightning.edits import EditError
from lke_lightning.progress import track

SUFFIX = ".gguf"
PACKAGES = ("gguf", "accelerate")
"""What transformers reads such files with: the extra `gguf`."""


def located(name: str) -> tuple[str, dict[str, str]]:
    """Return what `from_pretrained` of configurations, tokenizers and models takes for a model.

    Args:
        name: a folder, a hub name, or a GGUF file in either.

    Returns:
        The folder or hub name, and `gguf_file` where the model is such a file in it.

    Raises:
        EditError: there are several GGUF files to choose from, or the packages that read them are missing.
    """
    folder, file = name, None
    if name.endswith(SUFFIX) and not Path(name).is_dir():
        folder, file = PurePath(name).parent.as_posix(), PurePath(name).name
    else:
        files = _files(name)
        found = sorted(other for other in files if other.endswith(SUFFIX))
        if found and "config.json" not in files:
            if len(found) > 1:
                raise EditError(f"{name!r} holds {len(found)} GGUF files: name one, such as {name}/{found[0]}")
            file = found[0]
    if file is None:
        return folder, {}
    check_installed(name)
    return folder, {"gguf_file": file}


def file_of(name: str) -> Path | None:
    """Return the file that a model is read from, as it lies on this machine; `None`: that is no GGUF file.

    Args:
        name: as for `located`.
    """
    where, file = located(name)
    if not file:
        return None
    if Path(where).is_dir():
        return Path(where, file["gguf_file"])
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(where, file["gguf_file"]))


def opened(path: Path) -> Any:
    """Open a file with `gguf.GGUFReader`, whose tensors stay on disk until they are read.

    Raises:
        EditError: it cannot be read, or its numbers have another machine's order of bytes.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
    except (IndexError, KeyError, OSError, ValueError) as error:
        raise EditError(f"cannot read {path}: {why(str(path), str(path.parent), path.name, error)}") from error
    if reader.byte_order != "I":
        raise EditError(f"{path} has the order of bytes of another machine: convert it with gguf-convert-endian")
    return reader


def check_installed(name: str) -> None:
    """Raise `EditError` unless GGUF files such as this one can be read here."""
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise EditError(
            f"{name!r} is a GGUF file, and {' and '.join(missing)} to read it with is not installed: pip install "
            "'lke-lightning[gguf]'"
        )


def dequantised() -> dict[str, Any]:
    """Return what else `from_pretrained` of a model takes so that all its weights are plain numbers."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)  # before there was one, nothing could be left in blocks
    return {} if config is None else {"quantization_config": config(dequantize=True)}


@contextmanager
def counted() -> Iterator[None]:
    """Count tensors as ours while a file is read: transformers draws a bar that cannot be turned off."""
    from transformers import modeling_gguf_pytorch_utils as reader

    bar = getattr(reader, "tqdm", None)
    reader.tqdm = lambda tensors, desc: track(tensors, "dequantizing", "tensors")
    try:
        yield
    finally:
        reader.tqdm = bar


def forget_blocks(network: nn.Module) -> None:
    """Make a network that was read from a GGUF file an ordinary one, which can be saved.

    Its weights are plain by then, but transformers still counts it as quantised, and saves no such model.
    """
    quantizer = getattr(network, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(network)


def why(name: str, folder: str, file: str, error: Exception) -> str:
    """Say in a sentence why a model cannot be loaded from a GGUF file.

    Args:
        name: what the user called it.
        folder: the folder or hub name that it is in.
        file: its name there.
        error: what loading it raised.
    """
    said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    path = Path(folder, file)
    if Path(folder).is_dir() and not path.is_file():
        return f"there is no such file as {name}"
    if not Path(folder).is_dir():
        return f"neither a GGUF file nor one in a hub repository that can be reached ({said})"
    with path.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            return "it is no GGUF file, going by its first bytes"
    if "architecture" in said:
        return f"transformers cannot read GGUF files of this architecture ({said})"
    if "token" in said:
        return f"it holds no tokenizer that can be read ({said}): take a file that has one"
    return f"the GGUF file is cut short or damaged ({said})"


def _files(name: str) -> list[str]:
    """List the files of a folder or of a hub repository; nothing where that is not there or is known to be no GGUF."""
    if Path(name).exists():
        return [path.name for path in Path(name).iterdir()] if Path(name).is_dir() else []
    from huggingface_hub import list_repo_files, try_to_load_from_cache

    try:
        return [] if try_to_load_from_cache(name, "config.json") else list_repo_files(name)
    except Exception:  # it is no such name, or cannot be reached: loading it will say so
        return []
