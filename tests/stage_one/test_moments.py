"""Running moments against sums over all rows at once."""

import pytest
import torch

from lke_lightning.stage_one.moments import RunningMoments


def streamed(moments, rows, sizes):
    memory = {}
    for part in rows.split(sizes):
        memory = moments.update(memory, part)
    return memory


def test_two_rows_by_hand():
    moments = RunningMoments()
    memory = moments.update({}, torch.tensor([[0.0, 5.0, 1.0], [2.0, -1.0, 1.0]]))
    assert memory["mean"].tolist() == [1, 2, 1]
    assert memory["squares"].tolist() == [2, 18, 0]
    scaled = moments.normalised(memory, torch.tensor([[0.0, 5.0, 1.0], [3.0, 2.0, 7.0]]))
    expected = [[-1 / 2**0.5, 1 / 2**0.5, 0], [2 / 2**0.5, 0, 0]]  # the last column has no spread to be measured in
    torch.testing.assert_close(scaled, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("sizes", [[40], [1] * 40, [1, 2, 0, 7, 30]])
def test_parts_give_the_moments_of_the_whole(sizes):
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 9, generator=draw) * torch.logspace(-4, 3, 9) + 100  # in float32, far from zero
    memory = streamed(RunningMoments(4), rows, sizes)
    centred = rows.double() - rows.double().mean(0)
    torch.testing.assert_close(memory["mean"], rows.double().mean(0), rtol=1e-13, atol=0)
    torch.testing.assert_close(memory["squares"], centred.square().sum(0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(memory["products"], centred[:, 5:].T @ centred[:, 5:], rtol=1e-9, atol=1e-6)
    assert memory["rows"].item() == 40


def test_one_row_asks_nothing_and_nothing_is_changed_in_place():
    moments, row = RunningMoments(2), torch.ones(1, 3)
    memory = moments.update({}, row)
    assert moments.normalised(memory, row).tolist() == [[0, 0, 0]]
    kept = {name: part.clone() for name, part in memory.items()}
    moments.update(memory, torch.randn(5, 3))
    assert all(torch.equal(memory[name], kept[name]) for name in kept)


def test_whitening_begins_once_there_are_more_rows_than_columns_and_bounds_what_hardly_varies():
    draw = torch.Generator().manual_seed(1)
    mixed = torch.randn(60, 3, generator=draw).double() @ torch.randn(3, 4, generator=draw).double()  # of rank 3
    rows = torch.cat([torch.randn(60, 2, generator=draw).double(), mixed], 1)
    diagonal, whole = RunningMoments(), RunningMoments(4)
    few = rows[:5]
    alone = [moments.normalised(moments.update({}, few), few) for moments in (diagonal, whole)]
    assert torch.equal(*alone)
    memory = whole.update({}, rows)
    scaled = whole.normalised(memory, rows)
    assert torch.equal(scaled[:, :2], diagonal.normalised(diagonal.update({}, rows), rows)[:, :2])
    covariance = scaled[:, 2:].T @ scaled[:, 2:] / (60 - 4 - 1)
    values = torch.linalg.eigvalsh(covariance)
    torch.testing.assert_close(values[1:], torch.ones(3, dtype=torch.float64))
    assert values[0].abs() < 1e-6
    symmetric = torch.linalg.lstsq(mixed - mixed.mean(0), scaled[:, 2:]).solution  # ZCA, not a rotation of it
    torch.testing.assert_close(symmetric, symmetric.T, rtol=1e-6, atol=1e-8)


def test_a_memory_that_was_loaded_elsewhere_goes_to_its_rows():
    """A checkpoint's tensors are on the CPU; `meta` stands for a device where there is none."""
    moments, rows = RunningMoments(2), torch.randn(5, 6, device="meta")
    memory = moments.update(streamed(RunningMoments(2), torch.randn(4, 6), [4]), rows)
    assert {part.device.type for part in memory.values()} == {"meta"}
