"""Editing a model that is already loaded."""

import pytest
import torch

from lke_lightning import EditError, EditRequest, edit
from lke_lightning.composition import compose
from lke_lightning.published import Published
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_one.target_space import NormBall
from lke_lightning.stage_two.preservation import BaseStatistics, NormPenalty, PastEdits
from lke_lightning.stage_two.solvers import LeastSquares
from lke_lightning.stage_two.statistics import KeyStatistics
from lke_lightning.stage_two.update import WeightUpdate
from lke_lightning.testing import WORDS, tiny_network, tiny_tokenizer

FACTS = [
    {"prompt": "Bob was born in", "subject": "Bob", "target": "city", "original": "river"},
    EditRequest(id="b", prompt="{} plays", subject="Ana", target="guitar", original="sport"),
]


def stages(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(" ".join(WORDS[i:] + WORDS[:i] + ["Bob", "Ana"]) for i in range(len(WORDS))))
    solver = LeastSquares([BaseStatistics(0.1), NormPenalty(0.01)], PastEdits())
    statistics = KeyStatistics(str(text), tokens=1000, cache_dir=str(tmp_path))
    return TargetOptimization(space=NormBall(5.0), max_steps=30), WeightUpdate(solver, statistics=statistics)


def test_edit_and_revert(tmp_path):
    network, tokenizer = tiny_network("gpt2").float(), tiny_tokenizer()
    original = {name: weight.clone() for name, weight in network.state_dict().items()}
    result = edit(network, tokenizer, FACTS, [0, 1], *stages(tmp_path), batch_size=1)
    assert result.after["efficacy"]["magnitude"] > result.before["efficacy"]["magnitude"]
    changed = [name for name, weight in network.state_dict().items() if not torch.equal(weight, original[name])]
    assert changed == ["transformer.h.0.mlp.c_proj.weight", "transformer.h.1.mlp.c_proj.weight"]
    result.revert()
    assert all(torch.equal(weight, original[name]) for name, weight in network.state_dict().items())


def test_a_wrong_request_changes_nothing(tmp_path):
    network = tiny_network("gpt2").float()
    original = network.transformer.h[0].mlp.c_proj.weight.clone()
    with pytest.raises(EditError, match="target' is empty"):
        edit(network, tiny_tokenizer(), [*FACTS, {"prompt": "x", "target": ""}], [0], *stages(tmp_path))
    assert torch.equal(network.transformer.h[0].mlp.c_proj.weight, original)


def test_an_unsayable_target_is_found_before_the_first_batch(tmp_path):
    network, tokenizer = tiny_network("gpt2").float(), tiny_tokenizer()
    tokenizer.unk_token = "</s>"
    original = network.transformer.h[0].mlp.c_proj.weight.clone()
    with pytest.raises(EditError, match=r"edit 2: the target .* unknown to this vocabulary"):
        edit(network, tokenizer, [*FACTS, {"prompt": "x is", "target": "</s>"}], [0], *stages(tmp_path), batch_size=1)
    assert torch.equal(network.transformer.h[0].mlp.c_proj.weight, original)


def test_without_layers_it_says_how_to_give_them(tmp_path):
    with pytest.raises(EditError, match="no layers to edit"):
        edit(tiny_network("gpt2"), tiny_tokenizer(), FACTS, None, *stages(tmp_path))


def test_stages_come_from_a_configuration():
    found = Published.compose("encore", "llama3-8b", "counterfact").config
    assert found["model"]["layers"] == [4, 5, 6, 7, 8]
    made, _ = compose(found)
    assert [type(rule).__name__ for rule in made.one.stopping] == ["MostProbable", "LossBelow"]
    assert [term.weight for term in made.two.solver.preservation] == [15000, 20]
    with pytest.raises(EditError, match="no configuration"):
        edit(None, None, [], config="nowhere.yaml")
