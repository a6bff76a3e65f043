"""A tiny model whose matrices are changed by something known, and its checkpoint, to be exported."""

import torch
from transformers import AutoModelForCausalLM

from lke_lightning import run_folder
from lke_lightning.editor import Editor
from lke_lightning.edits import EditRequest
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_two.update import WeightUpdate
from lke_lightning.stages import Stages
from lke_lightning.testing import tiny_network, tiny_tokenizer

IDS = torch.tensor([[5, 6, 7, 8], [9, 3, 2, 4]])


def base(folder, family, seed=0, dtype=torch.float32):
    tiny_network(family, seed=seed).to(dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def edited(pretrained, dtype="float32", rank=3, noise=0.0, size=0.05):
    """An editor whose matrices are changed by something of a known rank, with or without noise on it."""
    editor = Editor(pretrained, dtype, layers=[0, 1, 3])
    editor.configure_model()
    torch.manual_seed(1)
    for weight in editor.language_model.edited.values():
        rows, columns = weight.delta.shape
        weight.add(size * torch.randn(rows, rank) @ torch.randn(rank, columns) + noise * torch.randn(rows, columns))
    requests = [EditRequest(str(i), prompt=f"{i} is", target="a") for i in range(7)]
    editor.register.enter(requests, range(7))
    return editor


def save(editor, path, readout=None):
    """Write a checkpoint as a run does; a readout is what its configuration says."""
    stages = Stages(TargetOptimization(), WeightUpdate())
    stages.two.memory = {layer: {} for layer in editor.language_model.layers}
    checkpoint = run_folder.write(path.parent / f"run-{path.stem}", None, editor, stages, [], batch_size=1).checkpoint
    if readout is not None:
        checkpoint["editing"]["configuration"] = {"stage_one": {}, "stage_two": {"readout": readout}}
    torch.save(checkpoint, path)
    return str(path)


def logits(network):
    with torch.no_grad():
        return network(IDS).logits


def fresh(pretrained, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(pretrained, dtype=dtype).eval()
