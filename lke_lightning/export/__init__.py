"""Edits taken away: a model, its change alone, a LoRA adapter, a GGUF file or a memory beside the network."""

from lke_lightning.export.change import Change, changes
from lke_lightning.export.command import Options, export, load, push, write
from lke_lightning.export.delta import write_delta
from lke_lightning.export.gguf import write_gguf
from lke_lightning.export.lora import write_lora
from lke_lightning.export.merged import write_merged
from lke_lightning.export.module import write_module

__all__ = [
    "Change",
    "Options",
    "changes",
    "export",
    "load",
    "push",
    "write",
    "write_delta",
    "write_gguf",
    "write_lora",
    "write_merged",
    "write_module",
]
