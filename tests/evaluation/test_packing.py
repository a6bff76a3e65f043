"""Scores that are packed and unpacked, bit for bit."""

import math
import random
import struct

import pytest
import torch

from lke_lightning.evaluation.packing import pack, unpack


def scored(number):
    """Make up scores with what is awkward: nothing asked, undefined values, kinds that others lack."""
    chance = random.Random(number)
    rows = [[chance.random(), math.nan, 1.0] for _ in range(number % 3)]
    scores = {
        "efficacy": torch.tensor([[chance.random(), math.nan, 0.0]], dtype=torch.float64),
        "neighborhood": torch.tensor(rows, dtype=torch.float64).reshape(-1, 3),
        "neighborhood/says": torch.arange(number % 4, dtype=torch.int32),
        "neighborhood/said": torch.tensor([chance.getrandbits(62)] * (number % 3), dtype=torch.int64),
    }
    if number % 2:
        scores["two_hop"] = torch.zeros(0, 3, dtype=torch.float64) if number % 5 else torch.ones(2, 3).double()
    return scores


def bits(tensor):
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().view(-1).view(torch.uint8).tolist()


@pytest.mark.parametrize("count", [0, 1, 2, 31])
def test_every_bit_comes_back(count):
    scores = {f"edit {number}": scored(number) for number in range(count)}
    odd = struct.unpack("<d", struct.pack("<Q", 0x7FF800000000BEEF))[0]  # a NaN of its own
    for part in scores.values():
        part["efficacy"][0, 0] = odd
    restored = unpack(pack(scores))
    assert list(restored) == list(scores)
    for name, part in scores.items():
        assert restored[name].keys() == part.keys()
        assert {kind: bits(value) for kind, value in restored[name].items()} == {k: bits(v) for k, v in part.items()}


def test_packing_what_was_unpacked_gives_the_same():
    packed = pack({str(number): scored(number) for number in range(20)})
    again = pack(unpack(packed))
    assert again["ids"] == packed["ids"]
    for kind, parts in packed["kinds"].items():
        assert {name: bits(part) for name, part in again["kinds"][kind].items()} == {
            name: bits(part) for name, part in parts.items()
        }
