"""The command `export`: its options, the checkpoint that it reads, and the formats it writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lke_lightning import checkpoints
from lke_lightning.composition import rebuild_readout
from lke_lightning.editor import Editor
from lke_lightning.edits import EditError
from lke_lightning.export import delta, gguf, hub
from lke_lightning.export.lora import TOLERANCE, write_lora
from lke_lightning.export.merged import write_merged
from lke_lightning.export.module import write_module
from lke_lightning.progress import work
from lke_lightning.results import check_free

CARDS = {"delta": delta.card, "gguf": gguf.card}
"""Makes the model card of a format that is one file, and has none in it."""

Writer = Callable[..., Mapping[str, Any]]
"""Writes the edits of an editor to a path, and returns what it has to say of each matrix."""


@dataclass(frozen=True)
class Options:
    """What is asked of an export; see `export`.

    Args:
        format: one of `merged`, `delta`, `lora`, `module`, `gguf`.
        rank: of the change of each matrix, for delta and lora.
        tolerance: relative Frobenius error of each matrix, for lora without a rank.
        dtype: of the edited matrices, for gguf.
        push_to_hub: the repository on the hub to push to as well.
        private: make that repository a private one.

    Raises:
        EditError: they do not go together.
    """

    format: str = "merged"
    rank: int | None = None
    tolerance: float | None = None
    dtype: str | None = None
    push_to_hub: str | None = None
    private: bool = False

    def __post_init__(self) -> None:
        format, rank, tolerance = self.format, self.rank, self.tolerance
        if format not in self._writers():
            raise EditError(f"unknown --format {format!r}: there are {', '.join(self._writers())}")
        if rank is not None and format not in ("delta", "lora"):
            raise EditError("--rank is for --format delta and lora: the others hold the whole change")
        if rank is not None and rank < 1:
            raise EditError(f"--rank is {rank}: it must be at least 1")
        if tolerance is not None and (format != "lora" or rank is not None):
            raise EditError("--tolerance chooses the rank of --format lora where no --rank is given: leave one out")
        if tolerance is not None and not 0 < tolerance < 1:
            raise EditError(f"--tolerance is {tolerance:g}: it is a relative error, above 0 and below 1")
        if self.dtype is not None and (format != "gguf" or self.dtype not in gguf.DTYPES):
            raise EditError(f"--dtype is {self.dtype!r}: it is for --format gguf, and one of {', '.join(gguf.DTYPES)}")
        if self.private and self.push_to_hub is None:
            raise EditError("--private is for --push_to_hub: nothing is pushed without")

    def check(self, output: Path) -> None:
        """Raise `EditError` unless the output is free and can be pushed; nothing has to be loaded for that."""
        check_free(output, is_folder=self.format not in CARDS)
        if self.push_to_hub is not None:
            hub.check(self.push_to_hub)

    @property
    def writer(self) -> Writer:
        """What writes the format."""
        return self._writers()[self.format]

    def _writers(self) -> dict[str, Writer]:
        return {
            "merged": write_merged,
            "delta": partial(delta.write_delta, rank=self.rank),
            "lora": partial(write_lora, rank=self.rank, tolerance=self.tolerance or TOLERANCE),
            "module": write_module,
            "gguf": partial(gguf.write_gguf, dtype=self.dtype or gguf.DTYPES[0]),
        }


def export(
    ckpt_path: str,
    output: str,
    format: str = "merged",
    rank: int | None = None,
    tolerance: float | None = None,
    dtype: str | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
    trust: list[str] | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Write the edits of a checkpoint as a model, their change, a LoRA adapter, a memory or a GGUF file.

    Args:
        ckpt_path: a checkpoint that `fit` wrote, or the folder of its run, whose newest is taken.
        output: the folder to write (merged, lora, module), which must not exist or be empty, or the file to write
            (delta, gguf), which must not exist.
        format: `merged`: the edited model; `delta`: one safetensors file with the change of the edited matrices;
            `lora`: an adapter that peft loads; `module`: the memory beside the network, for methods that change no
            weight, and a Python file that attaches it to the unedited model without this package; `gguf`: the GGUF
            file that was edited, with the edited matrices in it.
        rank: of the change of each matrix, for delta and lora: a lower one makes a smaller file with a larger error,
            which is printed. Default: the whole change for delta; for lora what `tolerance` asks.
        tolerance: for lora, the relative Frobenius error that each matrix may have; the rank follows from it. 1e-3 by
            default.
        dtype: for gguf, of the edited matrices, `f16` or `q8_0`. f16 by default.
        push_to_hub: also push what was written to this repository of the Hugging Face Hub, which is made if it is not
            there: `owner/name`.
        private: make it a private one.
        trust: paths of classes outside of this package that the run's readout may be made of.
        trust_remote_code: run code that comes with the model.

    Raises:
        EditError: there is no such checkpoint or it is damaged, the output exists or cannot be written, options do not
            go together, the rank that is asked for takes as much room as the whole change, the model does not fit the
            format, or it cannot be pushed.
    """
    options = Options(format, rank, tolerance, dtype, push_to_hub, private)
    options.check(Path(output))
    saved = checkpoints.read(checkpoints.find(ckpt_path))
    editor = _restored(saved, tuple(trust or ()), trust_remote_code)
    with work(f"Writing {output}"):
        found = write(editor, Path(output), options, saved)
    for name, part in found.items():
        print(f"{name}  {part}")
    print(f"{len(editor.edited)} edits written to {output}")
    push(editor, Path(output), options, saved)


def load(ckpt_path: str | Path, trust: Sequence[str] = (), trust_remote_code: bool = False) -> Editor:
    """Return an editor as its checkpoint left it, on the CPU, with the readout of its method.

    Args:
        ckpt_path: a checkpoint, or the folder of a run.
        trust: paths of classes outside of this package that the readout may be made of.
        trust_remote_code: run code that comes with the model.

    Raises:
        EditError: there is none, it is damaged or of something else, or its base model is not there.
    """
    return _restored(checkpoints.read(checkpoints.find(ckpt_path)), trust, trust_remote_code)


def write(
    editor: Editor, output: Path, options: Options, checkpoint: Mapping[str, Any] | None = None
) -> Mapping[str, Any]:
    """Write the edits in a format.

    Args:
        editor: holds the model and its edits.
        output: the folder or the file.
        options: what is asked for.
        checkpoint: of the run, which has its scores and the identity of its data; `None`: there is none.

    Returns:
        What the format has to say of each matrix; see the function that writes it, also for its errors.

    Raises:
        EditError: the output is not free, or it cannot be written.
    """
    options.check(output)
    return options.writer(editor, output, checkpoint=checkpoint)


def push(editor: Editor, output: Path, options: Options, checkpoint: Mapping[str, Any] | None = None) -> None:
    """Push what was written, where that is asked for, and print its address; a file gets a model card beside it.

    Arguments are those of `write`.

    Raises:
        EditError: it cannot be pushed; what was written stays.
    """
    if options.push_to_hub is None:
        return
    card = CARDS[options.format](editor, checkpoint) if options.format in CARDS else None
    print(f"pushed to {hub.push(output, card, options.push_to_hub, options.private)}")


def _restored(saved: Mapping[str, Any], trust: Sequence[str], trust_remote_code: bool) -> Editor:
    configuration, made = saved["editing"]["configuration"], saved["editing"].get("readout")
    if not configuration and made:
        raise EditError(
            f"the run's readout {made} came from Python: use "
            "lke_lightning.resume(folder, stage_one=..., stage_two=...).export(output)"
        )
    readout = rebuild_readout(configuration, trust)
    editor = Editor.restored(saved, trust_remote_code=trust_remote_code)
    editor.readout = readout
    return editor
