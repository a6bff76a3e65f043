"""Every family passes every test of `FamilyConformance`."""

import pytest
import torch
from torch import nn

from lke_lightning.edits import EditError
from lke_lightning.model.architecture import Architecture, matrix_shape
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.testing import FamilyConformance, tiny_network, tiny_tokenizer
from tests.families.families import FAMILIES

for _name, _family in FAMILIES.items():
    _class = "Test_" + _name.replace("-", "_")
    globals()[_class] = type(_class, (FamilyConformance,), {"family": _family.kind, "changes": _family.changes})


class TestByStructureAlone(FamilyConformance):
    """A network whose matrix has a name that nobody knows: the one that leads from a wider space back."""

    def make_network(self, **changes):
        network = tiny_network("llama", **changes)
        for block in network.model.layers:
            block.mlp.back = block.mlp.down_proj
            del block.mlp.down_proj
            block.mlp.forward = lambda x, mlp=block.mlp: mlp.back(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x))
        return network

    def test_an_edited_model_saves_and_loads_as_a_plain_folder(self, tmp_path):
        assert self.model.architecture.matrix_name == "mlp.back"  # no class of transformers reads such a folder


@pytest.mark.parametrize("name", FAMILIES)
def test_where_targets_live_follows_from_the_structure(name):
    family = FAMILIES[name]
    model = LanguageModel(tiny_network(family.kind, **family.changes), tiny_tokenizer(), [1, 2])
    assert model.site == family.site
    assert matrix_shape(model.architecture.attention_matrix(2))[0] == model.architecture.hidden_size


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_where_targets_live_is_found_beside_a_padding_token_of_zeros(name):
    network = tiny_network(FAMILIES[name].kind, **FAMILIES[name].changes)
    network.get_input_embeddings().weight.data[0] = 0
    assert LanguageModel(network, tiny_tokenizer(), [1, 2]).site == FAMILIES[name].site


def refused(network, reason):
    with pytest.raises(EditError, match=reason) as caught:
        LanguageModel(network, tiny_tokenizer(), [1, 2])
    return str(caught.value)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "olmoe", "granitemoe", "phimoe", "gpt_oss"])
def test_a_mixture_of_experts_is_refused(kind):
    from transformers import AutoConfig

    # what a configuration calls the number of experts, cut to two
    names = ("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size")
    known = AutoConfig.for_model(kind).to_dict()
    small = {name: value for name, value in zip(names, (2, 2, 1, 16), strict=True) if name in known}
    refused(tiny_network(kind, **small), "mixture of experts")


def test_a_mixture_of_experts_behind_dense_layers_is_refused_for_its_own_layers():
    network = tiny_network("llama")
    network.model.layers[2].mlp.experts = nn.ModuleList([nn.Linear(2, 2)])
    assert "layer 2" in refused(network, "mixture of experts")
    assert LanguageModel(network, tiny_tokenizer(), [0, 1]).layers == [0, 1]


def test_an_encoder_decoder_model_is_refused():
    network = tiny_network("llama")
    network.config.is_encoder_decoder = True
    refused(network, "encoder-decoder")


@pytest.mark.parametrize("kind", ["mamba", "lfm2"])
def test_a_recurrent_state_is_refused(kind):
    changes = {"layer_types": ["conv", "full_attention"] * 2} if kind == "lfm2" else {}
    refused(tiny_network(kind, **changes), "recurrent state")


def test_shared_keys_and_values_are_refused():
    network = tiny_network("llama")
    network.config.num_kv_shared_layers = 2
    refused(network, "keys and values of earlier")


def test_a_model_on_several_devices_is_refused():
    network = tiny_network("llama")
    network.hf_device_map = {"model.embed_tokens": 0, "model.layers.0": "cpu"}
    assert "cpu" in refused(network, "device_map")
    network.hf_device_map = {"": "cpu"}
    LanguageModel(network, tiny_tokenizer(), [1])


def test_weights_that_are_not_loaded_are_refused():
    refused(tiny_network("llama").to("meta"), "not loaded")


def test_a_quantised_matrix_is_refused_with_what_to_do():
    network = tiny_network("llama")
    weight = network.model.layers[1].mlp.down_proj.weight
    network.model.layers[1].mlp.down_proj.weight = nn.Parameter(weight.to(torch.int8), requires_grad=False)
    assert "modules_to_not_convert" in refused(network, "layer 1 is quantised")
    LanguageModel(network, tiny_tokenizer(), [2])


def test_a_matrix_that_a_layer_lacks_is_named():
    network = tiny_network("llama")
    del network.model.layers[2].mlp.down_proj
    refused(network, "layer 2 has no matrix")


def test_blocks_of_a_model_that_also_sees_are_its_decoders():
    network = tiny_network("llama")
    network.eyes = nn.ModuleList([nn.Linear(2, 2) for _ in range(4)])
    assert Architecture.of(network).blocks is network.model.layers
