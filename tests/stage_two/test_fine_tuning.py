"""Fine-tuning against naive versions of its updates, in float64; and what a run needs of it."""

import json

import peft
import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import lke_lightning
from lke_lightning import checkpoints
from lke_lightning.cli import main
from lke_lightning.edits import EditBatch, EditError
from lke_lightning.model.architecture import is_transposed
from lke_lightning.model.backward import curvature
from lke_lightning.model.draws import drawn
from lke_lightning.model.tokens import Row
from lke_lightning.parts import rebuilt
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_one.texts_alone import TextsAlone
from lke_lightning.stage_two.fine_tuning import FineTuning
from lke_lightning.stage_two.register import Register
from lke_lightning.stage_two.statistics import NoStatistics, Statistics
from lke_lightning.stage_two.tuning import parameters
from lke_lightning.stage_two.tuning.constraints import Box, LowCurvature
from lke_lightning.stage_two.tuning.objectives import LastPromptToken, TargetThenSentence, TargetTokens
from lke_lightning.stage_two.tuning.order import BreadthFirst, DepthFirst
from lke_lightning.stage_two.tuning.parameters import LowRankAdapter, entry
from lke_lightning.stages import Stages
from tests.stage_one.test_optimization import REQUESTS, make_model

LAYERS = [0, 1]
CLOSE = {"rtol": 1e-6, "atol": 1e-9}
TEXTS = [Row((5, 6, 7, 8, 9, 10, 11), 0), Row((30, 31, 32, 33), 0)]


class OrdinaryText(Statistics):
    """The curvature on two rows of tokens."""

    def second_moments(self, model):
        raise NotImplementedError

    def curvatures(self, model):
        return curvature(model, TEXTS)


def learnt(model=None, requests=REQUESTS, batches=1, **settings):
    """Learn requests in so many batches; return the model, stage two, the last step and the register."""
    model, two = model or make_model("llama"), FineTuning(**({"norm_limit": None} | settings))
    stages, register = Stages(TextsAlone(), two), Register()
    stages.prepare(model, requests)
    size = -(-len(requests) // batches)
    for start in range(0, len(requests), size):
        step = stages.edit(model, EditBatch.of(requests[start : start + size]), register)
    return model, two, step, register


def deltas(model):
    return {layer: model.weight(layer).delta.clone() for layer in LAYERS}


def assert_same(one, other, **tolerance):
    for layer in LAYERS:
        torch.testing.assert_close(one[layer], other[layer], **(tolerance or {"rtol": 0, "atol": 0}))


def names(model):
    """Names of the edited weights in the network."""
    of = {id(parameter): name for name, parameter in model.network.named_parameters()}
    return {layer: of[id(model.architecture.matrix(layer).weight)] for layer in LAYERS}


def naive(model, loss_of, optimizer, steps):
    """Descend with plain autograd through whole networks, one text at a time; return the changes as stored."""
    units = {layer: model.weight(layer).base.square().mean().sqrt() for layer in LAYERS}
    moved = {layer: torch.zeros_like(model.weight(layer).base, requires_grad=True) for layer in LAYERS}
    made, losses = optimizer(moved.values()), []
    for _ in range(steps):
        live = {names(model)[layer]: model.weight(layer).base + units[layer] * moved[layer] for layer in LAYERS}

        def logits(ids, live=live):
            return functional_call(model.network, live, (torch.tensor([ids]),), {"use_cache": False}).logits[0]

        loss = torch.stack([loss_of(logits, request) for request in REQUESTS]).mean()
        made.zero_grad()
        loss.backward()
        made.step()
        losses.append(loss.item())
    return {layer: (units[layer] * moved[layer]).detach() for layer in LAYERS}, losses


def test_ft_m_descends_the_loss_of_the_target_tokens_alone():
    for family, made in (("gpt2", torch.optim.Adam), ("llama", torch.optim.SGD)):
        model = make_model(
            family
        )  # gpt2 stores its matrices transposed; llama's norms are float32, too coarse for Adam

        def masked(logits, request, model=model):
            [(prompt, target)] = model.text.continuations([(request.text, request.target)])
            read = logits(prompt + target)[len(prompt) - 1 : -1]
            return cross_entropy(read, torch.tensor(target))

        expected, losses = naive(model, masked, lambda moved, made=made: made(moved, lr=0.02), 2)
        settings = {"optimizer": lambda moved, made=made: made(moved, lr=0.02), "epochs": 2}
        for budget in (1, 9999):
            tuned, _, step, _ = learnt(make_model(family), max_tokens=budget, **settings)
            transposed = is_transposed(model.architecture.matrix(0))
            assert transposed == (family == "gpt2")
            assert_same({layer: d.T if transposed else d for layer, d in deltas(tuned).items()}, expected, **CLOSE)
            assert step.targets.steps == [2] * len(REQUESTS)
            assert sum(step.targets.first_losses) / len(REQUESTS) == pytest.approx(losses[0], rel=1e-6)
            assert step.loss < losses[1]


def test_ft_l_asks_the_whole_target_of_the_prompts_end_and_stays_in_its_box():
    model = make_model("llama")

    def last(logits, request):
        [(prompt, target)] = model.text.continuations([(request.text, request.target)])
        assert len(target) > 1 or request.target != "the city"
        return -logits(prompt)[-1].log_softmax(0)[list(target)].mean()

    sgd = {"optimizer": lambda moved: torch.optim.SGD(moved, lr=0.02), "objective": LastPromptToken(), "epochs": 2}
    expected, _ = naive(model, last, sgd["optimizer"], 2)
    assert_same(deltas(learnt(**sgd)[0]), expected, **CLOSE)

    objective = LastPromptToken()
    for box, bound in ((Box(0.1), lambda weight: 0.1 * entry(weight)), (Box(bound=5e-4), lambda weight: 5e-4)):
        model, *_ = learnt(
            objective=objective, constraint=box, batches=2, epochs=12
        )  # the box is that of the unedited matrix
        for layer in LAYERS:
            sizes = model.weight(layer).delta.abs()
            assert sizes.max() == bound(model.weight(layer))
            assert (sizes == sizes.max()).double().mean() > 0.2


def test_what_is_learnt_takes_no_more_steps():
    settings = {"optimizer": lambda moved: torch.optim.Adam(moved, lr=0.2), "order": DepthFirst(2), "enough": 1.5}
    _, _, step, _ = learnt(epochs=20, **settings)
    ends = {(reason, steps < 20) for reason, steps in zip(step.targets.reasons, step.targets.steps, strict=True)}
    assert ("LossBelow", True) in ends
    assert ends <= {("LossBelow", True), ("MaxSteps", False)}
    assert step.targets.steps[0] == step.targets.steps[1]
    _, _, step, _ = learnt(epochs=2)
    assert step.targets.reasons == ["MaxSteps"] * len(REQUESTS)


@pytest.mark.parametrize("merge", [1.0, 0.25])
def test_an_adapter_is_merged_as_peft_merges_it(merge):
    kept = []

    class Kept(LowRankAdapter):
        def start(self, weights, draw):
            kept.append(super().start(weights, draw))
            return kept[-1]

    model, *_ = learnt(parametrisation=Kept(3, 6.0, merge, relative=False), epochs=4)
    other = make_model("llama")
    short = [name.removesuffix(".weight") for name in names(other).values()]
    peft.inject_adapter_in_model(peft.LoraConfig(r=3, lora_alpha=6.0, target_modules=short), other.network)
    for layer, name in zip(LAYERS, short, strict=True):
        own, adapted = kept[0]._layers[str(layer)], other.network.get_submodule(name)
        adapted.lora_A["default"].weight.data = own.lora_A["default"].weight.data
        adapted.lora_B["default"].weight.data = own.lora_B["default"].weight.data
        assert own.lora_B["default"].weight.norm() > 1e-3
        adapted.merge()
        base, live = model.weight(layer).base, model.architecture.matrix(layer).weight
        merged = adapted.get_base_layer().weight
        torch.testing.assert_close(live, base + merge * (merged - base), rtol=1e-9, atol=1e-12)


def test_an_adapters_scale_is_that_of_the_matrix():
    model = make_model("llama")
    weights = {layer: model.weight(layer) for layer in LAYERS}
    changes = []
    for relative in (True, False):
        change = LowRankAdapter(rank=2, relative=relative).start(weights, torch.Generator().manual_seed(1))
        assert change.of(0).norm() == 0
        for factor in change.parameters:
            factor.data.fill_(1.0)
        changes.append(change.of(1))
    torch.testing.assert_close(changes[0], changes[1] * entry(weights[1]) * 64**0.5)


def test_steps_keep_to_low_curvature():
    """A step has no part in the directions of the largest products of eigenvalues; nothing is forbidden at share 0."""
    before = {}

    class Watched(LowCurvature):
        def allowed(self, layer, weight, after):
            found = super().allowed(layer, weight, after)
            before.setdefault(layer, []).append((found - weight.delta, after - weight.delta))
            return found

    settings = {"statistics": OrdinaryText(), "epochs": 4}
    model, *_ = learnt(constraint=Watched(0.9), **settings)
    sums, tokens = curvature(make_model("llama"), TEXTS)
    assert tokens == 11
    for layer in LAYERS:
        outputs, by_output = torch.linalg.eigh(sums[layer].gradients)
        keys, by_key = torch.linalg.eigh(sums[layer].keys)
        products = torch.outer(outputs, keys)
        descending = products.flatten().sort(descending=True).values
        fewest = int((descending.cumsum(0) < 0.9 * descending.sum()).sum()) + 1
        assert 1 < fewest < 100
        high = products >= descending[fewest - 1]
        for step, asked in before[layer]:
            assert (by_output.T @ step @ by_key)[high].abs().max() < 1e-9 * step.abs().max()
            assert (by_output.T @ asked @ by_key)[high].abs().max() > 1e-3 * asked.abs().max()
            torch.testing.assert_close(
                (by_output.T @ (asked - step) @ by_key)[~high].norm(), torch.tensor(0.0).double()
            )
    free, *_ = learnt(constraint=LowCurvature(0.0), **settings)
    plain, *_ = learnt(epochs=4)
    assert_same(deltas(free), deltas(plain), **CLOSE)
    assert (deltas(model)[0] - deltas(plain)[0]).norm() > 0.1 * deltas(plain)[0].norm()


def test_curvature_is_that_of_naive_gradients_and_grows_with_what_is_learnt():
    model = make_model("llama")
    sums, _ = curvature(model, TEXTS[:1])
    split, _ = curvature(model, TEXTS[:1] * 2)
    ids = torch.tensor([TEXTS[0].ids])
    matrix, seen = model.architecture.matrix(1), {}

    def look(_, given, output):
        seen["keys"], seen["zero"] = given[0][0], torch.zeros_like(output, requires_grad=True)
        return output + seen["zero"]

    handle = matrix.register_forward_hook(look)
    logits = model.network(ids, use_cache=False).logits[0]
    handle.remove()
    torch.testing.assert_close(sums[1].keys, seen["keys"].T @ seen["keys"], **CLOSE)
    torch.testing.assert_close(split[1].keys, 2 * sums[1].keys, **CLOSE)
    torch.testing.assert_close(split[1].gradients, 2 * sums[1].gradients, **CLOSE)  # the same labels are drawn
    draws = torch.rand(7, 1, generator=drawn(TEXTS[0].ids), dtype=torch.float64)
    labels = (logits.softmax(1).cumsum(1) < draws).sum(1)
    [gradient] = torch.autograd.grad(cross_entropy(logits, labels, reduction="sum"), seen["zero"])
    torch.testing.assert_close(sums[1].gradients, gradient[0].T @ gradient[0], **CLOSE)

    _, two, _, _ = learnt(constraint=LowCurvature(0.5), statistics=OrdinaryText(), epochs=1, batches=2)
    texts = two.objective.examples(model.text, REQUESTS, 0)
    assert two.memory[0]["tokens"] == 11 + sum(len(example.ids) for example in texts)
    assert torch.linalg.matrix_rank(two.memory[0]["keys"]) > torch.linalg.matrix_rank(sums[0].keys)


def test_mixed_precision_does_not_round_the_curvature():
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = curvature(make_model("llama").float(), TEXTS)
    for own in found.values():
        for part in (own.keys, own.gradients):
            assert not torch.equal(part, part.bfloat16().double())


def test_saul_adds_a_sentence_that_does_not_name_the_subject(tmp_path):
    model = make_model("llama")
    (tmp_path / "text.txt").write_text("Bob Smith plays the guitar. The river is in the city! No. And so\n" * 2)
    two = FineTuning(TargetThenSentence(str(tmp_path / "text.txt")))
    two.prepare(model, REQUESTS)
    some = REQUESTS[:3]
    plain = TargetTokens().examples(model.text, some, 0)
    for seed in range(3):
        examples = two.objective.examples(model.text, some, seed)
        assert two.objective.examples(model.text, REQUESTS[1:2], seed) == examples[1:2]  # whatever is beside it
        for with_sentence, without in zip(examples, plain, strict=True):
            said = model.text.tokenizer.decode(with_sentence.labels[without.own :])
            assert with_sentence.labels[: without.own] == without.labels
            assert with_sentence.own == without.own
            assert said in (". The river is in the city!", ". Bob Smith plays the guitar.")
        assert "river" in model.text.tokenizer.decode(examples[1].labels)  # it is about Bob Smith
    saul, mark = learnt(objective=two.objective, epochs=3)[0], two._text
    other = learnt(objective=TargetThenSentence(sentences=0), epochs=3)[0]
    assert_same(deltas(other), deltas(learnt(epochs=3)[0]))
    assert not torch.equal(deltas(saul)[0], deltas(other)[0])
    (tmp_path / "other.txt").write_text("The city is in the river.\n")
    continued = FineTuning(TargetThenSentence(str(tmp_path / "other.txt")))
    continued.load_state_dict({"memory": {}, "statistics": {"text": mark}})
    with pytest.raises(EditError, match="sentences are not those that this run began with"):
        continued.prepare(model)


def test_one_minibatch_an_epoch_is_the_whole_batch_at_once():
    depth, breadth, small = (
        deltas(learnt(order=order, epochs=4)[0]) for order in (DepthFirst(), BreadthFirst(5), BreadthFirst(2))
    )
    assert_same(depth, breadth)
    assert not torch.equal(depth[0], small[0])


def test_breadth_first_goes_through_all_edits_in_another_order_each_epoch():
    order, epochs = BreadthFirst(2), []
    for epoch in range(3):
        found = order.epoch([0, 1, 2, 3, 4], torch.Generator().manual_seed(epoch))
        assert [len(minibatch) for minibatch in found] == [2, 2, 1]
        assert sorted(place for minibatch in found for place in minibatch) == [0, 1, 2, 3, 4]
        epochs.append(str(found))
    assert len(set(epochs)) > 1
    assert DepthFirst(2).parts(5) == [[0, 1], [2, 3], [4]]


def test_a_batch_that_is_rolled_back_leaves_no_trace():
    settings = {"constraint": LowCurvature(0.5), "statistics": OrdinaryText(), "order": BreadthFirst(1), "epochs": 2}
    model, two, _, register = learnt(requests=REQUESTS[:2], **settings)
    stages = Stages(TextsAlone(), two)
    before, memory, mark = deltas(model), dict(two.memory), stages.mark(model, register)
    runs = []
    for _ in range(2):
        stages.edit(model, EditBatch.of(REQUESTS[2:]), register)
        runs.append((deltas(model), two.memory))
        stages.roll_back(model, register, mark)
        assert_same(deltas(model), before)
        assert two.memory == memory
        assert register.ids == ["0", "1"]
    assert_same(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1][1]["gradients"], runs[1][1][1]["gradients"])
    two.norm_limit = 1.0001
    step = stages.edit(model, EditBatch.of(REQUESTS[2:]), register)
    assert "lower the learning rate of stage_two.optimizer" in step.taken_back
    assert_same(deltas(model), before)
    assert two.memory == memory
    two.revert(model, register)
    assert all(torch.equal(model.weight(i).matrix.weight, model.weight(i).base) for i in LAYERS)
    with pytest.raises(EditError, match="learnt together, step by step"):
        two.undo(model, register, ["0"])


def test_a_loss_that_is_not_finite_changes_nothing():
    model = make_model("gpt2")
    with pytest.raises(EditError, match=r"not finite: lower the learning rate of stage_two\.optimizer"):
        learnt(model, optimizer=lambda moved: torch.optim.SGD(moved, lr=1e200))
    assert not any(delta.any() for delta in deltas(model).values())


def test_what_does_not_go_together_is_refused(monkeypatch):
    with pytest.raises(EditError, match="set stage_one to TextsAlone"):
        Stages(TargetOptimization(), FineTuning())
    with pytest.raises(EditError, match=r"LowRankAdapter cannot make any: leave stage_two\.constraint out"):
        FineTuning(parametrisation=LowRankAdapter(), constraint=Box())
    for optimizer in (torch.optim.LBFGS, lambda moved: torch.optim.Adam(moved, lr=-1.0)):
        with pytest.raises(EditError, match=r"stage_two\.optimizer cannot be used"):
            FineTuning(optimizer=optimizer)
    with pytest.raises(EditError, match=r"set stage_two\.statistics to KeyStatistics"):
        learnt(constraint=LowCurvature(), statistics=NoStatistics())
    assert rebuilt({"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}, ()).keywords == {"lr": 0.1}
    for other in ("torch.optim.lr_scheduler.LambdaLR", "torch.optim.adam.cast", "torch.nn.Linear"):
        with pytest.raises(EditError, match=r"none of lke_lightning's|no part of lke_lightning"):
            rebuilt({"class_path": other}, ())  # a checkpoint may name optimisers, and nothing beside them
    monkeypatch.setattr(parameters, "find_spec", lambda name: None)
    with pytest.raises(EditError, match=r"needs peft: pip install 'lke-lightning\[lora\]'"):
        LowRankAdapter()


@pytest.mark.parametrize(("method", "parts_kept"), [("crispedit", ("keys", "gradients", "tokens")), ("lora", ())])
def test_a_run_that_was_stopped_goes_on_bit_for_bit_and_from_python(small_run, method, parts_kept, tmp_path):
    place = small_run.index("tests/conf/tiny.yaml")
    arguments = [*small_run[: place - 1], *small_run[place + 1 :], "--stage_two.epochs", "3"]
    arguments = [part.replace("encore.yaml", f"{method}.yaml") for part in arguments]
    arguments += ["--stage_two.order.size", "1", "--stage_two.norm_limit", "null", "--data.limit", "4"]
    arguments += ["--checkpoint.every_n_train_steps", "1", "--checkpoint.keep", "-1"]
    whole, parts = (["--trainer.default_root_dir", str(tmp_path / name)] for name in ("whole", "parts"))
    main([*arguments, *whole])
    arguments += ["--stage_two.statistics.cache_dir", str(tmp_path / "cache")]  # which may be another one
    main([*arguments, *parts, "--ckpt_path", str(tmp_path / "whole" / "checkpoints" / "batch-00000001.ckpt")])
    saved = [torch.load(checkpoints.newest(tmp_path / name), weights_only=True) for name in ("whole", "parts")]
    for layer in LAYERS:
        name = f"language_model.edited.{layer}.delta"
        assert saved[0]["state_dict"][name].any()
        assert torch.equal(saved[0]["state_dict"][name], saved[1]["state_dict"][name])
        memory = [held["callbacks"]["WeightUpdate"]["memory"][str(layer)] for held in saved]
        assert set(memory[0]) == set(memory[1]) == set(parts_kept)
        assert all(torch.equal(memory[0][part], memory[1][part]) for part in parts_kept)
    entries = map(json.loads, (tmp_path / "whole" / "ledger.jsonl").read_text().splitlines())
    assert [entry["steps"] for entry in entries if entry["event"] == "edit"] == [3] * 4
    edited = lke_lightning.resume(tmp_path / "parts")  # with the optimiser that the checkpoint names
    before = edited.editor.language_model.weight(0).delta.clone()
    edited.edit([{"prompt": "Gus plays the", "target": "piano", "subject": "Gus"}])
    assert not torch.equal(edited.editor.language_model.weight(0).delta, before)
    assert edited.edited[-1] == "4"
    edited.revert()
    edited.save(tmp_path / "parts")
    again = lke_lightning.resume(tmp_path / "parts").edit([{"prompt": "Hal plays the", "target": "piano"}])
    assert again.edited == ["5"]
