"""Take the edits away: as the whole edited model, as their change alone, as a LoRA adapter, or as a memory beside."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from lke_lightning import checkpoints
from lke_lightning.composition import rebuild_readout
from lke_lightning.editor import Editor
from lke_lightning.edits import EditError
from lke_lightning.low_rank import LowRank, approximate
from lke_lightning.model.architecture import is_transposed
from lke_lightning.model.language_model import resolve
from lke_lightning.progress import work
from lke_lightning.results import check_free, replace, replace_folder, write_tensors

DELTA, DELTA_VERSION = "lke_lightning.delta", "1"
"""What a delta file calls its format, and the version of what is in it."""
TOLERANCE = 1e-3
"""Relative Frobenius error up to which a LoRA adapter is the change, unless another is asked for."""
SAMPLES = 32
"""How many entries of each unedited matrix go into a delta file, so that another base model is recognised."""


def export(
    ckpt_path: str,
    output: str,
    format: str = "merged",
    rank: int | None = None,
    tolerance: float | None = None,
    trust: list[str] | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Write the edits of a checkpoint as a plain transformers folder, their change, a LoRA adapter or a memory.

    Args:
        ckpt_path: a checkpoint that `fit` wrote, or the folder of its run, whose newest is taken.
        output: the folder to write (merged, lora, module), which must not exist or be empty, or the file to write
            (delta), which must not exist.
        format: `merged`: the edited model; `delta`: one safetensors file with the change of the edited matrices;
            `lora`: an adapter that peft loads; `module`: the memory beside the network, for methods that change no
            weight, and a Python file that attaches it to the unedited model without this package.
        rank: of the change of each matrix, for delta and lora: a lower one makes a smaller file with a larger error,
            which is printed. Default: the whole change for delta; for lora what `tolerance` asks.
        tolerance: for lora, the relative Frobenius error that each matrix may have; the rank follows from it. 1e-3 by
            default.
        trust: paths of classes outside of this package that the run's readout may be made of.
        trust_remote_code: run code that comes with the model.

    Raises:
        EditError: there is no such checkpoint or it is damaged, the output exists or cannot be written, options do not
            go together, or the rank that is asked for takes as much room as the whole change.
    """
    check(Path(output), format, rank, tolerance)
    editor = load(ckpt_path, tuple(trust or ()), trust_remote_code)
    with work(f"Writing {output}"):
        found = write(editor, Path(output), format, rank, tolerance)
    for name, low in found.items():
        print(f"{name}  rank {low.rank}  relative error {low.error:.2e}")
    print(f"{len(editor.edited)} edits written to {output}")


def load(ckpt_path: str | Path, trust: Sequence[str] = (), trust_remote_code: bool = False) -> Editor:
    """Return an editor as its checkpoint left it, on the CPU, with the readout of its method.

    Args:
        ckpt_path: a checkpoint, or the folder of a run.
        trust: paths of classes outside of this package that the readout may be made of.
        trust_remote_code: run code that comes with the model.

    Raises:
        EditError: there is none, it is damaged or of something else, or its base model is not there.
    """
    saved = checkpoints.read(checkpoints.find(ckpt_path))
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


def write(
    editor: Editor, output: Path, format: str = "merged", rank: int | None = None, tolerance: float | None = None
) -> dict[str, LowRank]:
    """Write the edits in a format; arguments, result and errors are those of the function that writes it.

    Raises:
        EditError: the format is unknown, or the options do not go together.
    """
    check(output, format, rank, tolerance)
    return _writer(format, rank, tolerance)(editor, output)


def check(output: Path, format: str, rank: int | None, tolerance: float | None) -> None:
    """Raise `EditError` unless options go together and the output is free; nothing has to be loaded for that."""
    _writer(format, rank, tolerance)
    check_free(output, is_folder=format != "delta")


@dataclass(frozen=True)
class Change:
    """What the edits changed in one matrix, as the model is read: after the method's readout."""

    matrix: nn.Module
    """The module whose weight it is, in the network."""
    base: Tensor
    """The unedited weight, in the network's dtype and as the network stores it."""
    total: Tensor
    """Live weight minus unedited weight before rounding to the network's dtype, (d_out, d_key), float32 or better."""

    def stored(self) -> Tensor:
        """Return the total change as the network stores the weight: transposed for GPT-2's Conv1D."""
        return self.total.T if is_transposed(self.matrix) else self.total


def changes(editor: Editor) -> dict[str, Change]:
    """Return what was changed, by the name that the weight has in the network's `state_dict`.

    Raises:
        EditError: a change is not finite.
    """
    _check_in_weights(editor)
    model = editor.language_model
    names = {id(parameter): name for name, parameter in model.network.named_parameters()}
    with editor.as_read():
        weights = [model.weight(layer) for layer in model.layers]
        return {names[id(w.matrix.weight)]: Change(w.matrix, w.base, w.delta.clone()) for w in weights}


def write_merged(editor: Editor, folder: Path) -> dict[str, LowRank]:
    """Write the edited model as a plain transformers folder; see `Editor.save_pretrained`.

    Raises:
        EditError: a change is not finite, or the folder is not empty or cannot be written.
    """
    _check_in_weights(editor)
    editor.save_pretrained(folder)
    return {}


def write_delta(editor: Editor, path: Path, rank: int | None = None) -> dict[str, LowRank]:
    """Write the change of the edited matrices as one safetensors file, whole or not at all.

    The same change gives the same bytes. Tensors are float32 or better and lie as the network stores its weights:
    `NAME` is the change of the weight of that name in the network's `state_dict`; with a rank, `NAME.up @ NAME.down`
    is. docs/export.md says what the metadata holds and how to apply the file.

    Args:
        editor: holds the model and its edits.
        path: the file.
        rank: of every matrix; `None` writes the whole change.

    Returns:
        With a rank, the approximation of each matrix, by name.

    Raises:
        EditError: the rank is below 1 or takes as much room as the whole change, a change is not finite, or the file
            exists or cannot be written.
    """
    check_free(path, is_folder=False)
    found = changes(editor)
    low = {} if rank is None else {name: approximate(name, change.stored(), rank) for name, change in found.items()}
    tensors = {name: change.stored().contiguous() for name, change in found.items() if name not in low}
    for name, part in low.items():
        tensors |= {f"{name}.up": part.up, f"{name}.down": part.down}
    metadata = {
        "format": DELTA,
        "version": DELTA_VERSION,
        "base_model": Path(editor.pretrained).name if Path(editor.pretrained).exists() else editor.pretrained,
        "base_hash": editor.language_model.base_hash,
        "base_sample": json.dumps({name: _sample(change.base) for name, change in found.items()}),
        "dtype": str(editor.language_model.network.dtype).removeprefix("torch."),
        "method": editor.method,
        "edits": str(len(editor.edited)),
        **({"relative_error": json.dumps({name: part.error for name, part in low.items()})} if low else {}),
    }
    replace(path, lambda file: write_tensors(file, tensors, metadata))
    return low


def write_lora(
    editor: Editor, folder: Path, rank: int | None = None, tolerance: float = TOLERANCE
) -> dict[str, LowRank]:
    """Write the change of the edited matrices as a LoRA adapter that peft loads, complete or not at all.

    Args:
        editor: holds the model and its edits.
        folder: where `adapter_config.json` and `adapter_model.safetensors` are written.
        rank: of every matrix; `None`: the lowest rank of each matrix that keeps `tolerance`.
        tolerance: the relative Frobenius error that each matrix may have; a larger one makes a smaller adapter.

    Returns:
        The approximation of each matrix, by the name of its weight in the network's `state_dict`.

    Raises:
        EditError: the rank is below 1 or takes as much room as the whole change (the message says which error a lower
            one would have), an edited matrix is of a kind that peft does not know, a change is not finite, or the
            folder is not empty or cannot be written.
    """
    check_free(folder, is_folder=True)
    found = changes(editor)
    for name, change in found.items():
        if not (isinstance(change.matrix, nn.Linear) or is_transposed(change.matrix)):
            raise EditError(f"{name} is of a {type(change.matrix).__name__}, not a linear layer: use --format delta")
    remedy = "use --format delta"
    low = {name: approximate(name, change.total, rank, tolerance, remedy) for name, change in found.items()}
    ranks = {name.removesuffix(".weight"): part.rank for name, part in low.items()}
    largest = max(ranks.values())
    others = {name: rank for name, rank in ranks.items() if rank != largest}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": resolve(editor.pretrained),
        "inference_mode": True,
        "target_modules": sorted(ranks),
        "fan_in_fan_out": any(is_transposed(change.matrix) for change in found.values()),
        "r": largest,
        "lora_alpha": largest,  # peft scales by alpha / r: the factors are the change as they are
        "rank_pattern": others,
        "alpha_pattern": others,
        "lora_dropout": 0.0,
        "bias": "none",
    }
    tensors = {}
    for name, part in low.items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        tensors |= {f"{prefix}.lora_A.weight": part.down, f"{prefix}.lora_B.weight": part.up}

    def write(unfinished: Path) -> None:
        (unfinished / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        with (unfinished / "adapter_model.safetensors").open("wb") as file:
            write_tensors(file, tensors, {"format": "pt"})

    replace_folder(folder, write)
    return low


def write_module(editor: Editor, folder: Path) -> dict[str, LowRank]:
    """Write the memory that stands beside the network as a folder, complete or not at all; docs/export.md.

    Raises:
        EditError: edits are in the weights or undone, the memory has no such form, or the folder is not empty or
            cannot be written.
    """
    check_free(folder, is_folder=True)
    model = editor.language_model
    if len(model.beside) != 1 or any(weight.delta.any() for weight in model.edited.values()):
        raise EditError("--format module is for edits that stand beside the weights: use merged, delta or lora")
    [module] = model.beside.values()
    if module.is_empty:
        raise EditError("no edit holds: there is nothing to export")
    tensors, about, program = module.exported()
    about |= {
        "base_model": Path(editor.pretrained).name if Path(editor.pretrained).exists() else editor.pretrained,
        "base_hash": model.base_hash,
        "sample": _sample(model.weight(model.target_layer).base),
        "method": editor.method,
        "edits": len(editor.edited),
    }

    def write(unfinished: Path) -> None:
        (unfinished / "memory.json").write_text(json.dumps(about, indent=2) + "\n")
        with (unfinished / "memory.safetensors").open("wb") as file:
            write_tensors(file, tensors, {"format": "pt"})
        (unfinished / "attach.py").write_text(program)

    replace_folder(folder, write)
    return {}


def _writer(format: str, rank: int | None, tolerance: float | None) -> Callable[[Editor, Path], dict[str, LowRank]]:
    """Return what writes a format, after the options were checked against it."""
    writers = {
        "merged": write_merged,
        "delta": partial(write_delta, rank=rank),
        "lora": partial(write_lora, rank=rank, tolerance=TOLERANCE if tolerance is None else tolerance),
        "module": write_module,
    }
    if format not in writers:
        raise EditError(f"unknown --format {format!r}: there are {', '.join(writers)}")
    if rank is not None and format in ("merged", "module"):
        raise EditError("--rank is for --format delta and lora: the others hold the whole change")
    if rank is not None and rank < 1:
        raise EditError(f"--rank is {rank}: it must be at least 1")
    if tolerance is not None and (format != "lora" or rank is not None):
        raise EditError("--tolerance chooses the ranks of --format lora where no --rank is given: leave one out")
    if tolerance is not None and not 0 < tolerance < 1:
        raise EditError(f"--tolerance is {tolerance:g}: it is a relative error, above 0 and below 1")
    return writers[format]


def _check_in_weights(editor: Editor) -> None:
    """Raise `EditError` unless the edits are finite changes of the weights, which is all that these formats hold."""
    for module in editor.language_model.beside.values():
        raise EditError(
            f"the edits are not in the weights but beside them, in a {type(module).__name__}, for which merged, delta "
            "and lora have no place: use --format module"
        )
    for layer in editor.language_model.layers:
        if not editor.language_model.weight(layer).delta.isfinite().all():
            raise EditError(
                f"the change of layer {layer} has entries that are not finite: export an earlier checkpoint of the run"
            )


def _sample(weight: Tensor) -> list[float]:
    count = min(SAMPLES, weight.numel())
    return weight.flatten()[:: weight.numel() // count][:count].tolist()
