"""Second moments of keys against plain forwards, their cache, and files of them that users bring."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lke_lightning.edits import EditError
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.model.tokens import Row
from lke_lightning.stage_two.preservation import NormPenalty, NullSpace
from lke_lightning.stage_two.solvers import LeastSquares
from lke_lightning.stage_two.statistics import KeyStatistics, Statistics, StoredStatistics
from lke_lightning.stage_two.update import WeightUpdate
from lke_lightning.testing import WORDS, tiny_network, tiny_tokenizer


def make_model(family="gpt2", layers=(0, 1, 2)):
    return LanguageModel(tiny_network(family), tiny_tokenizer(), list(layers))


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    texts = [" ".join(WORDS[i:] + WORDS[: i // 2]) for i in range(len(WORDS))] * 3
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return texts, str(path)


def test_second_moments_of_all_layers(corpus, tmp_path):
    texts, path = corpus
    model = make_model()
    found = KeyStatistics(path, tokens=10_000, cache_dir=str(tmp_path), batch_tokens=64).second_moments(model)
    for layer in model.layers:
        keys = []
        for ids in model.text.encode(texts):
            [(given, _)] = model.observe(_alone(model, ids), [model.architecture.matrix(layer)], stop=layer + 1)
            keys.append(given[0])
        keys = torch.cat(keys)
        torch.testing.assert_close(found[layer].double(), keys.T @ keys / len(keys), rtol=1e-5, atol=1e-6)


def _alone(model, ids):
    return model.text.pad([Row(ids, 0)])


def test_cache_is_used_for_the_same_model_and_not_for_another(corpus, tmp_path, monkeypatch):
    statistics = KeyStatistics(corpus[1], tokens=2000, cache_dir=str(tmp_path))
    first = statistics.second_moments(make_model())
    monkeypatch.setattr(KeyStatistics, "_compute", lambda *_: pytest.fail("computed again"))
    again = statistics.second_moments(make_model())
    assert all(torch.equal(first[layer], again[layer]) for layer in first)
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        statistics.second_moments(make_model("llama"))
    with pytest.raises(pytest.fail.Exception, match="computed again"):
        KeyStatistics(corpus[1], tokens=2001, cache_dir=str(tmp_path)).second_moments(make_model())


@pytest.fixture
def cached(corpus, tmp_path):
    """Statistics of one layer in the cache, and their file."""
    statistics = KeyStatistics(corpus[1], tokens=2000, cache_dir=str(tmp_path / "cache"))
    moment = statistics.second_moments(make_model(layers=(1,)))[1]
    [file] = (tmp_path / "cache").rglob("*.safetensors")
    return statistics, moment, file


def cut(file):
    file.write_bytes(file.read_bytes()[:2000])


def flip(file):
    data = bytearray(file.read_bytes())
    data[-1001] ^= 1
    file.write_bytes(data)


def shorten_header(file):
    file.write_bytes(file.read_bytes()[:7])


def empty(file):
    file.write_bytes(b"")


def mistake(file):
    save_file(load_file(file), file, metadata={"model": "another"})


@pytest.mark.parametrize("damage", [cut, flip, shorten_header, empty, mistake], ids=lambda damage: damage.__name__)
def test_a_damaged_file_of_the_cache_is_named_and_made_anew(damage, cached):
    statistics, moment, file = cached
    whole = file.read_bytes()
    damage(file)
    with pytest.warns(UserWarning, match=rf"{file.name} is damaged and is made anew"):
        assert torch.equal(statistics.second_moments(make_model(layers=(1,)))[1], moment)
    assert file.read_bytes() == whole


def test_where_nothing_can_be_kept_the_run_goes_on_with_a_warning(cached):
    statistics, moment, file = cached
    file.unlink()
    file.mkdir()
    with pytest.warns(UserWarning, match="not be cached for the next run: cannot write"):
        assert torch.equal(statistics.second_moments(make_model(layers=(1,)))[1], moment)
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_statistics_of_an_edited_model_are_those_of_the_unedited_one(family, corpus, tmp_path):
    model = make_model(family)
    fresh = KeyStatistics(corpus[1], tokens=2000, cache_dir=str(tmp_path / "fresh")).second_moments(model)
    torch.manual_seed(0)
    for weight in model.edited.values():
        weight.add(torch.randn_like(weight.delta))
    deltas = {layer: model.weight(layer).delta.clone() for layer in model.layers}
    live = {layer: model.weight(layer).matrix.weight.clone() for layer in model.layers}
    late = KeyStatistics(corpus[1], tokens=2000, cache_dir=str(tmp_path / "late"))
    for found in (late.second_moments(model), late.second_moments(model)):  # computed, then from the cache
        assert all(torch.equal(found[layer], fresh[layer]) for layer in model.layers)
    for layer in model.layers:
        assert torch.equal(model.weight(layer).delta, deltas[layer])
        assert torch.equal(model.weight(layer).matrix.weight, live[layer])


def test_any_source_is_read_while_the_model_is_unedited():
    class OfTheWeights(Statistics):
        def second_moments(self, model):
            seen.append([model.weight(layer).matrix.weight.clone() for layer in model.layers])
            return {layer: torch.eye(model.weight(layer).delta.shape[1]) for layer in model.layers}

    seen, model = [], make_model()
    unedited = [model.weight(layer).matrix.weight.clone() for layer in model.layers]
    for weight in model.edited.values():
        weight.add(torch.ones_like(weight.delta))
    WeightUpdate(LeastSquares([NormPenalty(1.0)]), statistics=OfTheWeights()).prepare(model)
    assert all(torch.equal(was, now) for was, now in zip(unedited, seen[0], strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "tokens is 0: it must be at least 1"),
        ({"tokens": -5}, "tokens is -5"),
        ({"length": 0}, "length is 0"),
        ({"batch_tokens": -1}, "batch_tokens is -1"),
        ({"corpus": []}, "names no text"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(options, message, tmp_path):
    with pytest.raises(EditError, match=message):
        KeyStatistics(**options, cache_dir=str(tmp_path))


def test_one_eigendecomposition_serves_every_threshold(tmp_path, monkeypatch):
    statistics = KeyStatistics(cache_dir=str(tmp_path))
    root = torch.randn(30, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moment = root.T @ root
    solver = LeastSquares([NormPenalty(1.0)], null_space=NullSpace(20.0))
    expected = solver.init(moment)["inverse"]
    torch.testing.assert_close(solver.init(moment, eigen=statistics.eigen)["inverse"], expected)
    monkeypatch.setattr(torch.linalg, "eigh", lambda _: pytest.fail("decomposed again"))
    for threshold in (10.0, 20.0, 30.0):
        found = LeastSquares([NormPenalty(1.0)], null_space=NullSpace(threshold)).init(moment, eigen=statistics.eigen)
        assert 0 < found["basis"].shape[1] < 24


@pytest.fixture
def stored(tmp_path):
    """Write tensors as a user's file of statistics of layer 1."""

    def write(moment, name="transformer.h.1.mlp.c_proj"):
        save_file({name: moment}, tmp_path / "moments.safetensors")
        return str(tmp_path / "moments.safetensors")

    return write


def some_moment():
    keys = torch.randn(200, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return keys.T @ keys / 200


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_stored_statistics_are_taken_as_they_are(dtype, stored):
    moment = some_moment().to(dtype)
    assert torch.equal(StoredStatistics(stored(moment)).second_moments(make_model(layers=(1,)))[1], moment)


def test_stored_statistics_must_fit(stored):
    with pytest.raises(EditError, match="no statistics of"):
        StoredStatistics(stored(torch.eye(64))).second_moments(make_model(layers=(2,)))
    with pytest.raises(EditError, match="keys need"):
        StoredStatistics(stored(torch.eye(32))).second_moments(make_model(layers=(1,)))


def with_entry(row, column, value):
    moment = some_moment()
    moment[row, column] = value
    return moment


@pytest.mark.parametrize(
    ("moment", "message"),
    [
        (with_entry(3, 5, torch.nan), "not finite"),
        (with_entry(3, 3, torch.inf), "not finite"),
        (with_entry(3, 3, -0.1), "an entry below 0"),
        (with_entry(3, 5, 1.0), "not symmetric"),
    ],
)
def test_what_is_no_second_moment_is_refused(moment, message, stored):
    with pytest.raises(EditError, match=rf"c_proj' in '.*moments.safetensors' is not a second moment.*{message}"):
        StoredStatistics(stored(moment)).second_moments(make_model(layers=(1,)))


@pytest.mark.parametrize(
    "moment", [torch.eye(64, dtype=torch.int64), torch.eye(64).bool(), torch.ones(64), torch.ones(64, 32)]
)
def test_what_cannot_be_a_second_moment_is_refused_before_a_model_is_there(moment, stored):
    with pytest.raises(EditError, match=r"c_proj' in '.*' is \w+ of shape"):
        StoredStatistics(stored(moment))


def test_a_file_of_something_else_is_refused_by_name(stored, tmp_path):
    with pytest.raises(EditError, match=r"no statistics file '.*nowhere'"):
        StoredStatistics(str(tmp_path / "nowhere"))
    path = Path(stored(torch.eye(64)))
    for content in (path.read_bytes()[:1000], b"", b"not a tensor", path.read_bytes() + b"more"):
        path.write_bytes(content)
        with pytest.raises(EditError, match=r"moments\.safetensors'.*truncated or not a safetensors file"):
            StoredStatistics(str(path))
    save_file({}, path)
    with pytest.raises(EditError, match="holds no tensor"):
        StoredStatistics(str(path))


def test_statistics_of_the_models_own_text_are_those_of_the_unedited_model(tmp_path):
    model = make_model("llama")
    found = KeyStatistics("model", tokens=2000, cache_dir=str(tmp_path / "a")).second_moments(model)
    model.weight(1).add(torch.randn_like(model.weight(1).delta))
    again = KeyStatistics("model", tokens=2000, cache_dir=str(tmp_path / "b")).second_moments(model)
    assert model.weight(1).delta.any()
    assert all(torch.equal(found[layer], again[layer]) for layer in model.layers)
