"""A tiny model in a folder, facts to edit, and the arguments of `fit` for them."""

import json

import pytest

from lke_lightning.testing import WORDS, tiny_network, tiny_tokenizer

NAMES = ["Ana", "Bob", "Cyd", "Dan"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    texts = [f"{name} {word}" for name in NAMES for word in WORDS]
    tiny_network("llama", layers=3).float().save_pretrained(folder / "model")
    tiny_tokenizer(texts).save_pretrained(folder / "model")
    facts = [
        {
            "prompt": f"{name} was born in the",
            "subject": name,
            "target": "city",
            "original": "river",
            "paraphrases": [f"The city of {name} is the"],
            "neighborhood": [f"{other} was born in the"],
        }
        for name, other in zip(NAMES, NAMES[1:] + NAMES[:1], strict=True)
    ]
    (folder / "facts.jsonl").write_text("\n".join(map(json.dumps, facts)))
    (folder / "text.txt").write_text("\n".join(" ".join(texts[i:] + texts[:i]) for i in range(0, 40, 2)))
    return [
        "-c", "configs/method/encore.yaml", "-c", "tests/conf/tiny.yaml",
        "--model.pretrained", str(folder / "model"), "--model.layers", "[0, 1]", "--stage_one.max_steps", "4",
        "--data", "JsonLines", "--data.path", str(folder / "facts.jsonl"), "--data.batch_size", "2",
        "--stage_two.statistics", "KeyStatistics", "--stage_two.statistics.corpus", str(folder / "text.txt"),
        "--stage_two.statistics.tokens", "2000", "--stage_two.statistics.cache_dir", str(folder / "cache"),
        "--scorecard.text", json.dumps([str(folder / "text.txt")]), "--scorecard.text_tokens", "300",
        "--trainer.accelerator", "cpu",
    ]  # fmt: skip
