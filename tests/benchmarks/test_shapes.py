"""The requests of the benchmarks are what stage one takes."""

from benchmarks import shapes
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.testing import tiny_network, tiny_tokenizer


def test_requests_are_descended():
    model = LanguageModel(tiny_network("llama"), tiny_tokenizer(), [0])
    made = shapes.requests(3, model.network.config.vocab_size, contexts=2, context_tokens=3)
    found = TargetOptimization(stopping=[], max_steps=2).descend(model, made)
    assert found.steps == [2, 2, 2]
    assert all(len(rows.targets) == len(rows.contexts) == 2 for rows in made)
