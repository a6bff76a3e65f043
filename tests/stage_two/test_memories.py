"""Side memories as a run, a reader and another program see them: the same for every kind."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import lke_lightning
from lke_lightning.checkpoints import newest
from lke_lightning.edits import EditError
from lke_lightning.evaluation.generated import decode, first_choice
from lke_lightning.evaluation.teacher_forced import continuation_nll
from tests.conftest import NAMES

METHODS = ["grace", "neuraldb", "wise", "memoir"]
EXACT = ["grace", "neuraldb"]
FACTS = [
    {"id": name, "prompt": f"{name} was born in the", "subject": name, "target": target}
    for name, target in zip(NAMES, ["city", "guitar"] * 4, strict=True)
]
FREELY = {
    "contexts": {"class_path": "ContextTemplates", "init_args": {"seeds": []}},
    "objectives": [{"class_path": "NegativeLogLikelihood"}],
    "space": {"class_path": "NormBall", "init_args": {"factor": 30.0}},
    "relative_lr": 0.5,
    "max_steps": 8,
}
"""A random model has to be pushed hard."""
QUICKLY = {"relative_lr": 0.5, "max_steps": 8}
PAIRS = [(fact["prompt"], fact["target"]) for fact in FACTS] + [("Ana plays the guitar in the", "city")]


@pytest.fixture(scope="module")
def small(small_world, tmp_path_factory):
    """Return a function that edits the small model: (method, facts, batch size) -> what `edit` returns."""
    folder = tmp_path_factory.mktemp("methods")

    def edited(method, facts=FACTS, batch_size=3):
        settings = yaml.safe_load(Path(f"configs/method/{method}.yaml").read_text())
        if "objectives" in settings["stage_one"]:
            settings["stage_one"] |= FREELY
        else:
            settings["stage_one"] = {"class_path": "TextsAlone"}
            settings["stage_two"]["init_args"] |= QUICKLY | {"corpus": str(small_world / "text.txt")}
        (config := folder / f"{method}.yaml").write_text(yaml.safe_dump(settings))
        network = AutoModelForCausalLM.from_pretrained(small_world / "model")
        tokenizer = AutoTokenizer.from_pretrained(small_world / "model")
        return lke_lightning.edit(network, tokenizer, facts, layers=[1, 2], batch_size=batch_size, config=config)

    return edited


@pytest.fixture(scope="module")
def remembered(small):
    """Each method's edited model, not to be changed."""
    found = {}
    return lambda method: found[method] if method in found else found.setdefault(method, small(method))


def held(result):
    """Everything that a run keeps of its edits: tensors by name."""
    memory = result.editor.language_model.beside["memory"]
    rest = {
        f"{layer}.{name}": part for layer, parts in result.stages.two.memory.items() for name, part in parts.items()
    }
    return {name: buffer.clone() for name, buffer in memory.named_buffers()} | rest


def same(one, other):
    assert one.keys() == other.keys()
    for name, part in one.items():
        assert torch.equal(part, other[name]), name


@torch.no_grad()
def logits_of(network, ids, mask=None):
    positions = None if mask is None else (mask.cumsum(1) - 1).clamp(min=0)
    return network(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits


@pytest.mark.parametrize("method", METHODS)
def test_edits_show_and_the_network_keeps_its_weights(method, remembered):
    model = remembered(method).editor.language_model
    after = continuation_nll(model, PAIRS[:-1])[0]
    with model.unedited():
        before = continuation_nll(model, PAIRS[:-1])[0]
    assert (after < before - 0.1).double().mean() >= 0.75
    assert not any(weight.delta.any() for weight in model.edited.values())


@pytest.mark.parametrize("method", METHODS)
def test_a_prompt_has_one_answer_alone_in_a_batch_padded_either_way_and_token_by_token(method, remembered):
    model = remembered(method).editor.language_model
    rows = model.text.prompts([f"{fact['prompt']} {fact['target']}" for fact in FACTS[:3]] + ["guitar", *PAIRS[-1][:1]])
    alone = [logits_of(model.network, torch.tensor([row]))[0] for row in rows]
    with model.unedited():
        assert any(
            (logits_of(model.network, torch.tensor([r]))[0] - own).abs().max() > 0.1
            for r, own in zip(rows, alone, strict=True)
        )
    width = max(map(len, rows))
    for side in ("left", "right"):
        ids, mask = torch.full((len(rows), width), model.text.padding), torch.zeros(len(rows), width, dtype=torch.long)
        places = [slice(width - len(row), width) if side == "left" else slice(0, len(row)) for row in rows]
        for i, (row, place) in enumerate(zip(rows, places, strict=True)):
            ids[i, place], mask[i, place] = torch.tensor(row), 1
        together = logits_of(model.network, ids, mask)
        for i, place in enumerate(places):
            torch.testing.assert_close(together[i, place], alone[i], atol=1e-3, rtol=1e-4)
    for row, own in zip(rows, alone, strict=True):
        cache, steps = None, []
        for token in row:
            with torch.no_grad():
                out = model.network(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits[0, 0])
        torch.testing.assert_close(torch.stack(steps), own, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_those_of_plain_forwards_that_share_nothing(method, remembered):
    model = remembered(method).editor.language_model
    nll, _ = continuation_nll(model, PAIRS)
    for (prompt, answer), own in zip(model.text.continuations(PAIRS), nll.tolist(), strict=True):
        logits = logits_of(model.network, torch.tensor([prompt + answer[:-1]]))[0, -len(answer) :]
        wanted = -logits.log_softmax(1).gather(1, torch.tensor(answer).unsqueeze(1)).mean()
        assert own == pytest.approx(wanted.item(), abs=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_answers_are_those_that_transformers_generates(method, remembered):
    model = remembered(method).editor.language_model
    rows = model.text.prompts([prompt for prompt, _ in PAIRS[-4:]])
    found = decode(model, rows, [4] * len(rows), first_choice, lambda token: False)
    for row, own in zip(rows, found, strict=True):
        ids = torch.tensor([row])
        settings = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4, "eos_token_id": -1}
        whole = model.network.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        assert own == whole[0, len(row) :].tolist()


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_saved_and_resumed_is_the_one_that_was_not_bit_for_bit(method, small, tmp_path):
    whole = small(method, FACTS[:3], 2).edit(FACTS[3:])
    small(method, FACTS[:3], 2).save(tmp_path / "run")
    part = lke_lightning.resume(tmp_path / "run").edit(FACTS[3:])
    same(held(part), held(whole))
    assert part.after == whole.after
    path = newest(tmp_path / "run")
    checkpoint = torch.load(path, weights_only=True)
    weights = checkpoint["state_dict"]
    [name] = [name for name in weights if name.endswith((".live", ".floors"))]
    for rows in (weights[name][:-1], weights[name].unsqueeze(1).expand(-1, 2)):
        torch.save({**checkpoint, "state_dict": weights | {name: rows}}, path)
        with pytest.raises(EditError, match=r"is not of its edits|cannot be used"):
            lke_lightning.resume(path)


@pytest.mark.parametrize("method", METHODS)
def test_without_its_edits_the_model_is_the_unedited_one_bit_for_bit(method, small):
    result = small(method, FACTS[:4])
    model, ids = result.editor.language_model, torch.arange(4, 16).view(2, 6)
    edited = logits_of(model.network, ids)
    with model.unedited():
        base = logits_of(model.network, ids)
    mark, before = result.stages.mark(model, result.editor.register), held(result)
    result.edit(FACTS[4:6])
    result.stages.roll_back(model, result.editor.register, mark)
    same(held(result), before)
    assert torch.equal(logits_of(model.network, ids), edited)
    if method in EXACT:
        result.undo(*[fact["id"] for fact in FACTS[:4]])
        assert torch.equal(logits_of(model.network, ids), base)
        result.redo(*[fact["id"] for fact in FACTS[:4]])
        assert torch.equal(logits_of(model.network, ids), edited)
    else:
        with pytest.raises(EditError, match="cannot be undone exactly"):
            result.undo("Ana")
    result.revert()
    result.revert()
    assert torch.equal(logits_of(model.network, ids), base)
    assert result.edited == []
    with pytest.raises(EditError, match="no edit holds"):
        result.export("nowhere", format="module")
    result.edit(FACTS[6:])
    anew = logits_of(model.network, ids)
    if method in EXACT:
        result.redo("Ana")
        result.undo("Gus", "Hal")
        assert result.edited == ["Ana"]
        result.redo("Gus", "Hal")
        result.undo("Ana")
        assert torch.equal(logits_of(model.network, ids), anew)
    else:
        with pytest.raises(EditError, match="cannot be undone exactly"):
            result.redo("Ana")


@pytest.mark.parametrize("method", ["grace", "memoir"])
def test_an_interrupted_first_edit_leaves_no_hook_and_a_second_editor_is_refused(method, small, monkeypatch):
    networks = []

    def interrupted(self, *_):
        networks.append(self.model)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lke_lightning.api.EditedModel._edit_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            small(method)
    [network] = networks
    assert not any([*part._forward_hooks, *part._forward_pre_hooks] for part in network.modules())
    result = small(method, FACTS[:2])
    with pytest.raises(EditError, match="with edits stands beside this model"):
        lke_lightning.edit(result.model, result.tokenizer, FACTS[2:4], layers=[1])
    model, [hook] = result.editor.language_model, result.editor.language_model.architecture.matrix(2)._forward_hooks
    model.attach("memory", result.stages.two.made(model))
    assert hook not in model.architecture.matrix(2)._forward_hooks
    assert len(model.architecture.matrix(2)._forward_hooks) == 1


@pytest.mark.parametrize("method", METHODS)
def test_an_exported_memory_serves_transformers_alone(method, remembered, small_world, tmp_path):
    result = remembered(method)
    with pytest.raises(EditError, match="use --format module"):
        result.export(tmp_path / "merged")
    result.export(tmp_path / "memory", format="module")
    hook = (tmp_path / "memory" / "attach.py").read_text()
    assert sum(bool(line.strip()) for line in hook.splitlines()) <= 50
    assert "lke_lightning" not in hook
    spec = importlib.util.spec_from_file_location("exported_memory", tmp_path / "memory" / "attach.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    network = AutoModelForCausalLM.from_pretrained(small_world / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(small_world / "model", padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    batch = tokenizer([prompt for prompt, _ in PAIRS], return_tensors="pt", padding=True)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    settings = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    base = network.generate(**inputs, **settings)
    module.attach(network, tmp_path / "memory")
    found, wanted = network.generate(**inputs, **settings), result.model.generate(**inputs, **settings)
    assert torch.equal(found.sequences, wanted.sequences)
    torch.testing.assert_close(found.logits, wanted.logits, atol=1e-5, rtol=1e-5)
    assert not torch.equal(found.sequences, base.sequences)
    changed = AutoModelForCausalLM.from_config(network.config)
    with pytest.raises(ValueError, match="belongs to another model"):
        module.attach(changed, tmp_path / "memory")
    assert json.loads((tmp_path / "memory" / "memory.json").read_text())["edits"] == len(FACTS)
