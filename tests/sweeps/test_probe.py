"""Causal tracing against plain forwards; the command on a tiny model, and again without doing anything twice."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from lke_lightning.data import RequestList
from lke_lightning.edits import EditError, EditRequest
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.sweeps import probe as probing
from lke_lightning.sweeps.layers import best_window, candidates
from lke_lightning.sweeps.tracing import PLACES, _encode, _noise, trace
from lke_lightning.testing import tiny_network, tiny_tokenizer

FACTS = [
    EditRequest("0", "{} was born in", "city", "Ana of the river", "guitar"),
    EditRequest("1", "the sport of {} is", "city", "Bob", "piano"),
]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj"])
def test_a_trace_is_what_plain_forwards_say(family):
    model = LanguageModel(tiny_network(family), tiny_tokenizer(bos=True), [0])
    together = trace(model, FACTS, noise=2.0, samples=2)
    for fact, found in zip(FACTS, together, strict=True):
        [alone] = trace(model, [fact], noise=2.0, samples=2)
        assert alone.restored[PLACES[0]] == pytest.approx(found.restored[PLACES[0]], rel=1e-6)
        asked = _encode(model, fact)
        assert model.text.tokenizer.decode(asked.row.ids[asked.start : asked.row.slot + 1]).strip() == fact.subject
        ids, blocks = torch.tensor([asked.row.ids]), model.architecture.blocks
        embeddings = model.network.get_input_embeddings()
        with torch.no_grad():
            clean = model.network(ids, output_hidden_states=True)
            assert clean.logits[0, -1].softmax(0)[asked.answer].item() == pytest.approx(found.clean, rel=1e-5)
            noise = (
                _noise([asked], (2, ids.shape[1], embeddings.weight.shape[1]), 2, 0)
                * 2.0
                * embeddings.weight.float().std()
            )
            layer, chances = 1, []
            for sample in noise.double():
                corrupt = embeddings.register_forward_hook(lambda _m, _a, out, sample=sample: out + sample)

                def restore(_m, _a, out, asked=asked, clean=clean, layer=layer):
                    hidden = out[0] if isinstance(out, tuple) else out
                    hidden[:, asked.row.slot] = clean.hidden_states[layer + 1][:, asked.row.slot]
                    return out

                mend = blocks[layer].register_forward_hook(restore)
                chances.append(model.network(ids, use_cache=False).logits[0, -1].softmax(0)[asked.answer].item())
                corrupt.remove()
                mend.remove()
        assert sum(chances) / 2 == pytest.approx(found.restored[PLACES[0]][layer], rel=1e-4)


def test_restoring_the_last_token_after_the_last_layer_restores_all():
    model = LanguageModel(tiny_network("llama"), tiny_tokenizer(), [0])
    for found in trace(model, FACTS):
        assert found.restored[PLACES[1]][-1] == pytest.approx(found.clean)
        assert found.restored[PLACES[0]][-1] == pytest.approx(found.corrupted)


@pytest.fixture
def known(tmp_path):
    """A tiny model in a folder, with facts that it knows because they are what it says anyway."""
    network, tokenizer = tiny_network("llama").float(), tiny_tokenizer()
    network.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    facts = []
    for i, name in enumerate(["Ana", "Bob", "Cyd", "Dan"]):
        ids = tokenizer(f"{name} speaks")["input_ids"]
        with torch.no_grad():
            best = network(torch.tensor([ids])).logits[0, -1]
        text = tokenizer.decode(best.argsort(descending=True)[:1]) or "x"
        facts.append(EditRequest(str(i), "{} speaks", "guitar", name, text, paraphrases=(f"now {name} speaks",)))
    (tmp_path / "text.txt").write_text("the river is in the city. " * 20)
    method = tmp_path / "method.yaml"
    method.write_text(
        f"""
stage_one: {{max_steps: 3, contexts: {{templates: []}}}}
stage_two:
  solver:
    class_path: LeastSquares
    init_args: {{preservation: [{{class_path: BaseStatistics, init_args: {{weight: 1.0}}}}]}}
  statistics:
    class_path: KeyStatistics
    init_args: {{corpus: {tmp_path / "text.txt"}, tokens: 100, cache_dir: {tmp_path / "cache"}}}
"""
    )
    return tmp_path, RequestList(facts), str(method)


def test_a_probe_that_knows_nothing_says_so(known):
    folder, _, method = known
    unknown = RequestList([EditRequest("0", "{} speaks", "a", "Ana", "the capital of the native tongue")])
    with pytest.raises(EditError, match="facts that it knows"):
        probing.probe(str(folder / "model"), unknown, method, output=str(folder / "out"))


def test_a_proposal_holds_layers_and_the_fulfilment_that_protects_most_of_equals(known, monkeypatch, capsys):
    folder, stream, method = known
    Path(method).write_text(Path(method).read_text().replace("weight: 1.0", "fulfilment: 0.7"))
    edited = probing._edit

    def like_the_others(*given, **how):
        found = edited(*given, **how)
        assert 0 <= found["efficacy"]["success"] <= 1
        return {**found, "score": 0.5}

    monkeypatch.setattr(probing, "_edit", like_the_others)
    monkeypatch.setattr(probing, "_known", lambda model, requests, wanted: list(requests)[:wanted])
    probing.probe(str(folder / "model"), stream, method, facts=2, trials=2, samples=1, output=str(folder / "out"))
    found = json.loads((folder / "out" / "probe.json").read_text())
    tried = [point["settings"]["BaseStatistics.fulfilment"] for point in found["strengths"]]
    assert found["proposed"] == {"layers": [0], "BaseStatistics.fulfilment": min(tried)}
    proposed = yaml.safe_load((folder / "out" / "proposed.yaml").read_text())
    assert proposed["model"]["layers"] == [0]
    [term] = proposed["stage_two"]["solver"]["init_args"]["preservation"]
    assert term["init_args"] == {"fulfilment": min(tried)}
    assert f"layers [0], BaseStatistics.fulfilment={min(tried)}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("alone", [True, False])
def test_a_fact_that_comes_twice_is_edited_anew(known, alone):
    """Every trial starts from the unedited model: nothing of the fact's first edit is left to be replaced."""
    _, stream, method = known
    model = LanguageModel(tiny_network("llama").float(), tiny_tokenizer(), [0])
    stream.setup("fit")
    fact = stream.requests[0]
    config = {**yaml.safe_load(Path(method).read_text())}
    config["stage_two"]["solver"]["init_args"]["past_edits"] = {"weight": 1.0}
    before = model.weight(0).live().clone()
    once = probing._edit(model, config, [fact], alone)
    twice = probing._edit(model, config, [fact, fact], alone)
    assert once["efficacy"] == twice["efficacy"]
    assert torch.equal(model.weight(0).live(), before)


def test_a_probe_goes_on_where_it_was_stopped(known, monkeypatch):
    folder, _, _ = known
    done = probing._Done(folder / "out", {"facts": 1})
    done.add("layer 0", 1)
    with (folder / "out" / "found.jsonl").open("a") as file:
        file.write('["layer 1", ')  # cut off
    again = probing._Done(folder / "out", {"facts": 1})
    assert again.once("layer 0", lambda: pytest.fail("done twice")) == 1
    assert again.once("layer 1", lambda: 2) == 2
    assert [json.loads(line)[0] for line in (folder / "out" / "found.jsonl").read_text().splitlines()] == [
        "settings", "layer 0", "layer 1",
    ]  # fmt: skip
    with pytest.raises(EditError, match="another model"):
        probing._Done(folder / "out", {"facts": 2})


def test_candidates_are_few_and_low():
    assert candidates(1) == [0]
    assert candidates(3) == [0, 1]
    assert candidates(32) == [0, 4, 8, 13, 17, 21]


def test_the_window_is_the_best_on_average():
    assert best_window({0: 0.1, 4: 0.9, 8: 0.8, 13: 0.2, 17: 0.1, 21: 0.0}, 32) == [4, 5, 6, 7, 8]
    assert best_window({0: 0.1, 1: 0.4}, 3) == [1]
    assert best_window({4: 0.3}, 12) == [0, 1, 2, 3]
    with pytest.raises(EditError, match="no single layer"):
        best_window({}, 12)
