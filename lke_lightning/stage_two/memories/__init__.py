"""Editors that leave the weights as they are, and remember edits in a module beside the network."""

from lke_lightning.stage_two.memories.grace import Grace
from lke_lightning.stage_two.memories.memoir import Memoir
from lke_lightning.stage_two.memories.neuraldb import NeuralDB
from lke_lightning.stage_two.memories.wise import Wise

__all__ = ["Grace", "Memoir", "NeuralDB", "Wise"]
