"""Two batches of edits, each measured by what the model says first, for every family and length of target."""

import pytest
import torch

from lke_lightning import edit
from lke_lightning.stage_one.contexts import ContextTemplates
from lke_lightning.stage_one.objectives import NegativeLogLikelihood
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_one.stopping import MostProbable
from lke_lightning.stage_one.target_space import NormBall
from lke_lightning.stage_two.preservation import NormPenalty, PastEdits
from lke_lightning.stage_two.solvers import LeastSquares
from lke_lightning.stage_two.update import WeightUpdate
from lke_lightning.testing import tiny_network, tiny_tokenizer
from tests.families.families import FAMILIES

FACTS = [("Ana was born in the", "Ana"), ("Bob plays the", "Bob"), ("Cyd speaks", "Cyd"), ("the sport of Dan is", "Dan")]
TARGETS = {"single": ["city", "guitar", "piano", "river"], "multi": ["big zoo", "red drum kit", "old lute", "sea side"]}


def run(family, length):
    network, tokenizer = tiny_network(family.kind, **family.changes).float(), tiny_tokenizer()
    facts = [
        {"prompt": prompt, "subject": subject, "target": target}
        for (prompt, subject), target in zip(FACTS, TARGETS[length], strict=True)
    ]
    stage_one = TargetOptimization(
        [NegativeLogLikelihood()],
        [MostProbable(12)],
        NormBall(40.0),
        ContextTemplates(templates=["the river. {}"]),
        lr=0.6,
        max_steps=80,
    )
    stage_two = WeightUpdate(LeastSquares([NormPenalty(1e-4)], PastEdits()))
    result = edit(network, tokenizer, facts, [1, 2], stage_one, stage_two, batch_size=2)
    said = []
    for prompt_ids, target in result.editor.language_model.text.continuations(
        [(fact["prompt"], fact["target"]) for fact in facts]
    ):
        with torch.no_grad():  # by a plain forward, not by anything of this package
            best = network(torch.tensor([prompt_ids + target])).logits[0].argmax(1).tolist()
        said.append(tuple(best[len(prompt_ids) - 1 : -1]) == target)
        assert (len(target) > 1) == (length == "multi")
    return said, result


@pytest.mark.parametrize("length", ["single", "multi"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if f.daily else pytest.mark.slow) for name, f in FAMILIES.items()]
)
def test_two_batches_of_edits_are_what_the_model_says(name, length):
    said, result = run(FAMILIES[name], length)
    assert all(said), said
    assert result.editor.made == 4
    assert result.after["efficacy"]["accuracy"] == 1
    assert result.before["efficacy"]["accuracy"] < 1
