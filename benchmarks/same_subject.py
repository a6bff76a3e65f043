"""Several edits of one subject, in one batch or in separate ones. `python -m benchmarks.same_subject`.

They have one key wherever the text up to the subject's end is the same, and ask it for different outputs: with a
target each, a least-squares update gives all of them their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning.pytorch import seed_everything
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import harness
from lke_lightning.composition import compose
from lke_lightning.configuration import find, read
from lke_lightning.data.formats import CounterFact, DemoWorld
from lke_lightning.editor import Editor
from lke_lightning.edits import SLOT, EditBatch, EditRequest
from lke_lightning.evaluation.summary import summarize
from lke_lightning.evaluation.teacher_forced import score
from lke_lightning.model.language_model import resolve
from lke_lightning.published import Published
from lke_lightning.stage_two.register import Register

Group = tuple[EditRequest, ...]
"""Edits of one subject, each of another relation."""


def groups_of(requests: Sequence[EditRequest], size: int, count: int) -> list[Group]:
    """Return the first `count` subjects of which so many relations are edited, with so many of their edits."""
    by_subject: dict[str | None, dict[str | None, EditRequest]] = {}
    for request in requests:
        by_subject.setdefault(request.subject, {}).setdefault(request.relation, request)
    groups = [tuple(found.values())[:size] for found in by_subject.values() if len(found) >= size]
    return groups[:count]


def groups_from_templates(requests: Sequence[EditRequest], size: int, count: int, one_key: bool) -> list[Group]:
    """Give each of the first `count` subjects the prompts and targets of the edits behind its own.

    For data with few subjects of several relations. Of what is added the model need not know any original answer.

    Args:
        requests: edits of many subjects.
        size: edits of each subject, each of another relation and target.
        count: subjects.
        one_key: take only prompts that begin with the subject; else only others, no two alike before the subject.
    """
    usable = [r for r in requests if r.prompt.startswith(SLOT) == one_key]
    groups = []
    for start, own in enumerate(usable[:count]):
        chosen = [own]
        for other in (*usable[start + 1 :], *usable[:start]):
            parts = [(r.relation, r.target, *([] if one_key else [_before(r)])) for r in (*chosen, other)]
            if len(chosen) < size and all(len(set(part)) == len(part) for part in zip(*parts, strict=True)):
                chosen.append(other)
        groups.append(tuple(_about(own, request) for request in chosen))
    return groups


def _before(request: EditRequest) -> str:
    return request.prompt[: request.prompt.index(SLOT)]


def _about(own: EditRequest, other: EditRequest) -> EditRequest:
    """Ask what an edit asks of another's subject."""
    paraphrases = tuple(text.replace(other.subject, own.subject) for text in other.paraphrases if other.subject in text)
    return replace(other, id=f"{own.id}/{other.id}", subject=own.subject, paraphrases=paraphrases)


def together(groups: Sequence[Group]) -> list[EditRequest]:
    """Order edits so that a batch holds all of a subject's."""
    return [request for group in groups for request in group]


def apart(groups: Sequence[Group]) -> list[EditRequest]:
    """Order edits so that a batch, of as many edits as there are groups or fewer, holds one of each subject."""
    return [request for relation in zip(*groups, strict=True) for request in relation]


ARMS: dict[str, tuple[Callable[[Sequence[Group]], list[EditRequest]], Literal["key", "subject"] | None]] = {
    "one batch, targets shared by key": (together, "key"),
    "one batch, targets shared by subject": (together, "subject"),
    "one batch, a target each": (together, None),
    "separate batches": (apart, None),
}
"""The order of the edits, and which of them share a target."""


def run(name: str, pretrained: str, configuration: Mapping[str, Any], groups: Sequence[Group]) -> dict[str, Any]:
    """Edit a fresh model in each way, in batches of as many edits as there are subjects; score all edits at the end.

    Where two ways make the same groups, of whole subjects or of single edits, the second is left out.
    """
    size, count = len(groups[0]), len(groups)
    one_key = sum(len({request.in_context(SLOT)[1] for request in group}) == 1 for group in groups)
    row: dict[str, Any] = {
        "model": name, "subjects": count, "relations": size, "batch_size": count, "subjects_with_one_key": one_key,
    }  # fmt: skip
    same = {count: "one batch, targets shared by subject", 0: "one batch, targets shared by key"}.get(one_key)
    for arm, (arrange, share_targets) in ARMS.items():
        if arm == same:
            continue
        seed_everything(0, verbose=False)
        folder, requests = resolve(pretrained), arrange(groups)
        network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        layers = configuration.get("model", {}).get("layers")
        model = Editor.around(network, AutoTokenizer.from_pretrained(folder), layers).language_model
        if "unedited" not in row:
            row["unedited"] = summarize(score(model, requests))
        stages, _ = compose(configuration)
        stages.one.share_targets = share_targets
        stages.prepare(model, requests)
        register = Register()
        for start in range(0, len(requests), count):
            stages.edit(model, EditBatch.of(requests[start : start + count]), register)
        scored = dict(zip([r.id for r in requests], score(model, requests), strict=True))
        holds = [all(bool(scored[request.id]["efficacy"][0, 2]) for request in group) for group in groups]
        row[arm] = {**summarize(scored.values()), "subjects_with_all_first_choice": round(sum(holds) / count, 4)}
        print(name, size, arm, row[arm], flush=True)
    return row


def main(subjects: int = 18, pretrained: str | None = None, facts: str | None = None) -> None:
    """Measure what two and three edits of one subject lose by sharing a batch, and what a shared target gives back.

    Args:
        subjects: how many are edited; a multiple of six, so that no batch splits two or three edits of a subject.
        pretrained: cf-llama-9m, beside the demo model, with the hyperparameters of tests/conf/cf-llama-9m.yaml.
        facts: a file of CounterFact records that it knows.
    """
    demo, runs, world = read(find("method/encore.yaml")), [], DemoWorld(limit=1800)
    world.setup("fit")
    for size in (2, 3):
        runs.append(run("demo", "demo", demo, groups_of(world.requests, size, subjects)))
    if pretrained and facts:
        known = CounterFact(facts)
        known.setup("fit")
        config = Published.compose("encore", "cf-llama-9m", table="tests/conf/cf-llama-9m.yaml").config
        for one_key in (True, False):
            name = f"cf-llama-9m, prompts {'that begin with' if one_key else 'that differ before'} the subject"
            for size in (2, 3):
                groups = groups_from_templates(known.requests, size, subjects, one_key)
                runs.append(run(name, pretrained, config, groups))
    harness.report("same-subject", {"runs": runs})


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
