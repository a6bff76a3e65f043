"""Bad exports: options that do not go together, outputs that cannot be, checkpoints that are none."""

import os
import pickle

import torch

from tests.robustness.bad_input import Bad


def export(*options, output="out", checkpoint=None, spoil=None):
    """Arguments of an export of a small dictionary that looks like a checkpoint.

    Args:
        options: what else is given.
        output: in the folder, which holds the file `taken` and the folder `full` with a file in it.
        checkpoint: what is saved.
        spoil: changes its bytes; `None` as its value: there is no file.
    """

    def arguments(folder, world):
        (folder / "taken").write_text("mine")
        (folder / "full").mkdir()
        (folder / "full" / "mine.txt").write_text("mine")
        path = folder / "batch-00000001.ckpt"
        torch.save({"editing": {}} if checkpoint is None else checkpoint, path)
        if spoil is not None:
            path.write_bytes(spoil(path.read_bytes()))
        return ["export", "--ckpt_path", str(path), "--output", str(folder / output), *options]

    return arguments


def flipped(data):
    middle = data.index(b"editing")
    return data[:middle] + b"E" + data[middle + 1 :]


def at(place):
    return lambda folder, world: ["export", "--ckpt_path", str(folder / place), "--output", str(folder / "out")]


def an_empty_folder(folder, world):
    (folder / "run").mkdir()
    return at("run")(folder, world)


def a_pipe(folder, world):
    os.mkfifo(folder / "pipe")
    return at("pipe")(folder, world)


CASES = [
    Bad("export-format-unknown", export("--format", "zip"), r"unknown --format 'zip': there are merged, delta, lora"),
    Bad("export-format-empty", export("--format", ""), r"unknown --format '': there are merged, delta, lora"),
    Bad("export-rank-zero", export("--format", "delta", "--rank", "0"), r"--rank is 0: it must be at least 1"),
    Bad("export-rank-negative", export("--format", "lora", "--rank", "-3"), r"--rank is -3: it must be at least 1"),
    Bad("export-rank-of-a-whole", export("--rank", "4"), r"--rank is for --format delta and lora"),
    Bad("export-rank-a-word", export("--format", "delta", "--rank", "all"), r"rank.*all"),
    Bad("export-tolerance-zero", export("--format", "lora", "--tolerance", "0"), r"--tolerance is 0: .*above 0"),
    Bad("export-tolerance-one", export("--format", "lora", "--tolerance", "1"), r"--tolerance is 1: .*below 1"),
    Bad("export-tolerance-nan", export("--format", "lora", "--tolerance", ".nan"), r"--tolerance is nan: .*above 0"),
    Bad("export-tolerance-of-a-delta", export("--format", "delta", "--tolerance", "0.1"), r"--tolerance chooses"),
    Bad("export-tolerance-and-rank", export("--format", "lora", "--tolerance", "0.1", "--rank", "2"), r"leave one out"),
    Bad("export-dtype-of-a-folder", export("--dtype", "f16"), r"--dtype is 'f16': it is for --format gguf"),
    Bad("export-dtype-unknown", export("--format", "gguf", "--dtype", "q4_0"), r"--dtype is 'q4_0': .* f16, q8_0"),
    Bad("export-file-of-gguf-taken", export("--format", "gguf", output="taken"), r"taken exists and .*another name"),
    Bad("export-private-alone", export("--private", "true"), r"--private is for --push_to_hub"),
    Bad("export-hub-name", export("--push_to_hub", "a/b/c"), r"--push_to_hub 'a/b/c' is no name of a repository"),
    Bad("export-folder-taken", export(output="taken"), r"taken exists and is no folder: choose another name"),
    Bad("export-folder-full", export(output="full"), r"full exists and is not empty: choose another folder"),
    Bad("export-file-taken", export("--format", "delta", output="taken"), r"taken exists and .*choose another name"),
    Bad("export-file-a-folder", export("--format", "delta", output="full"), r"full exists and .*choose another name"),
    Bad("export-parent-a-file", export(output="taken/out"), r"cannot write .*taken is a file, not a folder"),
    Bad("export-parents-a-file", export(output="taken/a/b"), r"cannot write .*taken is a file, not a folder"),
    Bad("export-file-below-a-file", export("--format", "delta", output="taken/x"), r"taken is a file, not a folder"),
    Bad("export-adapter-below-a-file", export("--format", "lora", output="taken/x"), r"taken is a file, not a folder"),
    Bad("export-name-too-long", export(output="x" * 300), r"cannot write .*xxx.*name too long"),
    Bad("export-checkpoint-missing", at("nowhere.ckpt"), r"nowhere.ckpt' is neither a checkpoint nor the folder"),
    Bad("export-run-empty", an_empty_folder, r"run' is neither a checkpoint nor the folder of a run"),
    Bad("export-checkpoint-a-pipe", a_pipe, r"pipe' is neither a checkpoint nor the folder of a run"),
    Bad("export-checkpoint-cut", export(spoil=lambda data: data[: len(data) // 2]), r"is damaged \(cut short"),
    Bad("export-checkpoint-flipped", export(spoil=flipped), r"is damaged \(the checksum of .* is wrong\)"),
    Bad("export-checkpoint-empty", export(spoil=lambda _: b""), r"is damaged \(cut short"),
    Bad("export-checkpoint-a-pickle", export(spoil=lambda _: pickle.dumps({})), r"is damaged \(cut short"),
    Bad("export-checkpoint-foreign", export(checkpoint={"state_dict": {}}), r"not a checkpoint of an editing run"),
    Bad("export-checkpoint-a-list", export(checkpoint=[1, 2]), r"not a checkpoint of an editing run"),
]
