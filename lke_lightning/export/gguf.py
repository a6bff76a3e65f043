"""An edited model back into a GGUF file: its own file with other numbers in the edited matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lke_lightning.editor import Editor
from lke_lightning.edits import EditError
from lke_lightning.export.card import about
from lke_lightning.export.change import Change, changes
from lke_lightning.model.architecture import is_transposed
from lke_lightning.model.gguf import check_installed, file_of, opened
from lke_lightning.model.language_model import resolve
from lke_lightning.results import check_free, replace_file

DTYPES = ("f16", "q8_0")
"""What the edited matrices are written as, half precision unless another is asked for."""
PREFIX = "lke_lightning."
"""How the keys begin under which a file tells of its edits."""
UNDO = """The unedited model is the GGUF file that was edited. Single edits are taken back, exactly where the method
allows it, on the run that made this: `python -m lke_lightning undo RUN --edit ID`, then `export` again."""


@dataclass(frozen=True)
class Stored:
    """An edited matrix as a file holds it."""

    name: str
    """What the file calls it."""
    dtype: str
    """One of `DTYPES`."""
    blocks: Any
    """The numpy array that the file holds, of bytes where the dtype has blocks."""
    error: float
    """Frobenius norm of what rounding changed over that of the edits' change."""

    def __str__(self) -> str:
        """Say what it is for the user."""
        return f"{self.dtype}  relative error {self.error:.2e}"


def write_gguf(
    editor: Editor, path: Path, dtype: str = DTYPES[0], checkpoint: Mapping[str, Any] | None = None
) -> dict[str, Stored]:
    """Write an edited model that was read from a GGUF file as one, whole or not at all.

    Metadata, tokenizer and all other tensors are those of the file that was read, bit for bit; the edited matrices are
    its own values, dequantised, plus the change, rounded once. What is known of the edits is under `lke_lightning.*`.

    Args:
        editor: holds the model and its edits.
        path: the file.
        dtype: of the edited matrices, one of `DTYPES`: 16 bits, or blocks of 32 with 8 bits each and a scale.
        checkpoint: of the run, for the metadata.

    Returns:
        The edited matrices, by the name of their weight in the network's `state_dict`.

    Raises:
        EditError: the model was not read from such a file, a matrix of it is not there as it was read, the dtype
            cannot hold a matrix, a change is not finite, or the file exists or cannot be written.
    """
    check_free(path, is_folder=False)
    source = file_of(resolve(editor.pretrained))
    if source is None:
        raise EditError(
            f"{editor.pretrained!r} is no GGUF file: use --format merged, and make one of that folder with llama.cpp's "
            "convert_hf_to_gguf.py"
        )
    check_installed(str(source))
    found, reader = changes(editor), opened(source)
    names = _names(reader, list(found))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    stored = {name: _stored(names[name], tensors.get(names[name]), found[name], dtype) for name in found}
    facts = about(editor, found, checkpoint).in_short()
    replace_file(
        path, lambda unfinished: _copy(reader, unfinished, {part.name: part for part in stored.values()}, facts)
    )
    return stored


def card(editor: Editor, checkpoint: Mapping[str, Any] | None = None) -> str:
    """Return the model card that goes beside such a file; arguments are those of `write_gguf`."""
    return about(editor, changes(editor), checkpoint).card(None, "finetune", UNDO)


def _names(reader: Any, weights: list[str]) -> dict[str, str]:
    """Return what a file calls some weights of the network.

    Raises:
        EditError: `gguf` has no name for one of them.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = reader.fields["general.architecture"].contents()
    blocks = reader.fields[f"{architecture}.block_count"].contents()
    kinds = {name: kind for kind, name in MODEL_ARCH_NAMES.items()}
    names = get_tensor_name_map(kinds[architecture], blocks)
    found = {weight: names.get_name(weight, try_suffixes=(".weight",)) for weight in weights}
    known = {weight: name for weight, name in found.items() if name is not None}
    unknown = [weight for weight in found if weight not in known]
    if unknown:
        raise EditError(f"the package gguf has no name for {unknown[0]} of {architecture}: use --format merged")
    return known


def _stored(name: str, tensor: Any, change: Change, dtype: str) -> Stored:
    """Round an edited matrix to a dtype.

    Args:
        name: what the file calls it.
        tensor: the unedited matrix in the file; `None`: it has none of that name.
        change: what the edits changed in it.
        dtype: one of `DTYPES`.

    Raises:
        EditError: the file's matrix is not the one that was edited, or the dtype cannot hold it.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import QuantError, dequantize, quantize

    base = None if tensor is None else torch.from_numpy(dequantize(tensor.data, tensor.tensor_type)).float()
    if base is None or not _is_same(base, change):
        raise EditError(
            f"{name} in the GGUF file is not the matrix that was edited: the file was changed, or transformers turns "
            "it round in a way that is not known here; use --format merged"
        )
    kind, edited = GGMLQuantizationType[dtype.upper()], base + change.total.cpu().float()
    try:
        blocks = quantize(edited.numpy(), kind)
    except QuantError as error:  # rows that are no whole number of blocks
        raise EditError(f"{name} cannot be written in {dtype} ({error}): use --dtype f16") from error
    back = torch.from_numpy(dequantize(blocks, kind)).float()
    if not back.isfinite().all():
        raise EditError(f"{name} has entries that {dtype} has no room for: use --format merged")
    size = torch.linalg.matrix_norm(change.total).item()
    return Stored(name, dtype, blocks, torch.linalg.matrix_norm(back - edited).item() / size if size > 0 else 0.0)


def _is_same(base: Tensor, change: Change) -> bool:
    """Tell whether a matrix of the file (d_out, d_key) is the unedited one, as far as the network's dtype tells."""
    known = change.base.cpu().float()
    known = known.T if is_transposed(change.matrix) else known
    slack = 4 * torch.finfo(change.base.dtype).eps
    return known.shape == base.shape and torch.allclose(base, known, slack, slack * base.abs().max().item())


def _copy(reader: Any, path: Path, replaced: Mapping[str, Stored], facts: Mapping[str, str]) -> None:
    """Write a file anew with some of its tensors replaced, and with what is known of the edits."""
    from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

    fields = reader.fields
    writer = GGUFWriter(path, fields["general.architecture"].contents())
    if "general.alignment" in fields:
        writer.add_custom_alignment(fields["general.alignment"].contents())
    for name, field in fields.items():
        # the writer makes the first ones itself; of an edited file that is edited again, the last edits count
        if name.startswith(("GGUF.", "general.architecture", "general.alignment", PREFIX)):
            continue
        value = field.contents()
        if value != []:  # which the writer refuses
            kind = field.types[0]
            writer.add_key_value(name, value, kind, field.types[-1] if kind == GGUFValueType.ARRAY else None)
    for name, text in facts.items():
        writer.add_string(PREFIX + name, text)
    for tensor in reader.tensors:
        part = replaced.get(tensor.name)
        if part is None:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        else:
            writer.add_tensor(tensor.name, part.blocks, raw_dtype=GGMLQuantizationType[part.dtype.upper()])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
