"""Stage one against a plain oracle, for several architectures."""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch.plugins import HalfPrecision, MixedPrecision

from lke_lightning.edits import EditError, EditRequest
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.stage_one.objectives import EssenceKL, NegativeLogLikelihood, Objective, StepView, TargetNorm
from lke_lightning.stage_one.optimization import TargetOptimization, _term
from lke_lightning.stage_one.packed import MASSIVE, PackedRows
from lke_lightning.stage_one.rows import RequestRows, build_rows, grouped
from lke_lightning.stage_one.stopping import LossBelow, MostProbable
from lke_lightning.stage_one.target_space import NormBall
from lke_lightning.testing import tiny_network, tiny_tokenizer
from tests.reference.stage_one import descend

CONTEXTS = ["{}", "The river is in the city. {}", "Because it was. {}"]
FAMILIES = {
    "gpt2": {},
    "llama": {},
    "gpt_neox": {},
    "gptj": {},
    "qwen3": {},
    "gemma3_text": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma2": {"sliding_window": 6},
    "mistral": {"sliding_window": 6},
    "phi3": {},
    "opt": {},
}


def request(id, prompt, target, subject=None, original=None):
    return EditRequest(id=id, prompt=prompt, target=target, subject=subject, original=original)


REQUESTS = [
    request("0", "{} was born in", "the city", "Anna of the river", "b"),
    request("1", "The mother tongue of {} is", "guitar", "Bob Smith"),
    request("2", "a native of the capital works for", "piano"),
    request("3", "In the city, {} plays the sport of", "guitar", "the"),
    request("4", "{} speaks", "guitar", "a"),
]


def make_model(family, bos=False, layers=(0, 1)):
    network = tiny_network(family, **FAMILIES[family])
    return LanguageModel(network, tiny_tokenizer(bos=bos), list(layers))


def make_stage(**changes):
    settings = {"extra_steps": 2, "loss_threshold": 0.05, "clamp": 3.0, "kl": 0.0625, "decay": 0.5} | changes
    return TargetOptimization(
        [NegativeLogLikelihood(), EssenceKL(settings["kl"]), TargetNorm(settings["decay"])],
        [MostProbable(settings["extra_steps"]), LossBelow(settings["loss_threshold"])],
        NormBall(settings["clamp"]),
        lr=changes.get("lr", 0.3),
        max_steps=changes.get("max_steps", 20),
        site=changes.get("site", "block"),
        reference_quirks=changes.get("quirks", False),
    )


def check_against_oracle(model, stage, **settings):
    targets = stage.optimize(model, REQUESTS, CONTEXTS)
    built = build_rows(REQUESTS, CONTEXTS, model.text, stage.reference_quirks)
    oracle = {"extra_steps": 2, "loss_threshold": 0.05, "clamp": 3.0, "kl": 0.0625, "decay": 0.5} | settings
    for i, rows in enumerate(built):
        expected, steps, losses = descend(
            model, rows, lr=stage.lr, max_steps=stage.max_steps, site=stage.site, **oracle
        )
        assert targets.steps[i] == steps
        assert targets.losses[i] == pytest.approx(losses[-1], rel=1e-6)
        error = (targets.vectors[i] - expected).norm() / expected.norm()
        assert error < 1e-6, (i, error)
    return targets


@pytest.mark.parametrize("family", FAMILIES)
def test_agrees_with_the_oracle(family):
    targets = check_against_oracle(make_model(family), make_stage())
    assert len(set(targets.steps)) > 1, "all requests stopped together: freezing was not exercised"


def test_agrees_with_the_oracle_behind_a_bos():
    check_against_oracle(make_model("llama", bos=True), make_stage())


def test_agrees_with_the_oracle_at_the_matrix_site():
    model = make_model("gpt2", layers=(0,))
    check_against_oracle(model, make_stage(site="matrix"))


def test_agrees_with_the_oracle_with_reference_quirks():
    check_against_oracle(make_model("gpt2"), make_stage(quirks=True), quirks=True)


def test_result_does_not_depend_on_the_batch():
    model, stage = make_model("llama"), make_stage()
    together = stage.optimize(model, REQUESTS, CONTEXTS)
    order = [3, 0, 4, 2, 1]
    permuted = stage.optimize(model, [REQUESTS[i] for i in order], CONTEXTS)
    torch.testing.assert_close(permuted.vectors, together.vectors[order], rtol=1e-9, atol=1e-12)
    stage.max_tokens = 1
    alone = stage.optimize(model, REQUESTS, CONTEXTS)
    torch.testing.assert_close(alone.vectors, together.vectors, rtol=1e-9, atol=1e-12)
    assert alone.steps == together.steps
    assert alone.reasons == together.reasons


def descend_together(model, stage, requests):
    """What the oracle finds for requests that share a change."""
    group = RequestRows.together(build_rows(requests, CONTEXTS, model.text))
    return descend(
        model, group, lr=stage.lr, max_steps=stage.max_steps,
        extra_steps=0, loss_threshold=0.05, clamp=3.0, kl=0.0625, decay=0.5,
    )  # fmt: skip


def test_requests_with_one_key_share_a_target_that_serves_them_all():
    """Against the oracle on the rows of the group; requests of another key are found as if alone."""
    model, stage = make_model("llama"), make_stage(extra_steps=0)
    shared = [
        request("a", "{} was born in", "the city", "Anna of the river"),
        request("b", "{} speaks", "guitar", "Anna of the river"),
        request("c", "{} plays the sport of", "a", "Anna of the river"),
    ]
    batch = [shared[0], REQUESTS[1], shared[1], REQUESTS[4], shared[2]]
    targets = stage.optimize(model, batch, CONTEXTS)
    assert targets.groups[0] == targets.groups[2] == targets.groups[4]
    assert len(set(targets.groups)) == 3
    expected, steps, losses = descend_together(model, stage, shared)
    for i in (0, 2, 4):
        assert (targets.vectors[i] - expected).norm() < 1e-6 * expected.norm()
        assert (targets.steps[i], targets.losses[i]) == (steps, pytest.approx(losses[-1], rel=1e-6))
    alone = stage.optimize(model, [REQUESTS[1], REQUESTS[4]], CONTEXTS)
    torch.testing.assert_close(targets.vectors[[1, 3]], alone.vectors, rtol=1e-9, atol=1e-12)
    stage.share_targets = None
    each = stage.optimize(model, batch, CONTEXTS)
    assert each.groups == [0, 1, 2, 3, 4]
    assert not torch.allclose(each.vectors[0], each.vectors[2])


def test_the_published_code_shares_no_targets():
    model, stage = make_model("gpt2"), make_stage(quirks=True)
    batch = [request("a", "{} was born in", "the city", "Bob Smith"), request("b", "{} speaks", "guitar", "Bob Smith")]
    together = stage.optimize(model, batch, CONTEXTS)
    assert together.groups == [0, 1]
    for i in range(2):
        alone = stage.optimize(model, [batch[i]], CONTEXTS)
        torch.testing.assert_close(together.vectors[i : i + 1], alone.vectors, rtol=1e-9, atol=1e-12)


def test_requests_of_one_subject_share_a_change_of_their_own_activations():
    """Words before the subject make other keys; the change, found for all rows, is added to each one's activation."""
    model, stage = make_model("llama"), make_stage(extra_steps=0)
    stage.share_targets = "subject"
    of_subject = [request("a", "{} was born in", "the city", "Bob Smith"), REQUESTS[1]]
    batch = [REQUESTS[2], of_subject[0], REQUESTS[0], of_subject[1]]
    targets = stage.optimize(model, batch, CONTEXTS)
    assert targets.groups[1] == targets.groups[3]
    assert len(set(targets.groups)) == 3
    expected, steps, losses = descend_together(model, stage, of_subject)
    start = make_stage(max_steps=1).optimize(model, batch, CONTEXTS).vectors  # before any step
    for i in (1, 3):
        assert (targets.vectors[i] - (expected - start[1] + start[i])).norm() < 1e-6 * expected.norm()
        assert (targets.steps[i], targets.losses[i]) == (steps, pytest.approx(losses[-1], rel=1e-6))
    assert (start[1] - start[3]).norm() > 1e-3 * expected.norm()
    alone = stage.optimize(model, [batch[0], batch[2]], CONTEXTS)
    torch.testing.assert_close(targets.vectors[[0, 2]], alone.vectors, rtol=1e-9, atol=1e-12)


def test_a_rule_of_sharing_that_does_not_exist_is_refused():
    with pytest.raises(EditError, match="share_targets is False: choose key, subject or null"):
        TargetOptimization(share_targets=False)


def test_a_key_is_shared_only_where_all_that_it_follows_from_is_alike():
    """Another text in front of the subject is another key, in at least one context."""
    model = make_model("llama")
    built = build_rows(
        [request("a", "{} speaks", "guitar", "Bob"), request("b", "the {} speaks", "city", "Bob"),
         request("c", "{} plays", "piano", "Bob"), request("d", "{} plays", "piano", "Bo")],
        CONTEXTS, model.text,
    )  # fmt: skip
    assert grouped([rows.key for rows in built]) == [[1], [3], [0, 2]]


def test_stops_n_steps_after_the_first_success_and_keeps_the_vector_that_passed():
    model = make_model("llama")
    first = make_stage(extra_steps=0, loss_threshold=0).optimize(model, REQUESTS, CONTEXTS)
    later = make_stage(extra_steps=3, loss_threshold=0).optimize(model, REQUESTS, CONTEXTS)
    succeeded = [i for i, reason in enumerate(first.reasons) if reason == "MostProbable"]
    assert succeeded
    assert all(later.steps[i] >= first.steps[i] + 3 for i in succeeded)


def test_an_edit_that_already_holds_changes_nothing():
    model = make_model("llama")
    known = [request("known", "{} was born in", "sport", "Bob Smith")]
    [rows] = build_rows(known, ["{}"], model.text)
    assert len(rows.targets[0]) == 1
    with torch.no_grad():  # make the target win before any step
        hidden = model.network.model(input_ids=torch.tensor([rows.contexts[0].ids])).last_hidden_state[0, -1]
        model.network.lm_head.weight[rows.targets[0][0]] = 10 * hidden
    at_start = make_stage(max_steps=1, extra_steps=9).optimize(model, known, ["{}"])
    found = make_stage(extra_steps=0).optimize(model, known, ["{}"])
    assert found.steps == [1]
    assert found.reasons == ["MostProbable"]
    torch.testing.assert_close(found.vectors, at_start.vectors)


def test_norm_ball_holds():
    model, stage = make_model("llama"), make_stage(clamp=0.1)
    targets = stage.optimize(model, REQUESTS, CONTEXTS)
    at_start = make_stage(max_steps=1).optimize(model, REQUESTS, CONTEXTS).vectors
    assert ((targets.vectors - at_start).norm(dim=1) <= 0.1 * at_start.norm(dim=1) * (1 + 1e-9)).all()


def test_result_does_not_depend_on_when_finished_requests_are_dropped():
    model, stage = make_model("llama"), make_stage()
    at_once = stage.optimize(model, REQUESTS, CONTEXTS)
    stage.check_every = 4
    later = stage.optimize(model, REQUESTS, CONTEXTS)
    torch.testing.assert_close(later.vectors, at_once.vectors, rtol=1e-9, atol=1e-12)
    assert (later.steps, later.reasons) == (at_once.steps, at_once.reasons)


def test_backs_off_when_memory_runs_out(monkeypatch):
    model, stage = make_model("llama"), make_stage()
    expected = stage.optimize(model, REQUESTS, CONTEXTS)
    forward = model.network.forward

    def small(**inputs):
        if len(inputs["input_ids"]) > 4:
            raise torch.OutOfMemoryError
        return forward(**inputs)

    monkeypatch.setattr(model.network, "forward", small)
    stage.max_tokens = 10**6
    with pytest.warns(UserWarning, match="out of memory"):
        found = stage.optimize(model, REQUESTS, CONTEXTS)
    torch.testing.assert_close(found.vectors, expected.vectors, rtol=1e-9, atol=1e-12)
    assert stage.max_tokens < 10**6


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "qwen3", "gemma3_text"])
def test_agrees_with_the_oracle_in_float32(family):
    model = LanguageModel(tiny_network(family, **FAMILIES[family]).float(), tiny_tokenizer(), [0, 1])
    stage = make_stage(extra_steps=99, loss_threshold=0)
    targets = stage.optimize(model, REQUESTS, CONTEXTS)
    start = make_stage(max_steps=1).optimize(model, REQUESTS, CONTEXTS).vectors
    for i, rows in enumerate(build_rows(REQUESTS, CONTEXTS, model.text)):
        expected, _, losses = descend(
            model, rows, lr=0.3, max_steps=20, clamp=3.0, kl=0.0625, decay=0.5, loss_threshold=0, extra_steps=99
        )
        assert targets.losses[i] == pytest.approx(losses[-1], abs=1e-3)
        assert torch.cosine_similarity(targets.vectors[i] - start[i], expected - start[i], dim=0) > 0.999


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_half_precision_finds_about_the_same(precision):
    plugins = {"bf16-true": HalfPrecision("bf16-true"), "bf16-mixed": MixedPrecision("bf16-mixed", "cpu")}
    network = tiny_network("llama").float()
    exact = make_stage(extra_steps=99).optimize(LanguageModel(network, tiny_tokenizer(), [0, 1]), REQUESTS, CONTEXTS)
    plugin = plugins[precision]
    model = plugin.convert_module(LanguageModel(network, tiny_tokenizer(), [0, 1]))
    with plugin.forward_context():
        found = make_stage(extra_steps=99).optimize(model, REQUESTS, CONTEXTS)
    assert found.vectors.dtype == torch.float32
    assert model.weight(0).delta.dtype == torch.float32
    assert torch.cosine_similarity(found.vectors, exact.vectors).min() > 0.98


def one_step(family, **rates):
    """Vectors before and after the first step of Adam, with nothing in its way, (requests, hidden size)."""
    rates = {"space": NormBall(1e6), "stopping": [], "site": "block"} | rates
    model = make_model(family)
    return [
        TargetOptimization(max_steps=steps, **rates).optimize(model, REQUESTS, CONTEXTS).vectors for steps in (1, 2)
    ]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_relative_rate_is_the_length_of_the_first_step(family):
    before, after = one_step(family, relative_lr=0.03)
    norms = before.norm(dim=1, keepdim=True)
    steps = (after - before).abs()
    torch.testing.assert_close(steps, (0.03 * norms / before.shape[1] ** 0.5).expand_as(steps), rtol=1e-3, atol=0)
    torch.testing.assert_close((after - before).norm(dim=1, keepdim=True), 0.03 * norms, rtol=1e-3, atol=0)


def test_a_relative_step_is_projected_in_the_units_of_the_activation():
    before, after = one_step("llama", relative_lr=0.5, space=NormBall(0.2))
    torch.testing.assert_close((after - before).norm(dim=1), 0.2 * before.norm(dim=1), rtol=1e-6, atol=0)


def test_a_rate_in_the_units_of_the_activations_counts_where_it_is_given():
    before, after = one_step("llama", lr=0.3, relative_lr=9.0)
    torch.testing.assert_close((after - before).abs(), torch.full_like(before, 0.3), rtol=1e-3, atol=0)
    model = make_model("llama")
    found = [
        TargetOptimization(lr=0.3, relative_lr=rate, max_steps=12).optimize(model, REQUESTS, CONTEXTS)
        for rate in (0.01, 9.0)
    ]
    assert torch.equal(found[0].vectors, found[1].vectors)
    assert (found[0].steps, found[0].losses) == (found[1].steps, found[1].losses)


def test_a_relative_rate_finds_the_targets_of_the_same_rate_in_units():
    """For requests that are alone: each has its own norm."""
    model = make_model("gpt2")
    for one in REQUESTS[:2]:
        start = TargetOptimization(max_steps=1).optimize(model, [one], CONTEXTS).vectors[0]
        rate = 0.05 * (start.norm() / len(start) ** 0.5).item()
        found, expected = (
            TargetOptimization(max_steps=8, **rates).optimize(model, [one], CONTEXTS)
            for rates in ({"relative_lr": 0.05}, {"lr": rate})
        )
        assert (found.vectors - expected.vectors).norm() < 1e-4 * expected.vectors.norm()  # Adam's eps has a scale
        assert found.steps == expected.steps


def test_a_massive_activation_on_the_bare_prompt_is_no_measure_of_the_change():
    model = make_model("llama")
    size = model.architecture.hidden_size
    rows = PackedRows.build(model, build_rows(REQUESTS, CONTEXTS, model.text), model.target_layer, "block", 4096)
    usual = rows.norms(size)[:, 0]
    torch.testing.assert_close(usual, rows.initial[:, 0].norm(dim=1))
    initial = rows.replay.initial.clone()
    initial[0] *= 1000
    massive = replace(rows, replay=replace(rows.replay, initial=initial)).norms(size)[:, 0]
    of_rows = initial[rows.row_requests == 0].norm(dim=1)
    torch.testing.assert_close(massive[0], MASSIVE * of_rows.median())
    assert torch.equal(massive[1:], usual[1:])


def test_an_objective_without_a_value_for_each_request_is_refused_by_its_name():
    class Halved(Objective):
        def __call__(self, step):
            return step.nll.mean()

    view = StepView(*(torch.ones(2, 1) for _ in range(3)), torch.ones(2), torch.ones(2, 3), torch.ones(2, 3))
    with pytest.raises(EditError, match=r"Halved returned \(\): an objective returns .* each request, here \(2,\)"):
        _term(Halved(), view)
