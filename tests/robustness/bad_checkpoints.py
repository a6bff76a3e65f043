"""Bad checkpoints: damaged, changed by other programs, older, of something else; for every command that reads one."""

import io
import os
import pickle
import shutil
import zipfile

import torch

from lke_lightning import checkpoints
from tests.robustness.bad_input import Bad

COMMANDS = {
    "fit": ["fit", "--trainer.default_root_dir", "RUN", "--ckpt_path", "last"],
    "fit-from": ["fit", "--ckpt_path", "RUN"],
    "validate": ["validate", "--ckpt_path", "RUN"],
    "export": ["export", "RUN", "--output", "PLACE/out", "--format", "delta"],
    "undo": ["undo", "RUN", "--edit", "3"],
    "redo": ["redo", "RUN", "--edit", "0"],
    "log": ["log", "RUN"],
    "show": ["show", "RUN", "3"],
}


def on(command, folder):
    return [word.replace("RUN", str(folder / "run")).replace("PLACE", str(folder)) for word in COMMANDS[command]]


def run_with(command, change=None, spoil=None, only=False):
    """Arguments of a command about a copy of the finished run whose newest checkpoint is bad.

    Args:
        command: one of `COMMANDS`.
        change: changes what the checkpoint holds.
        spoil: changes its bytes, or its path where it takes the place of the file.
        only: whether it is the run's only checkpoint.
    """

    def arguments(folder, world):
        shutil.copytree(world / "run", folder / "run", symlinks=True)
        path = checkpoints.newest(folder / "run")
        for other in path.parent.glob("batch-*.ckpt") if only else ():
            if other != path:
                other.unlink()
        if change is not None:
            held = torch.load(path, weights_only=True)
            torch.save(change(held) or held, path)
        if spoil is not None:
            path.write_bytes(spoil(path.read_bytes()))
        return on(command, folder)

    return arguments


def without(path):
    """Take out a part, by its path."""
    *above, last = path.split(".")

    def change(held):
        for name in above:
            held = held[name]
        del held[last]

    return change


def having(path, value):
    """Replace a part, by its path, with a value or with what a function makes of it."""
    *above, last = path.split(".")

    def change(held):
        for name in above:
            held = held[name]
        held[last] = value(held[last]) if callable(value) else value

    return change


def delta(make):
    def change(held):
        name = next(name for name in held["state_dict"] if name.endswith("delta"))
        held["state_dict"][name] = make(held["state_dict"][name])

    return change


def flipped(data):
    middle = data.index(b"editing")
    return data[:middle] + b"E" + data[middle + 1 :]


def flipped_tensor(data):
    """Change one bit of the largest tensor."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    place = largest.header_offset + 200 + largest.file_size // 2
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def instead(make):
    """Put something else in the place of the newest checkpoint."""

    def change(command):
        def arguments(folder, world):
            shutil.copytree(world / "run", folder / "run", symlinks=True)
            path = checkpoints.newest(folder / "run")
            path.unlink()
            make(path)
            return on(command, folder)

        return arguments

    return change


class Payload:
    def __reduce__(self):
        return (print, ("this ran",))


def holds_itself(held):
    held["editing"]["configuration"]["stage_two"]["solver"]["init_args"]["again"] = held["editing"]["configuration"]


def unfolds(held):
    part = ["x"] * 10
    for _ in range(9):
        part = [part] * 10
    held["editing"]["configuration"]["stage_two"]["more"] = part


def of_another_layer(held):
    held["editing"]["layers"] = [0]
    held["callbacks"]["WeightUpdate"]["memory"].pop("1")


SOLVER = "editing.configuration.stage_two.solver"
MEMORY = "callbacks.WeightUpdate.memory"
STAGE_STATES = "callbacks.TargetOptimization.contexts"
LACKS = "lacks {}, or holds something else"

CASES = [
    # parts that are not there; every command says which
    *(Bad(f"checkpoint-{command}-without-{part}", run_with(command, without(part)), LACKS.format(part))
      for command, part in [
          ("fit", "state_dict"), ("fit", "callbacks.WeightUpdate"), ("fit", "loops"), ("fit", "editing.stream.ends"),
          ("fit-from", "editing.random"), ("validate", "editing.configuration"), ("validate", "callbacks"),
          ("export", "hyper_parameters"), ("export", "editing.register.states"), ("export", "editing.base_hash"),
          ("undo", MEMORY), ("undo", STAGE_STATES), ("undo", "callbacks.Recorder"), ("redo", "global_step"),
          ("redo", "editing.chat"), ("log", "editing.register"), ("log", "editing.register.groups"),
          ("show", "callbacks.Recorder.size"), ("show", "editing.seconds"),
      ]),
    *(Bad(f"checkpoint-{command}-without-format", run_with(command, without("editing.format")), "format 1, .*format 2")
      for command in COMMANDS),
    *(Bad(f"checkpoint-{command}-of-a-later-format", run_with(command, having("editing.format", 99)), "format 99")
      for command in ("fit", "export")),
    Bad("checkpoint-format-a-word", run_with("export", having("editing.format", "two" * 99)), "format twotwo"),
    Bad("checkpoint-of-another-program", run_with("fit", without("editing")), "is not a checkpoint of an editing run"),
    # wrong types
    *(Bad(f"checkpoint-{command}-{part}-of-another-type", run_with(command, having(part, value)), LACKS.format(part))
      for command, part, value in [
          ("fit", "global_step", "many"), ("fit", "editing.layers", ["0", "1"]), ("fit", STAGE_STATES, [1]),
          ("validate", "state_dict", {"clock": 0.5}), ("export", "state_dict", [1, 2]),
          ("export", "hyper_parameters", {1: 2}), ("undo", MEMORY, {"0": [1]}), ("undo", "editing.register.ids", [1]),
          ("redo", "editing.register.replaces", ["a"]), ("log", "editing.register.facts", [1]),
          ("log", "callbacks.Recorder.size", True), ("show", "editing.register", 3),
      ]),
    # parts of the right type that cannot be
    Bad("checkpoint-register-of-unlike-lengths", run_with("log", having("editing.register.ids", ["0"])), "contradicts"),
    Bad("checkpoint-register-of-unknown-states",
        run_with("undo", having("editing.register.states", lambda states: ["gone" for _ in states])), "contradicts"),
    Bad("checkpoint-register-beyond-its-end",
        run_with("show", having("editing.register.replaces", lambda found: [99 for _ in found])), "contradicts"),
    Bad("checkpoint-ledger-of-negative-length", run_with("undo", having("callbacks.Recorder.size", -5)), "length of"),
    Bad("checkpoint-negative-batches", run_with("undo", having("global_step", -1)), "number of batches"),
    Bad("checkpoint-memory-of-other-layers", run_with("undo", of_another_layer), "layers", True),
    Bad("checkpoint-memory-empty", run_with("export", having(MEMORY, {})), "layers of its memory"),
    Bad("checkpoint-stages-hold-themselves", run_with("undo", holds_itself), "its stages .*cannot be"),
    Bad("checkpoint-stages-unfold", run_with("export", unfolds), "its stages .*cannot be"),
    Bad("checkpoint-memory-lacks-a-part",
        run_with("undo", having(MEMORY, lambda memory: {layer: {} for layer in memory})), "memory of past edits", True),
    Bad("fit-memory-lacks-a-part",
        run_with("fit", having(MEMORY, lambda memory: {layer: {} for layer in memory})), "memory of past edits", True),
    Bad("checkpoint-random-numbers-of-no-generator",
        run_with("fit", having("editing.random.torch", torch.zeros(3, dtype=torch.uint8))), "random numbers"),
    Bad("checkpoint-loops-of-another-program", run_with("fit", having("loops", {"x": 1})), r"lacks loops\.fit", True),
    Bad("checkpoint-scorecard-lacks-a-part", run_with("fit", without("callbacks.Scorecard.said")), "Scorecard", True),
    Bad("checkpoint-digests-of-no-list", run_with("fit", having("editing.stream.digests", torch.tensor(1))),
        "state of the run", True),
    # numbers, shapes and names of the change
    *(Bad(f"checkpoint-{command}-delta-nan", run_with(command, delta(lambda d: d.fill_(torch.nan))), "not finite in",
          loads_model=command in ("fit", "validate")) for command in ("fit", "validate", "export", "undo")),
    Bad("checkpoint-delta-infinite", run_with("export", delta(lambda d: d * torch.inf)), "not finite in"),
    Bad("checkpoint-delta-of-another-shape", run_with("export", delta(lambda d: d[:2])), "change of the weights", True),
    Bad("checkpoint-delta-gone", run_with("export", having("state_dict", {})), "lacks", True),
    Bad("checkpoint-delta-unknown",
        run_with("undo", having("state_dict.more", torch.zeros(1))), "unknown .*more", True),
    # another model, other layers, another method
    Bad("checkpoint-of-another-model", run_with("export", having("editing.base_hash", "0" * 16)), "another base", True),
    Bad("checkpoint-of-a-model-that-is-gone",
        run_with("undo", having("hyper_parameters.pretrained", "/gone")), "cannot load .*'/gone'"),
    Bad("checkpoint-layers-of-another-model",
        run_with("export", having("hyper_parameters.layers", [0, 99])), "99", True),
    Bad("checkpoint-of-another-chat",
        run_with("fit", having("editing.chat", {"chat": True, "system": None})), "asks its prompts", True),
    Bad("checkpoint-with-an-unknown-setting", run_with("export", having("hyper_parameters.lyers", [0])), "'lyers'"),
    Bad("checkpoint-layers-a-word", run_with("undo", having("hyper_parameters.layers", "all")), "'layers'"),
    Bad("checkpoint-dtype-unknown", run_with("export", having("hyper_parameters.dtype", "float31")), "float31"),
    # stages that cannot be made
    *(Bad(f"checkpoint-solver-{name}", run_with("undo", having(SOLVER, value)), says) for name, value, says in [
        ("a-number", 5, "WeightUpdate do not fit .*solver cannot be of type int"),
        ("a-path", "evilmod.Solver", "WeightUpdate do not fit .*solver cannot be of type str"),
        ("of-another-kind", {"class_path": "lke_lightning.stage_two.keys.ContextMean"}, "solver cannot be of type Con"),
        ("that-is-gone", {"class_path": "lke_lightning.stage_two.solvers.Gone"}, "Gone.*is not there"),
        ("of-python", {"class_path": "os.system", "init_args": {}}, "no part of lke_lightning.*--trust os.system"),
        ("of-other-settings", {"class_path": "lke_lightning.stage_two.solvers.LeastSquares",
                               "init_args": {"weigth": 1}}, "LeastSquares do not fit this version.*weigth"),
        ("without-dicts", {"class_path": "lke_lightning.stage_two.solvers.LeastSquares", "init_args": [1]},
         "LeastSquares do not fit this version"),
    ]),
    Bad("checkpoint-readout-a-path",
        run_with("export", having("editing.configuration.stage_two.readout", "evilmod.X")), "readout is of type str"),
    Bad("checkpoint-made-from-python", run_with("undo", having("editing.configuration", {})), "came from Python"),
    # bytes
    *(Bad(f"checkpoint-{command}-cut", run_with(command, spoil=lambda data: data[: len(data) // 2]),
          r"damaged .*--ckpt_path .*batch-0000") for command in COMMANDS),
    *(Bad(f"checkpoint-{command}-flipped", run_with(command, spoil=flipped), "damaged") for command in COMMANDS),
    *(Bad(f"checkpoint-{command}-tensor-flipped", run_with(command, spoil=flipped_tensor), "checksum",
          loads_model=command in ("fit", "validate")) for command in ("fit", "validate", "export", "undo")),
    *(Bad(f"checkpoint-{command}-empty", run_with(command, spoil=lambda _: b""), "damaged")
      for command in ("fit", "validate", "log", "show")),
    Bad("checkpoint-only-one-and-cut",
        run_with("log", spoil=lambda data: data[:999], only=True), "damaged .*there is no other beside it"),
    *(Bad(f"checkpoint-{command}-a-pickle",
          instead(lambda path: path.write_bytes(pickle.dumps(Payload())))(command), "damaged|holds more than tensors")
      for command in ("fit", "undo", "export", "log")),
    *(Bad(f"checkpoint-{command}-with-a-pickle",
          instead(lambda path: torch.save({"editing": Payload()}, path))(command), "holds more than tensors")
      for command in ("fit", "validate", "undo", "export", "log")),
    *(Bad(f"checkpoint-{command}-a-folder", instead(lambda path: path.mkdir())(command), r"batch-00000005\.ckpt")
      for command in ("fit", "undo", "export", "log")),
    Bad("checkpoint-text", instead(lambda path: path.write_text("hello"))("validate"), "damaged"),
    Bad("checkpoint-a-link-to-nowhere", instead(lambda path: path.symlink_to("gone"))("fit"), "checkpoint"),
    Bad("checkpoint-a-pipe", instead(os.mkfifo)("export"), "checkpoint"),
    Bad("checkpoint-of-lists", instead(lambda path: torch.save([1], path))("show"), "not a checkpoint of an editing"),
]  # fmt: skip
