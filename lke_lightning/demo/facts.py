"""A hundred facts of the real world that a small public model knows, and the candidates they were chosen from.

`facts.jsonl` has the chosen ones, in the form of `JsonLines`; `candidates.yaml` has all, written by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import yaml

FACTS = Path(__file__).with_name("facts.jsonl")
CANDIDATES = Path(__file__).with_name("candidates.yaml")
NEIGHBOURS = 5
"""How many other subjects a fact is asked about whose answers must stay."""

Question = tuple[str, str]
"""A prompt, and its true answer."""


def questions(relation: dict[str, Any], part: str) -> dict[str, Question]:
    """Return what is asked about the subjects of a relation, `edits` or `others`, by subject."""
    return {subject: (_spelled(relation["prompt"], subject), answer) for subject, answer in relation[part].items()}


def candidates(is_known: Callable[[list[Question]], list[bool]]) -> Iterator[dict[str, Any]]:
    """Yield the records of all facts that are known, relation by relation in turn.

    Args:
        is_known: says of questions whether their answers are known; neighbours that are known are taken first.
    """
    relations = yaml.safe_load(CANDIDATES.read_text(encoding="utf-8"))
    found = (list(_records(name, relation, is_known)) for name, relation in relations.items())
    yield from (record for record in chain(*zip_longest(*found)) if record is not None)


def _records(
    name: str, relation: dict[str, Any], is_known: Callable[[list[Question]], list[bool]]
) -> Iterator[dict[str, Any]]:
    edits, others = questions(relation, "edits"), list(questions(relation, "others").values())
    known = dict(zip(others, is_known(others), strict=True))
    others.sort(key=known.__getitem__, reverse=True)
    answers = [answer for _, answer in edits.values()]
    for number, ((subject, (prompt, original)), is_fact) in enumerate(
        zip(edits.items(), is_known(list(edits.values())), strict=True)
    ):
        if not is_fact:
            continue
        # that of a subject a third of the list away, so that no two swap their answers
        turned = [*answers[number:], *answers[:number]][len(answers) // 3 :]
        target = next(answer for answer in [*turned, *answers] if answer != original)
        beside = [question for question in others if question[1] != target]
        first = number % max(1, sum(map(known.__getitem__, beside)) - NEIGHBOURS + 1)
        yield {
            "prompt": prompt,
            "subject": subject.removeprefix("the "),
            "target": target,
            "original": original,
            "relation": name,
            "paraphrases": [_spelled(text, subject) for text in relation["paraphrases"]],
            "neighborhood": [{"prompt": p, "answer": a} for p, a in beside[first : first + NEIGHBOURS]],
        }


def _spelled(prompt: str, subject: str) -> str:
    text = prompt.format(subject)
    return text[0].upper() + text[1:]
