"""Rounding to a few bits does what the benchmark says that it does."""

import pytest
import torch

from benchmarks.survival import cast, quantised, rounded
from lke_lightning.testing import tiny_network


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 64), (4, 48)])
def test_each_entry_goes_to_the_nearest_of_symmetric_levels(bits, group):
    torch.manual_seed(0)
    weight = torch.randn(5, 128)
    weight[2, :64] = 0
    largest, found = 2 ** (bits - 1) - 1, rounded(weight, bits, group)
    for row, near in zip(weight, found, strict=True):
        for part, close in zip(row.split(group or 128), near.split(group or 128), strict=True):
            levels = torch.arange(-largest, largest + 1) * part.abs().max() / largest
            best = (part.unsqueeze(1) - levels).abs().min(1).values
            torch.testing.assert_close((part - close).abs(), best, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_quantising_takes_the_matrices_of_the_blocks_alone(family):
    network, before = tiny_network(family).float(), tiny_network(family).float().state_dict()
    blocks = network.model.layers if family == "llama" else network.transformer.h
    with torch.no_grad():
        quantised(4, 64)(network, blocks)
    changed = {name for name, weight in network.state_dict().items() if not torch.equal(weight, before[name])}
    inside = {name for name in before if before[name].dim() == 2 and (".layers." in name or ".h." in name)}
    assert changed == inside


def test_casting_rounds_all_weights_and_keeps_their_dtype():
    network = tiny_network("llama").float()
    with torch.no_grad():
        cast(torch.bfloat16)(network, network.model.layers)
    for weight in network.parameters():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, weight.bfloat16().float())
