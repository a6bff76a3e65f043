"""RECT and PRUNE keep what their papers say they keep."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lke_lightning.edits import EditError
from lke_lightning.stage_two.transforms import SpectralCap, TopRelativeChange


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.floats(0.01, 1), st.integers(0, 99))
def test_rect_keeps_the_share_that_changes_most(keep, seed):
    weight, update = randn(9, 13, seed=seed), randn(9, 13, seed=seed + 100)
    kept = TopRelativeChange(keep)(weight, update)
    chosen = kept != 0
    assert chosen.sum() == round(keep * update.numel())
    assert torch.equal(kept[chosen], update[chosen])
    relative = (update / weight).abs()
    if chosen.any() and not chosen.all():
        assert relative[chosen].min() >= relative[~chosen].max()


def test_prune_is_the_published_formula():
    base, change = randn(6, 8, seed=1), 20 * randn(6, 8, seed=2)
    capped = SpectralCap(1.2)(base, change)
    limit = torch.linalg.svdvals(base).max()
    values = torch.linalg.svdvals(change)
    expected = torch.where(
        values > limit, values.log() / torch.tensor(1.2).log() - limit.log() / 0.1823215568 + limit, values
    )
    torch.testing.assert_close(
        torch.linalg.svdvals(capped), expected.sort(descending=True).values, rtol=1e-6, atol=1e-6
    )
    assert torch.linalg.svdvals(capped).max() < values.max()


def test_prune_leaves_small_changes_alone():
    base, change = 10 * randn(6, 8, seed=1), 0.1 * randn(6, 8, seed=2)
    torch.testing.assert_close(SpectralCap()(base, change), change)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transform", [TopRelativeChange(0.4), SpectralCap()])
def test_zeros_give_zeros_and_half_precision_gives_no_nan(transform, dtype):
    weight = randn(9, 13, seed=1).to(dtype)
    weight[:5] = 0
    weight[5] = -1e-8  # what the published denominator W + 1e-8 makes zero
    zero, update = torch.zeros(9, 13, dtype=dtype), 20 * randn(9, 13, seed=2).to(dtype)
    update[0] = 0
    assert torch.equal(transform(weight, zero), zero)
    assert torch.equal(transform(torch.zeros_like(weight), zero), zero)
    for found in (transform(weight, update), transform(torch.zeros_like(weight), update)):
        assert found.dtype == dtype
        assert found.isfinite().all()
        assert found.any()


def test_rect_keeps_its_share_where_half_precision_weights_are_zero():
    weight, update = randn(9, 13, seed=1).bfloat16(), randn(9, 13, seed=2)
    weight[:2] = 0
    kept = TopRelativeChange(0.4)(weight, update)
    assert (kept != 0).sum() == round(0.4 * update.numel())
    assert torch.equal(kept[:2], update[:2])


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.1, float("nan"), float("inf")])
def test_an_impossible_share_is_refused(keep):
    with pytest.raises(EditError, match=r"TopRelativeChange.keep is .* above 0 and at most 1"):
        TopRelativeChange(keep)


@pytest.mark.parametrize("base", [1.0, 0.0, -2.0, float("nan"), float("inf")])
def test_what_is_no_base_of_a_growing_logarithm_is_refused(base):
    with pytest.raises(EditError, match=r"SpectralCap.base is .* above 1"):
        SpectralCap(base)
