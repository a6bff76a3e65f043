"""Two batches of edits, each measured by what the model says first, for every family and length of target.

The tiny models are taught a few facts before: what a random network says can hardly be changed by one activation.
"""

import json
import random
from pathlib import Path

import pytest
import torch

from lke_lightning import edit
from lke_lightning.stage_one.contexts import ContextTemplates
from lke_lightning.stage_one.objectives import NegativeLogLikelihood
from lke_lightning.stage_one.optimization import TargetOptimization
from lke_lightning.stage_one.stopping import MostProbable
from lke_lightning.stage_one.target_space import NormBall
from lke_lightning.stage_two.preservation import BaseStatistics, NormPenalty, PastEdits
from lke_lightning.stage_two.solvers import LeastSquares
from lke_lightning.stage_two.statistics import KeyStatistics
from lke_lightning.stage_two.update import WeightUpdate
from lke_lightning.testing import tiny_network, tiny_tokenizer
from tests.families.families import FAMILIES

FIRST, LAST = ["Ana", "Bob", "Cyd", "Dan", "Eve", "Fay"], ["Reed", "Moss", "Lane", "Hill", "Dale"]
NAMES = [f"{first} {last}" for first in FIRST for last in LAST]
ANSWERS = {
    "single": {"plays the": ["guitar", "piano", "drum"], "was born in the": ["city", "river", "tower"]},
    "multi": {
        "plays the": ["red guitar", "old piano", "big drum"],
        "was born in the": ["city of gold", "old river bank"],
    },
}
WORDS = sorted(
    {word for by in ANSWERS.values() for said, them in by.items() for word in f"{said} {' '.join(them)}".split()}
)


def known(length):
    """List what the models are taught: prompt, subject, true answer. Only both names together tell the answer."""
    chance = random.Random(1)
    return [
        (f"{name} {relation}", name, chance.choice(answers))
        for relation, answers in ANSWERS[length].items()
        for name in NAMES
    ]


def taught(family, tokenizer, length, steps=40):
    """Teach a tiny network the facts."""
    network = tiny_network(family.kind, inner=256, **family.changes).float().requires_grad_(True)
    rows = [tokenizer(f"{prompt} {answer}")["input_ids"] for prompt, _, answer in known(length)]
    ids = torch.tensor([row + [1] * (max(map(len, rows)) - len(row)) for row in rows])
    labels = ids.masked_fill(ids == 1, -100)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        logits = network(input_ids=ids, use_cache=False).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()).backward()
        optimizer.step()
    return network.requires_grad_(False)


def says(network, prompt, target):
    """Tell whether a plain forward, by nothing of this package, prefers every token of the target."""
    with torch.no_grad():
        best = network(input_ids=torch.tensor([prompt + target]), use_cache=False).logits[0].argmax(1).tolist()
    return tuple(best[len(prompt) - 1 : -1]) == target


def run(family, length, folder):
    """Edit four facts in two batches, at the prompt's last token; return whether each is said, before and after."""
    tokenizer = tiny_tokenizer([" ".join(FIRST + LAST + WORDS)] * 20)
    network = taught(family, tokenizer, length)
    facts = [
        {"prompt": prompt, "target": next(a for a in ANSWERS[length]["plays the"] if a != answer)}
        for prompt, _, answer in known(length)[:28:7]
    ]
    text = folder / "text.txt"
    text.write_text("\n".join(f"{prompt} {answer}" for prompt, _, answer in known(length)))
    stage_one = TargetOptimization(
        [NegativeLogLikelihood()],
        [MostProbable(10)],
        NormBall(20.0),
        ContextTemplates(templates=[]),
        lr=0.5,
        max_steps=100,
    )
    statistics = KeyStatistics(str(text), tokens=400, cache_dir=str(folder))
    stage_two = WeightUpdate(
        LeastSquares([BaseStatistics(0.1), NormPenalty(1e-4)], PastEdits(1.0)),
        statistics=statistics,
        norm_limit=None,  # four edits are much for so small a matrix
    )
    result = edit(network, tokenizer, facts, [1, 2], stage_one, stage_two, batch_size=2)
    encoded = result.editor.language_model.text.continuations([(fact["prompt"], fact["target"]) for fact in facts])
    assert all((len(target) > 1) == (length == "multi") for _, target in encoded)
    after = [says(network, *pair) for pair in encoded]
    assert result.after["efficacy"]["accuracy"] == sum(after) / len(after)
    assert result.editor.made == len(facts)
    result.revert()
    return [says(network, *pair) for pair in encoded], after


CASES = [
    pytest.param(name, marks=() if family.daily else pytest.mark.slow, id=name) for name, family in FAMILIES.items()
]


@pytest.mark.parametrize("length", ["single", "multi"])
@pytest.mark.parametrize("name", CASES)
def test_two_batches_of_edits_are_what_the_model_says(name, length, tmp_path):
    before, after = run(FAMILIES[name], length, tmp_path)
    assert sum(before) <= len(before) / 2  # the taught network is not sure of everything
    if FAMILIES[name].daily:
        assert all(after), after
    recorded = json.loads((Path(__file__).parents[2] / "results" / "families.json").read_text())["families"][name]
    assert sum(after) >= recorded[length]["said after"] - 1, "fewer than docs/models.md says; one is left to chance"
