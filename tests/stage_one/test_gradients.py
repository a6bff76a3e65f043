"""Asking layers by the gradients of their outputs: against plain passes, one request at a time, and naive formulas."""

import pytest
import torch

from lke_lightning.edits import EditBatch, EditError
from lke_lightning.model.architecture import is_transposed
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.row_targets import RowTargets
from lke_lightning.stage_one.gradients import OutputGradients
from lke_lightning.stage_two.arrival import arrival
from lke_lightning.stage_two.preservation import NormPenalty, PastEdits
from lke_lightning.stage_two.register import Register
from lke_lightning.stage_two.solvers import LeastSquares
from lke_lightning.stage_two.statistics import NoStatistics
from lke_lightning.stage_two.update import WeightUpdate
from lke_lightning.stages import Stages
from lke_lightning.testing import tiny_network, tiny_tokenizer
from tests.stage_one.test_optimization import REQUESTS, make_model, request

LAYERS = [0, 1]
EXACT = {"rtol": 1e-6, "atol": 1e-9}
TOLERANCE = {"gpt2": EXACT, "llama": EXACT, "gemma2": {"rtol": 1e-3, "atol": 1e-6}}
"""Gemma 2 has norms behind its MLPs, and computes some things in float32 whatever its dtype."""


def stages_of(ridge=1.0, norm_limit=None, **settings):
    two = WeightUpdate(LeastSquares([NormPenalty(ridge)]), statistics=NoStatistics(), norm_limit=norm_limit)
    return Stages(OutputGradients(**settings), two)


def prepared(model, requests=REQUESTS, **settings):
    stages = stages_of(**settings)
    stages.prepare(model, requests)
    return stages


def plain_rows(model, request):
    """Keys, gradients and block outputs by layer at each row of one request, by hooks on a plain forward."""
    [(prompt, target)] = model.text.continuations([(request.text, request.target)])
    ids, first = torch.tensor([prompt + target]), len(prompt) - 1
    seen, added, handles = {}, {}, []
    for layer in LAYERS:
        matrix, block = model.architecture.matrix(layer), model.architecture.blocks[layer]

        def at_matrix(module, given, output, layer=layer):
            seen[layer] = given[0]
            added[layer] = torch.zeros_like(output, requires_grad=True)
            return output + added[layer]

        def at_block(module, given, output, layer=layer):
            seen[f"block {layer}"] = output[0] if isinstance(output, tuple) else output

        handles += [matrix.register_forward_hook(at_matrix), block.register_forward_hook(at_block)]
    logits = model.network(ids, use_cache=False).logits[0]
    for handle in handles:
        handle.remove()
    loss = torch.nn.functional.cross_entropy(logits[first:-1], ids[0, first + 1 :], reduction="sum")
    loss.backward()
    rows = slice(first, first + len(target))
    parts = {layer: (seen[layer][0, rows], added[layer].grad[0, rows]) for layer in LAYERS}
    levels = {layer: seen[f"block {layer}"][0, rows].abs().median(1).values / 0.6745 for layer in LAYERS}
    return parts, levels, loss.item() / len(target)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])  # gpt2 stores its matrices transposed
def test_updates_are_those_of_the_naive_formula(family):
    model = make_model(family)
    assert is_transposed(model.architecture.matrix(0)) == (family == "gpt2")
    stages, register, history = prepared(model, relative_step=0.2), Register(), []
    levels = {}
    for batch in (REQUESTS[:3], REQUESTS[3:]):
        found = [plain_rows(model, request) for request in batch]
        history += [torch.cat(parts[layer], 1) for parts, _, _ in found for layer in LAYERS]
        mean, deviation = torch.cat(history).mean(0), torch.cat(history).std(0)  # over all layers and batches
        expected = {}
        for layer in LAYERS:
            levels.setdefault(layer, torch.cat([of[layer] for _, of, _ in found]).median())
            keys = torch.cat([parts[layer][0] for parts, _, _ in found])
            rows = torch.cat([torch.cat(parts[layer], 1) for parts, _, _ in found])
            h, g = ((rows - mean) / deviation).split([64, 32], 1)
            asked = -0.2 * levels[layer] / 64 * h.square().sum(1, keepdim=True) * g
            update = asked.T @ keys @ torch.linalg.inv(keys.T @ keys + torch.eye(64))
            expected[layer] = model.weight(layer).delta + update
        step = stages.edit(model, EditBatch.of(batch), register)
        for layer in LAYERS:
            torch.testing.assert_close(model.weight(layer).delta, expected[layer], **TOLERANCE[family])
        assert step.targets.losses == pytest.approx([loss for *_, loss in found], rel=1e-6)
        assert step.targets.steps == [1] * len(batch)


def test_the_published_step_counts_where_it_is_given():
    model = make_model("llama")
    asked = [
        prepared(model, **settings).one.aim(model, EditBatch(REQUESTS)).targets.rows[0].residuals
        for settings in ({"step": 1e-3}, {"step": 2e-3, "relative_step": 5.0})
    ]
    torch.testing.assert_close(2 * asked[0], asked[1])


@pytest.mark.parametrize("whiten", [False, True])
def test_results_do_not_depend_on_what_runs_at_once(whiten):
    model = make_model("llama")
    few, many = (
        prepared(model, max_tokens=budget, whiten=whiten).one.aim(model, EditBatch(REQUESTS)) for budget in (1, 9999)
    )
    assert {name.split(".")[-1] for name in many.memory} >= {"rows", "mean", "squares"}
    assert ("32x64.products" in many.memory) == whiten
    for name, value in many.memory.items():
        torch.testing.assert_close(few.memory[name], value, rtol=1e-9, atol=1e-12)
    for layer in LAYERS:
        torch.testing.assert_close(few.targets.rows[layer].residuals, many.targets.rows[layer].residuals)


def test_in_bfloat16_rows_and_changes_are_float32():
    network = tiny_network("llama")
    exact, half = (
        LanguageModel(made, tiny_tokenizer(), LAYERS) for made in (network, tiny_network("llama").to(torch.bfloat16))
    )
    changes = []
    for model in (exact, half):
        stages = prepared(model)
        step = stages.edit(model, EditBatch(REQUESTS), Register())
        changes.append(model.weight(1).delta)
    assert step.targets.rows[0].keys.dtype == step.targets.rows[0].residuals.dtype == torch.float32
    assert changes[1].dtype == torch.float32
    assert all(part.dtype == torch.float64 for part in stages.one.memory.values())
    assert torch.cosine_similarity(*(change.double().flatten() for change in changes), dim=0) > 0.8


def test_what_arrived_is_what_the_live_weights_add_at_the_rows():
    model = make_model("llama")
    stages = prepared(model, ridge=20.0)
    stages.edit(model, EditBatch(REQUESTS[:2]), Register())
    step = stages.one.aim(model, EditBatch(REQUESTS[2:]))
    matrices = {layer: model.architecture.matrix(layer).weight.clone() for layer in LAYERS}
    stages.two.write(model, step, Register())
    found = arrival(model, step)
    for i in range(3):
        whole = left = 0.0
        for layer, asked in step.targets.rows.items():
            keys, residuals = (step.targets.of_requests(part)[i] for part in (asked.keys, asked.residuals))
            given = keys @ (model.architecture.matrix(layer).weight - matrices[layer]).T
            whole += residuals.square().sum().item()
            left += (residuals - given).square().sum().item()
        assert step.targets.distances[i] == pytest.approx(whole**0.5)
        assert found.written[i] == pytest.approx(1 - (left / whole) ** 0.5)
    assert 0.01 < min(found.written) < 0.99


def test_targets_are_chosen_and_joined_with_their_rows():
    model = make_model("llama")
    stages = prepared(model)
    whole = stages.one.aim(model, EditBatch(REQUESTS)).targets
    parts = [whole.chosen(numbers) for numbers in ([3, 1], [0])]
    joined = RowTargets.joined(parts)
    assert joined.losses == [whole.losses[i] for i in (3, 1, 0)]
    assert joined.units == [whole.units[i] for i in (3, 1, 0)]
    assert max(joined.units) > 1
    for layer, asked in whole.rows.items():
        expected = [whole.of_requests(part) for part in (asked.keys, asked.residuals, whole.before[layer])]
        found = (joined.rows[layer].keys, joined.rows[layer].residuals, joined.before[layer])
        assert all(torch.equal(f, torch.cat([e[i] for i in (3, 1, 0)])) for f, e in zip(found, expected, strict=True))
    assert whole.chosen([]).rows[0].keys.shape == (0, 64)


def test_a_request_without_finite_numbers_is_left_out_of_batch_and_statistics(monkeypatch):
    model = make_model("llama")
    stages = prepared(model)
    expected = stages.one.aim(model, EditBatch([REQUESTS[i] for i in (0, 2, 3)]))
    whole, passes = EditBatch(REQUESTS[:4]), stages.one._passes

    def broken(*arguments):
        found = passes(*arguments)
        found.rows[found.units[0], 7] = torch.nan  # the first of the second request's
        return found

    monkeypatch.setattr(stages.one, "_passes", broken)
    with pytest.warns(UserWarning, match=f"edit {REQUESTS[1].id} is left out"):
        step = stages.one.aim(model, whole)
    assert step.requests == tuple(REQUESTS[i] for i in (0, 2, 3))
    for name, value in expected.memory.items():
        torch.testing.assert_close(step.memory[name], value)
    torch.testing.assert_close(step.targets.rows[1].residuals, expected.targets.rows[1].residuals)


def test_a_batch_that_is_taken_back_leaves_no_trace_in_the_statistics():
    model = make_model("llama")
    stages, register = prepared(model), Register()
    stages.edit(model, EditBatch(REQUESTS[:2]), register)
    kept, mark = stages.one.memory, stages.mark(model, register)
    stages.two.norm_limit = 1.0001
    stages.one.relative_step = 100.0
    step = stages.edit(model, EditBatch(REQUESTS[2:4]), register)
    assert step.taken_back
    assert stages.one.memory is kept
    stages.one.relative_step, stages.two.norm_limit = 0.7, None
    stages.edit(model, EditBatch(REQUESTS[2:]), register)
    assert stages.one.memory["32x64.rows"] > kept["32x64.rows"]
    stages.roll_back(model, register, mark)
    assert all(torch.equal(stages.one.memory[name], kept[name]) for name in kept)


def test_warm_up_passes_through_the_statistics_alone():
    model = make_model("llama")
    warm = prepared(model, warm_up=3)
    assert not any(weight.delta.any() for weight in model.edited.values())
    expected = prepared(model).one.aim(model, EditBatch(REQUESTS[:3])).memory
    assert all(torch.equal(warm.one.memory[name], expected[name]) for name in expected)
    warm.prepare(model, REQUESTS)  # as a run that continues does
    assert warm.one.memory["32x64.rows"] == expected["32x64.rows"]


def test_with_a_memory_of_edits_all_rows_of_an_edit_are_undone_and_without_none_is():
    with pytest.raises(EditError, match="keeps no memory of past edits"):
        stages_of().two.check_exact_undo()
    model, register = make_model("llama"), Register()
    two = WeightUpdate(LeastSquares([NormPenalty(1.0)], PastEdits()), statistics=NoStatistics())
    stages = Stages(OutputGradients(), two)
    stages.prepare(model, REQUESTS)
    stages.edit(model, EditBatch(REQUESTS[2:]), register)
    kept = model.weight(1).delta.clone()
    step = stages.edit(model, EditBatch(REQUESTS[:2]), register)
    assert max(step.targets.units) > 1
    two.undo(model, register, [request.id for request in REQUESTS[:2]])
    torch.testing.assert_close(model.weight(1).delta, kept)


def test_what_needs_texts_to_be_read_is_refused():
    with pytest.raises(EditError, match=r"rest_weight needs the texts .* OutputGradients"):
        Stages(OutputGradients(), WeightUpdate(LeastSquares([NormPenalty(1.0)]), rest_weight=1.0))


def test_what_cannot_be_encoded_is_named_before_any_work():
    with pytest.raises(EditError, match="edit odd"):
        prepared(make_model("llama"), [*REQUESTS, request("odd", "{} " * 1 + "word " * 200, "guitar", "Ana")])
