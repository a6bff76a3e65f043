"""The recipe of the demo model on a model that trains in seconds."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lke_lightning import demo
from lke_lightning.demo.pretraining import END_OF_TEXT, IGNORED, measure_knowledge, pack, pretrain, train_tokenizer
from lke_lightning.demo.world import World, make_world

SHIPPED = Path(demo.__file__).parent / "model"


@pytest.fixture(scope="module")
def world():
    return make_world(0)


@pytest.fixture(scope="module")
def tokenizer(world):
    return train_tokenizer(world.training_documents(), vocabulary=1024)


def test_tokenizer_adds_nothing_and_reads_a_name_alike_everywhere(world, tokenizer):
    subject = world.facts[0].subject
    alone = tokenizer(subject)["input_ids"]
    inside = tokenizer(f"Therefore {subject}")["input_ids"]
    assert inside[-len(alone) :] == alone
    assert tokenizer.bos_token is None
    assert tokenizer.eos_token == tokenizer.pad_token == END_OF_TEXT
    assert tokenizer.decode(alone).strip() == subject


def test_windows_hold_whole_documents(tokenizer):
    inputs, labels = pack(["The old farmer found a road."] * 7, tokenizer, window=40).tensors
    end = tokenizer.eos_token_id
    assert (inputs[:, 0] == inputs[0, 0]).all()
    assert ((labels == inputs) | (labels == IGNORED)).all()
    assert int((labels == end).sum()) == 7


def test_pretrain_leaves_a_folder_that_loads(tmp_path, monkeypatch, world):
    facts = [fact for fact in world.facts if fact.relation == "cargo"]
    world = World(facts, {fact.subject: "ship" for fact in facts}, seed=0)
    monkeypatch.setattr("lke_lightning.demo.pretraining.make_world", lambda seed: world)
    output = tmp_path / "model"
    size = {"vocabulary": 512, "hidden": 32, "mlp": 64, "layers": 1, "heads": 1, "passes": 1, "warmup_steps": 2}
    measured = pretrain(output, **size, batch_size=4, max_steps=10)
    model = AutoModelForCausalLM.from_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert measured["parameters"] == model.num_parameters()
    assert measure_knowledge(model, tokenizer, world.records()[:20])["edit_prompts"] < 0.5
    assert "Apache-2.0" in (output / "README.md").read_text()
    assert "loss" in (output / "training_log.csv").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_measure_knowledge_sees_a_known_and_an_unknown_fact(world, tokenizer):
    """A model that always says the same word knows exactly the facts with that object."""
    record = world.records()[0]
    record["requested_rewrite"]["target_true"]["str"] = "was"
    answer = tokenizer(" was")["input_ids"][0]

    class Parrot:
        device = torch.device("cpu")

        def __call__(self, input_ids, attention_mask):
            logits = torch.zeros(*input_ids.shape, len(tokenizer))
            logits[..., answer] = 1.0
            return type("Output", (), {"logits": logits})

    assert measure_knowledge(Parrot(), tokenizer, [record]) == {"edit_prompts": 1, "paraphrases": 1, "neighborhood": 1}
    record["requested_rewrite"]["target_true"]["str"] = "nothing of the kind"
    assert measure_knowledge(Parrot(), tokenizer, [record])["edit_prompts"] == 0


@pytest.fixture(scope="module")
def shipped():
    return AutoModelForCausalLM.from_pretrained(SHIPPED), AutoTokenizer.from_pretrained(SHIPPED)


def test_the_shipped_model_knows_its_world(world, shipped):
    known = measure_knowledge(*shipped, world.records()[:60])
    assert known["edit_prompts"] >= 0.95
    assert known["paraphrases"] >= 0.85


def test_names_differ_in_their_last_token(world, shipped):
    """Edits are keyed on the last token of the subject, so no two subjects may share it."""
    _, tokenizer = shipped
    subjects = {fact.subject for fact in world.facts}
    tokens = tokenizer(sorted(subjects))["input_ids"]
    assert len({name[-1] for name in tokens}) == len(subjects)
    assert {len(name) for name in tokens} == {1, 2, 3, 4, 5}


def test_the_shipped_folder_is_small():
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 14e6
