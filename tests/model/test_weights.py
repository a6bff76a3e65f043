"""The change of a weight: exact, in float32 beside a bfloat16 model, and undone to the bit."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lke_lightning.model.weights import EditedWeight


@pytest.mark.parametrize("matrix", [nn.Linear(6, 4), Conv1D(4, 6), Conv1D(5, 5)], ids=["linear", "conv1d", "square"])
def test_add_changes_outputs_by_update_times_key(matrix):
    matrix.requires_grad_(False)
    edited, key = EditedWeight(matrix), torch.randn(3, matrix.weight.numel() // edited_d_out(matrix))
    before = matrix(key)
    update = torch.randn(edited.delta.shape)
    edited.add(update)
    torch.testing.assert_close(matrix(key), before + key @ update.T, rtol=1e-4, atol=1e-5)


def edited_d_out(matrix):
    return matrix.nf if isinstance(matrix, Conv1D) else matrix.out_features


def test_revert_is_exact():
    matrix = nn.Linear(6, 4).requires_grad_(False)
    edited, original = EditedWeight(matrix), matrix.weight.clone()
    edited.add(torch.randn(4, 6))
    edited.revert()
    assert torch.equal(matrix.weight, original)
    assert not edited.delta.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unedited_is_the_base_for_a_while_bit_for_bit(dtype):
    matrix = nn.Linear(6, 4).to(dtype).requires_grad_(False)
    matrix.weight[0, 0] = -0.0
    edited, original = EditedWeight(matrix), matrix.weight.clone()
    edited.add(torch.randn(4, 6))
    delta, live = edited.delta.clone(), matrix.weight.clone()
    with edited.unedited():
        assert torch.equal(matrix.weight, original)
        assert matrix.weight[0, 0].signbit()
        assert torch.equal(edited.live(), original.float())
    assert torch.equal(matrix.weight, live)
    assert torch.equal(edited.delta, delta)


def test_many_small_edits_of_a_bfloat16_model_keep_their_sum():
    matrix = nn.Linear(8, 8).to(torch.bfloat16).requires_grad_(False)
    edited, original = EditedWeight(matrix), matrix.weight.clone()
    for _ in range(1000):
        edited.add(torch.full((8, 8), 1e-5))
    assert edited.delta.dtype == torch.float32
    torch.testing.assert_close(edited.delta, torch.full((8, 8), 1e-2), rtol=1e-4, atol=0)
    assert torch.equal(matrix.weight, (original.float() + edited.delta).to(torch.bfloat16))


def test_casting_the_module_does_not_round_the_delta():
    edited = EditedWeight(nn.Linear(4, 4).requires_grad_(False))
    edited.add(torch.full((4, 4), 1 + 2**-20))
    edited.to(torch.bfloat16)
    assert edited.delta.dtype == torch.float32
    assert (edited.delta == 1 + 2**-20).all()
    edited.double()
    assert edited.delta.dtype == torch.float64


def test_state_holds_the_delta_only_and_loading_it_edits_the_network():
    source, matrix = EditedWeight(nn.Linear(4, 4).requires_grad_(False)), nn.Linear(4, 4).requires_grad_(False)
    source.add(torch.randn(4, 4))
    assert list(source.state_dict()) == ["delta"]
    target, original = EditedWeight(matrix), matrix.weight.clone()
    target.load_state_dict(source.state_dict())
    torch.testing.assert_close(matrix.weight, original + source.delta)
