"""The change of the edited matrices as one safetensors file, with a checksum of what is in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lke_lightning.editor import Editor
from lke_lightning.export.card import about
from lke_lightning.export.change import changes, sample
from lke_lightning.low_rank import LowRank, approximate
from lke_lightning.results import check_free, replace, write_tensors

DELTA, DELTA_VERSION = "lke_lightning.delta", "1"
"""What a delta file calls its format, and the version of what is in it."""
UNDO = """Where the file was added to the base model by the function `apply_delta` of lke_lightning's docs/export.md,
`network.load_state_dict(kept, strict=False)` takes it away, bit for bit. Single edits are taken back, exactly where the
method allows it, on the run that made this: `python -m lke_lightning undo RUN --edit ID`, then `export` again."""


def write_delta(
    editor: Editor, path: Path, rank: int | None = None, checkpoint: Mapping[str, Any] | None = None
) -> dict[str, LowRank]:
    """Write the change of the edited matrices as one safetensors file, whole or not at all.

    The same change gives the same bytes. Tensors are float32 or better and lie as the network stores its weights:
    `NAME` is the change of the weight of that name in the network's `state_dict`; with a rank, `NAME.up @ NAME.down`
    is. docs/export.md says what the metadata holds and how to apply the file.

    Args:
        editor: holds the model and its edits.
        path: the file.
        rank: of every matrix; `None` writes the whole change.
        checkpoint: of the run, for the metadata.

    Returns:
        With a rank, the approximation of each matrix, by name.

    Raises:
        EditError: the rank is below 1 or takes as much room as the whole change, a change is not finite, or the file
            exists or cannot be written.
    """
    check_free(path, is_folder=False)
    found = changes(editor)
    low = {} if rank is None else {name: approximate(name, change.stored(), rank) for name, change in found.items()}
    tensors = {name: change.stored().cpu().contiguous() for name, change in found.items() if name not in low}
    for name, part in low.items():
        tensors |= {f"{name}.up": part.up.cpu(), f"{name}.down": part.down.cpu()}
    metadata = {
        **about(editor, found, checkpoint).in_short(),
        "format": DELTA,
        "version": DELTA_VERSION,
        "base_sample": json.dumps({name: sample(change.base) for name, change in found.items()}),
        **({"relative_error": json.dumps({name: part.error for name, part in low.items()})} if low else {}),
    }
    replace(path, lambda file: write_tensors(file, tensors, metadata | {"checksum": checksum(metadata, tensors)}))
    return low


def card(editor: Editor, checkpoint: Mapping[str, Any] | None = None) -> str:
    """Return the model card that goes beside such a file; arguments are those of `write_delta`."""
    return about(editor, changes(editor), checkpoint).card(None, "adapter", UNDO)


def checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Hash the metadata of a delta, without its checksum, and its tensors (sha256, 64 hex digits); docs/export.md."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()
