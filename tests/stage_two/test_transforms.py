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


def test_impossible_settings_are_refused():
    with pytest.raises(EditError, match="keep"):
        TopRelativeChange(0.0)
    with pytest.raises(EditError, match="logarithm"):
        SpectralCap(1.0)
