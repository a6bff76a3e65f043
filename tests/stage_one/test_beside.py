"""PMET's joint target against a plain oracle, step by step."""

import pytest
import torch

from lke_lightning.edits import EditError
from lke_lightning.stage_one.objectives import EssenceKL, NegativeLogLikelihood, TargetNorm
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_one.rows import build_rows
from lke_lightning.stage_one.stopping import EssenceKept, LossBelow
from lke_lightning.stage_one.target_space import NormBall
from tests.reference.pmet import descend_jointly
from tests.stage_one.test_optimization import CONTEXTS, REQUESTS, make_model

SETTINGS = {"lr": 1.0, "max_steps": 6, "clamp": 2.0, "kl": 0.5, "decay": 0.5, "loss_threshold": 0.02}


def make_stage(max_steps, *rules, **changes):
    return TargetOptimization(
        [NegativeLogLikelihood(after_success=0.1), EssenceKL(0.5), TargetNorm(0.5)],
        [LossBelow(0.02), *rules],
        NormBall(2.0),
        lr=1.0,
        max_steps=max_steps,
        **({"site": "matrix", "beside": "attention"} | changes),
    )


@pytest.mark.parametrize("family", ["gpt2", "gptj", "gemma2"])
def test_agrees_with_the_oracle_to_the_stop_and_beyond(family):
    """Blocks one after the other, parallel ones, and norms behind both; one request reaches its target."""
    model, some = make_model(family), REQUESTS[1:3]
    for kept, rules in ((0.03, [EssenceKept(0.06)]), (-1.0, [])):
        found = make_stage(6, *rules).optimize(model, some, CONTEXTS)
        assert found.reasons == ["MaxSteps", "EssenceKept" if kept > 0 else "MaxSteps"]
        for i, rows in enumerate(build_rows(some, CONTEXTS, model.text)):
            expected, steps, losses, beside = descend_jointly(model, rows, kept=kept, **SETTINGS)
            assert beside.norm() > 0.1
            assert found.steps[i] == steps
            assert found.losses[i] == pytest.approx(losses[-1], rel=1e-5)
            assert (found.vectors[i] - expected).norm() < 1e-6 * expected.norm()


def test_it_is_not_the_mlp_half_alone():
    model = make_model("llama")
    both, half = (make_stage(4, beside=beside).optimize(model, REQUESTS, CONTEXTS) for beside in ("attention", None))
    assert both.vectors.shape == half.vectors.shape
    assert ((both.vectors - half.vectors).norm(dim=1) > 1e-2 * half.vectors.norm(dim=1)).all()
    start = make_stage(1).optimize(model, REQUESTS, CONTEXTS).vectors
    torch.testing.assert_close(torch.tensor(both.distances, dtype=torch.float64), (both.vectors - start).norm(dim=1))


def test_a_change_beside_the_mlp_needs_its_site_and_a_known_attention():
    with pytest.raises(EditError, match=r"set stage_one\.site to matrix"):
        make_stage(2, site=None)
    model = make_model("llama")
    for block in model.architecture.blocks:
        block.attention_of_another_name = block.self_attn
        del block.self_attn
    stage = make_stage(2)
    stage.contexts = CONTEXTS
    with pytest.raises(EditError, match=r"no attention output matrix by a known name .*leave stage_one\.beside out"):
        stage.prepare(model, REQUESTS)
