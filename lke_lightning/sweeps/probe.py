"""Where to edit a new model: causal tracing of facts it knows, trial edits on single layers, and a proposal."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from lke_lightning.composition import compose
from lke_lightning.configuration import find, read
from lke_lightning.data import DemoWorld, EditStream
from lke_lightning.edits import EditBatch, EditError, EditRequest
from lke_lightning.evaluation.summary import summarize
from lke_lightning.evaluation.teacher_forced import continuation_nll, score
from lke_lightning.model.language_model import DEMO, LanguageModel, load
from lke_lightning.progress import track
from lke_lightning.results import made_folder, replace, write
from lke_lightning.stage_two.register import Register
from lke_lightning.sweeps import grid
from lke_lightning.sweeps.layers import best_window, candidates
from lke_lightning.sweeps.report import circumstances
from lke_lightning.sweeps.tracing import PLACES, trace

TOGETHER = 8
"""Facts that are traced and checked in one batch; results are written after each batch."""


def probe(
    pretrained: str = DEMO,
    data: EditStream | None = None,
    method: str = "method/encore.yaml",
    dtype: str = "float32",
    matrix: str | None = None,
    trust_remote_code: bool = False,
    facts: int = 40,
    trials: int = 10,
    noise: float = 3.0,
    samples: int = 5,
    output: str = "runs/probe",
) -> None:
    """Show where a model keeps its facts, and propose layers and a strength to edit it with.

    Finished facts and trials are not repeated.

    Args:
        pretrained: a folder, a hub name, or `demo`.
        data: facts, with subjects and original answers, of which those that the model knows are used; default: the
            demo world.
        method: YAML file with the two stages, for the trial edits; the proposal is it with another strength.
        dtype: dtype in which the network runs.
        matrix: path of the MLP output matrix inside a block, if it is not recognized.
        trust_remote_code: run code that comes with the model.
        facts: how many known facts to trace; more make the map more reliable.
        trials: how many of them to edit, one at a time on each candidate layer, and then all at once.
        noise: noise on the subject's embeddings, in standard deviations of all embeddings.
        samples: how many noise samples are averaged.
        output: folder of the results: `probe.json`, `probe.png`, `proposed.yaml`.

    Raises:
        EditError: the model cannot be edited, it knows none of the facts, or the folder holds another probe.
    """
    for name, value in (("facts", facts), ("trials", trials), ("samples", samples)):
        if value < 1:
            raise EditError(f"--{name} is {value}: at least one is needed")
    if not 0 < noise < math.inf:
        raise EditError(f"--noise is {noise:g}: it must be above 0 and finite")
    path = find(method)
    config = read(path)
    try:
        compose(config)
    except EditError as error:
        raise EditError(f"the method {method!r} cannot be used: {error}") from error
    made_folder(output)
    stream = data or DemoWorld(limit=1800)  # all of them
    stream.setup("fit")
    network, tokenizer = load(pretrained, dtype, trust_remote_code)
    whole = LanguageModel(network, tokenizer, [0], matrix)
    count = len(whole.architecture.blocks)
    settings = {
        "model": whole.base_hash, "data": [stream.name, stream.limit, stream.shuffle_seed], "noise": noise,
        "samples": samples, "facts": facts, "trials": trials,
        "method": hashlib.sha256(path.read_bytes()).hexdigest()[:16],
    }  # fmt: skip
    done = _Done(Path(output), settings)
    known = _known(whole, stream.requests, facts)
    print(f"{whole.describe()}\nThe model has {count} layers and knows {len(known)} of the facts tried")

    parts = [known[i : i + TOGETHER] for i in range(0, len(known), TOGETHER)]
    for part in track(parts, "Tracing"):
        new = [fact for fact in part if f"trace {fact.id}" not in done.found]
        for fact, traced in zip(new, trace(whole, new, noise, samples) if new else [], strict=True):
            done.add(f"trace {fact.id}", asdict(traced))
    effects = _effects([done.found[f"trace {fact.id}"] for fact in known], count)

    def tried(layers: list[int], configuration: grid.Config, requests: Sequence[EditRequest], alone: bool) -> Any:
        model = LanguageModel(network, tokenizer, layers, matrix)
        return _edit(model, configuration, requests, alone)

    chosen = known[:trials]
    by_layer: dict[int, float] = {}
    for layer in track(candidates(count), "Trial edits by layer"):
        found = done.once(f"layer {layer}", partial(tried, [layer], config, chosen, alone=True))
        if found["score"] is not None:
            by_layer[layer] = found["score"]
    layers = best_window(by_layer, count)
    together = []
    for point in track(grid.strengths(config), f"Strengths on layers {layers}"):
        at = grid.configured(config, point)
        found = done.once(f"strength {grid.name(point)}", partial(tried, layers, at, chosen, alone=False))
        together.append({"settings": point, **found})
    best = max(together, key=lambda found: found["score"] or 0.0)  # of equals the first, which protects most

    peak = max(range(count), key=effects[PLACES[0]].__getitem__)
    command = (
        f"python -m lke_lightning probe --pretrained {shlex.quote(pretrained)} --method {shlex.quote(method)} "
        f"--facts {facts} --trials {trials} --noise {noise:g} --samples {samples}"
    )
    found = {
        **circumstances(command), "model": {"pretrained": pretrained, "hash": whole.base_hash, "layers": count},
        "data": stream.name, "known_facts": len(known), "effects": effects, "peak": peak,
        "trials": {str(layer): done.found[f"layer {layer}"] for layer in candidates(count)},
        "strengths": together, "proposed": {"layers": layers, **best["settings"]},
    }  # fmt: skip
    write(done.folder / "probe.json", json.dumps(found, indent=1) + "\n")
    draw(effects, by_layer, layers, done.folder / "probe.png")
    proposal = {"model": {"pretrained": pretrained, "dtype": dtype, "layers": layers}}
    if matrix:
        proposal["model"]["matrix"] = matrix
    configuration = grid.configured(config, best["settings"])
    proposal |= {stage: configuration[stage] for stage in grid.STAGES}
    header = (
        f"# Proposed by `python -m lke_lightning probe`: {len(known)} facts traced, {len(chosen)} edited; restoring\n"
        f"# the subject's last token has the largest effect at layer {peak}. Tune on your own facts with `tune`.\n"
    )
    write(done.folder / "proposed.yaml", header + yaml.safe_dump(proposal, sort_keys=False))
    print(f"Effect of the subject's last token is largest at layer {peak}; trial edits are best on layers {layers}")
    print(f"Map       {done.folder / 'probe.png'}\nFigures   {done.folder / 'probe.json'}")
    print(
        f"Proposal  {done.folder / 'proposed.yaml'}: layers {layers}, {grid.name(best['settings']) or 'as configured'}"
    )


class _Done:
    """The results so far, one per line of a file, so that an interrupted probe can be resumed."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.found = made_folder(folder), {}
        self._file = folder / "found.jsonl"
        lines = self._file.read_text().splitlines() if self._file.is_file() else []
        for line in lines:
            try:
                name, value = json.loads(line)
            except ValueError:  # a line cut off by an interruption
                continue
            self.found[name] = value
        if self.found.setdefault("settings", settings) != settings:
            raise EditError(
                f"{folder} holds a probe of another model, other facts or other settings: name another --output"
            )
        write(self._file, "".join(json.dumps(entry) + "\n" for entry in self.found.items()))

    def add(self, name: str, value: Any) -> None:
        """Write a result to the file at once."""
        self.found[name] = value
        with self._file.open("a") as file:
            file.write(json.dumps([name, value]) + "\n")

    def once(self, name: str, find: Callable[[], Any]) -> Any:
        """Return a result, computed only once."""
        if name not in self.found:
            self.add(name, find())
        return self.found[name]


def _known(model: LanguageModel, requests: Iterable[EditRequest], wanted: int) -> list[EditRequest]:
    """Return the first facts whose original answer is the model's top prediction.

    Raises:
        EditError: there is none.
    """
    usable = [request for request in requests if request.subject and request.original]
    known: list[EditRequest] = []
    for start in range(0, len(usable), TOGETHER):
        part = usable[start : start + TOGETHER]
        _, correct = continuation_nll(model, [(request.text, request.original or "") for request in part])
        known += [request for request, right in zip(part, correct.tolist(), strict=True) if right]
        if len(known) >= wanted:
            break
    if not known:
        raise EditError(
            f"the model predicts the original answer of none of the {len(usable)} facts that have a subject and one: "
            "give facts that it knows"
        )
    return known[:wanted]


def _effects(traces: Sequence[dict[str, Any]], count: int) -> dict[str, Any]:
    """Average the gain in the answer's probability from restoring, by place and layer."""
    means = {
        place: [
            round(statistics.fmean(found["restored"][place][layer] - found["corrupted"] for found in traces), 6)
            for layer in range(count)
        ]
        for place in PLACES
    }
    total = statistics.fmean(found["clean"] - found["corrupted"] for found in traces)
    return {**means, "total": round(total, 6)}


def _edit(model: LanguageModel, config: grid.Config, requests: Sequence[EditRequest], alone: bool) -> dict[str, Any]:
    """Edit facts, each alone or all at once, score them, and restore the model's weights."""
    stages, _ = compose(config)
    two: Any = stages.two
    two.norm_limit = None  # a trial that wears the model out counts with what it does to it
    stages.prepare(model, requests)
    register = Register()
    unedited = stages.mark(model, register)
    scores = []
    for part in [[request] for request in requests] if alone else [requests]:
        step = stages.edit(model, EditBatch.of(part), register)
        scores += score(model, step.requests)
        stages.roll_back(model, register, unedited)
    return summarize(scores)


def draw(effects: dict[str, Any], by_layer: dict[int, float], layers: Sequence[int], path: Path) -> None:
    """Draw the effect of restoring by layer and place, S of the trial edits, and the layers proposed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    left = figure.subplots()
    for place in PLACES:
        left.plot(effects[place], marker="o", label=f"restored: {place}")
    left.axhline(effects["total"], color="0.6", linestyle="--", label="all restored")
    left.axvspan(min(layers) - 0.4, max(layers) + 0.4, color="tab:green", alpha=0.15, label="proposed layers")
    right = left.twinx()
    right.plot(list(by_layer), list(by_layer.values()), "k^:", label="S of trial edits")
    right.set(ylabel="S of single edits", ylim=(0, 1.05))
    left.set(xlabel="layer", ylabel="gain in the answer's probability")
    (lines, names), (more, others) = left.get_legend_handles_labels(), right.get_legend_handles_labels()
    left.legend(lines + more, names + others, fontsize="small")
    left.grid(alpha=0.3)
    replace(path, lambda file: figure.savefig(file, format="png", dpi=120))
