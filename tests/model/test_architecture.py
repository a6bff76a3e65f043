"""Finding the places to edit, and saying clearly when there are none."""

import pytest
from torch import nn

from lke_lightning.edits import EditError
from lke_lightning.model.architecture import Architecture, layers_by_depth, matrix_shape
from lke_lightning.testing import tiny_network


@pytest.mark.parametrize(
    "family", ["gpt2", "llama", "gpt_neox", "gptj", "qwen3", "gemma2", "gemma3_text", "phi3", "opt"]
)
def test_finds_the_matrix_of_a_family(family):
    architecture = Architecture.of(tiny_network(family))
    assert len(architecture.blocks) == 4
    assert matrix_shape(architecture.matrix(2)) == (32, 64)


def renamed(network):
    for block in network.model.layers:
        block.mlp.odd, block.mlp.wider = block.mlp.down_proj, nn.Linear(64, 32)
        del block.mlp.down_proj
    return network


def test_an_unknown_model_lists_its_matrices_and_the_option():
    with pytest.raises(EditError, match=r"--model\.matrix") as caught:
        Architecture.of(renamed(tiny_network("llama")))
    assert "mlp.odd: 64 -> 32" in str(caught.value)


def test_a_matrix_can_be_named_by_hand():
    assert Architecture.of(renamed(tiny_network("llama")), "mlp.odd").matrix_name == "mlp.odd"
    with pytest.raises(EditError, match="not a matrix"):
        Architecture.of(tiny_network("llama"), "mlp.up_proj")


@pytest.mark.parametrize("layers", [[], [2, 1], [1, 1], [4], [-1]])
def test_impossible_layers_are_refused(layers):
    with pytest.raises(EditError, match="layers"):
        Architecture.of(tiny_network("llama")).check_layers(layers)


@pytest.mark.parametrize("count", [1, 2, 4, 12, 32, 48])
def test_proposed_layers_are_layers_that_can_be_edited(count):
    architecture = Architecture(nn.ModuleList([nn.Identity()] * count), "fc", 1)
    architecture.check_layers(layers_by_depth(count))
    with pytest.raises(EditError, match="no layers to edit"):
        architecture.check_layers([])
