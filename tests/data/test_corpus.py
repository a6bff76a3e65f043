"""Text from files of every kind, and what is said of files that are none."""

import gzip
import json
from itertools import islice

import datasets
import huggingface_hub
import pandas
import pytest
import torch

from lke_lightning.data.corpus import (
    HUB_SECONDS,
    LENGTH,
    OPENINGS,
    ROWS,
    TextCorpus,
    check_files,
    read_documents,
    sampled,
)
from lke_lightning.demo.world import make_world
from lke_lightning.edits import EditError
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.testing import tiny_network, tiny_tokenizer

TEXTS = ["one", "two of them", "drei \u00e4"]


def packed(text):
    return gzip.compress(text.encode(), mtime=0)


@pytest.fixture(
    params=["a.txt", "a.jsonl", "a.json", "a.csv", "a.parquet", "a.txt.gz", "a.jsonl.gz", "a[1]*?.txt", "b{}.jsonl"]
)
def file(request, tmp_path):
    """The three texts, with blank ones between."""
    path, documents = tmp_path / request.param, [TEXTS[0], " ", TEXTS[1], "", TEXTS[2]]
    table = pandas.DataFrame({"number": range(5), "text": documents})
    lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
    text = {".txt": "\n".join(documents), ".jsonl": lines, ".json": json.dumps([{"text": t} for t in documents])}
    suffix = path.with_name(path.name.removesuffix(".gz")).suffix
    if suffix == ".parquet":
        table.to_parquet(path)
    elif suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        path.write_bytes(packed(text[suffix]) if path.suffix == ".gz" else text[suffix].encode())
    return str(path)


def test_documents_of_a_file(file):
    check_files([file], "drift.text")
    assert list(read_documents([file, file], "drift.text")) == TEXTS * 2
    corpus = TextCorpus([file], "x")
    assert list(corpus.documents()) == TEXTS


def test_the_demo_world_and_files_in_order(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    corpus = TextCorpus([str(tmp_path / "a.txt"), "demo"], "x")
    assert list(corpus.documents()) == ["one", "two", *make_world().corpus()]


def test_identity_follows_the_content(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    first = TextCorpus([str(tmp_path / "a.txt"), "demo"], "x").identity()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.txt").write_text("one")
    assert TextCorpus([str(tmp_path / "b" / "a.txt"), "demo"], "x").identity() == first
    (tmp_path / "a.txt").write_text("two")
    assert TextCorpus([str(tmp_path / "a.txt"), "demo"], "x").identity() != first
    hub = TextCorpus(["wikimedia/wikipedia:20231101.en"], "x")
    assert hub.identity() == "wikimedia/wikipedia:20231101.en"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", None, "no text file"),
        ("a.txt", b"", "is empty"),
        ("a.csv", b"", "is empty"),
        ("a.txt", b"\n \n", "holds no text"),
        ("a.jsonl", b"\n\n", "cannot be read|holds no text"),
        ("a.txt", b"one\n\xff two", "is not UTF-8"),
        ("a.jsonl", b'{"text": "\xff"}\n', "is not UTF-8"),
        ("a.jsonl", b'{"text": "a"\n', "JSON parse error"),
        ("a.json", b"3", "cannot be read"),
        ("a.jsonl", b'{"txt": "a"}\n', "has no column 'text', only 'txt'"),
        ("a.csv", b"txt,x\na,1\n", "has no column 'text', only 'txt', 'x'"),
        ("a.jsonl", b'{"text": 3}\n', "record 1 of .* has 3 as its 'text': it must be a string"),
        ("a.jsonl", b'{"text": null}\n', "holds no text"),
        ("a.csv", b"text\na,1\nb,c,d\n", "cannot be read"),
        ("a.parquet", b"PAR1 and more", "cannot be read"),
        ("a.txt.gz", packed("one " * 1000)[:20], "cannot be read: Compressed file ended"),
        ("a.txt.gz", b"not packed", "cannot be read: Not a gzipped file"),
        ("a.md", b"one", "no text file that can be read: there are .txt, .json"),
    ],
)
def test_what_is_no_text_is_refused_with_its_name_and_the_option(name, content, message, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EditError, match=message) as caught:
        TextCorpus([str(path)] if path.exists() or name != "a.md" else [], "drift.text")
    assert str(path) in str(caught.value)
    assert "drift.text" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_damage_that_comes_later_is_found_when_it_is_read(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(packed("".join(f"{number * 7919 % 1000003}\n" for number in range(1000))))
    corpus = TextCorpus([str(path)], "x")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(EditError, match="Compressed file ended"):
        list(corpus.documents())


@pytest.mark.parametrize("error", [ConnectionError("no way\nto it"), ValueError("Config name is missing.\nPick one")])
def test_a_hub_that_cannot_be_reached_is_one_sentence(error, monkeypatch):
    def load_dataset(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    corpus = TextCorpus(["someone/something"], "x.corpus")
    with pytest.raises(EditError, match=r"'someone/something' \(x.corpus\) is neither .*: \w+") as caught:
        next(corpus.documents())
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("error", [ConnectionError("no way"), TimeoutError("too late"), RuntimeError("of its own")])
def test_without_a_network_a_hub_name_fails_at_once_and_names_the_choices(error, monkeypatch):
    asked = []

    def dataset_info(_, name, timeout):
        asked.append((name, timeout))
        raise error

    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("this retries"))
    corpus = TextCorpus(["someone/something:en"], "x.corpus")
    message = r"'someone/something:en' \(x.corpus\) .*own text, 'demo' .*HF_HUB_OFFLINE=1"
    with pytest.raises(EditError, match=message) as caught:
        next(corpus.documents())
    assert len(str(caught.value).splitlines()) == 1
    model = LanguageModel(tiny_network("llama"), tiny_tokenizer(), [1])
    with pytest.raises(EditError, match=r"own text, 'model' for .*, 'demo' "):
        next(corpus.documents(model))
    assert asked == [("someone/something", HUB_SECONDS)] * 2
    assert HUB_SECONDS <= 5


def test_a_copy_in_the_cache_is_read_without_the_network(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: pytest.fail("there is no network"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [{"text": "one"}])
    assert list(TextCorpus(["someone/something"], "x").documents()) == ["one"]


@pytest.mark.parametrize("bos", [False, True])
def test_text_of_a_model_is_its_own_and_the_same_each_time(bos):
    network = tiny_network("llama")
    network.generation_config.update(repetition_penalty=9.0, eos_token_id=1)  # of no account
    model = LanguageModel(network, tiny_tokenizer(bos=bos), [1])
    before = torch.get_rng_state()
    texts = list(islice(sampled(model), ROWS + 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert texts == list(islice(TextCorpus(["model"], "corpus").documents(model), ROWS + 1))
    assert texts != list(islice(sampled(model, seed=1), ROWS + 1))
    assert len(set(texts)) == ROWS + 1, "no two texts are the same"
    for number, text in enumerate(texts):
        opening = OPENINGS[number % len(OPENINGS)]
        assert text[0] == opening[0]
    assert max(map(len, model.text.encode(texts))) > LENGTH // 2, "they do not end early"
