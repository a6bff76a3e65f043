"""Answers searched for step by step, with a scripted network and with a tiny one."""

import json

import pytest
import torch

from lke_lightning import EditError, edit, resume
from lke_lightning.cli import main
from lke_lightning.composition import compose
from lke_lightning.configuration import configs, read
from lke_lightning.edits import EditRequest
from lke_lightning.evaluation.generated import complete
from lke_lightning.evaluation.teacher_forced import score
from lke_lightning.model.language_model import load
from lke_lightning.run_folder import Run
from lke_lightning.stage_two.decoding import CONFLICTS, ENTITY, STEP, ThoughtSearch
from lke_lightning.stage_two.facts import NAME
from lke_lightning.stage_two.retrieval import BM25
from lke_lightning.testing import tiny_network, tiny_tokenizer

METHOD = str(configs() / "method" / "deepedit.yaml")
EDITS = [
    EditRequest("0", "{} was performed by", "Madonna", "Hey Jude"),
    EditRequest("1", "{} is a citizen of", "Australia", "Madonna"),
    EditRequest("2", "The language of {} is", "Arabic", "Australia"),
    EditRequest("3", "The capital of {} is", "Vienna", "Peru"),
]
QUESTION = "What is the language of the country of the performer of Hey Jude?"


def searching(edits=EDITS, top_k=2, threshold=0.3, depth=9, expansions=16):
    module = ThoughtSearch(BM25(), top_k, threshold, depth, expansions)
    module.add(edits)
    module.hold(range(len(edits)))
    return module


class Network:
    """Says what a script has for what a prompt ends with, and counts; the rest is silence."""

    def __init__(self, steps=(), names=None, conflict="No"):
        self.steps, self.names, self.conflict = list(steps), names or {}, conflict
        self.calls, self.prompts = [], []

    def __call__(self, prompts, tokens):
        self.calls.append(len(prompts))
        self.prompts += prompts
        return [self.say(prompt) for prompt in prompts]

    def say(self, prompt):
        if prompt.endswith("Step:"):
            return self.steps[prompt.split("Question:")[-1].count("Step:") - 1]
        if prompt.endswith("New name:"):
            sentence = prompt.splitlines()[-2].removeprefix("Sentence: ")
            return next((name for name in self.names if name in sentence), "nobody")
        return self.conflict if prompt.endswith("?") and "\nA: " in prompt else " its own answer"


CHAIN = [
    " Hey Jude was performed by The Beatles. More words.",
    " Madonna is a citizen of America.",
    " The language of Australia is English.",
    " So the answer is English.",
]
NAMES = ["The Beatles", "America", "English"]


def test_edited_facts_displace_the_steps_that_lead_elsewhere():
    network = Network(CHAIN, NAMES)
    assert searching().answer([QUESTION], 8, network) == ["Arabic"]
    last = [prompt for prompt in network.prompts if prompt.endswith("Step:")][-1]
    assert last.endswith(
        "Step: Hey Jude was performed by Madonna.\nStep: Madonna is a citizen of Australia.\n"
        "Step: The language of Australia is Arabic.\nStep:"
    )
    assert searching(EDITS[:1]).answer([QUESTION], 8, Network([CHAIN[0], *CHAIN[3:]], NAMES)) == ["Madonna"]


def test_a_question_that_takes_up_no_fact_is_answered_as_by_the_network():
    steps = [" The sea of Chile is blue.", " Blue is a colour.", " So the answer is blue."]
    assert searching().answer(["Which sea?"], 8, Network(steps, ["blue"])) == [" its own answer"]
    network = Network(CHAIN, NAMES)
    nothing = searching([])
    assert nothing.answer([QUESTION], 8, network) == [" its own answer"]
    assert network.calls == [1]
    module = searching()
    with module.switched_off():
        assert module.answer([QUESTION], 8, Network(CHAIN, NAMES)) == [" its own answer"]


def test_an_incoherent_fact_is_taken_up_where_the_network_sees_a_conflict():
    question, steps = "Where does the president live?", [" The capital of Peru is Lima.", " So the answer is Lima."]
    assert searching().answer([question], 8, Network(steps, ["Lima"], conflict="No")) == [" its own answer"]
    network = Network(steps, ["Lima"], conflict="Yes, it does")
    assert searching().answer([question], 8, network) == ["Vienna"]
    assert sum("B: The capital of Peru is Vienna." in prompt for prompt in network.prompts) == len(CONFLICTS)


def test_the_search_is_bounded_in_depth_and_in_calls():
    """Facts that follow from each other in a ring, a network that says yes to all and never comes to an answer."""
    names = [f"N{i}" for i in range(12)]
    ring = [
        EditRequest(f"{i}{j}", f"{{}} knows the {j}", names[(i + j) % 12], names[i]) for i in range(12) for j in (1, 2)
    ]
    for depth, expansions, steps in ((3, 40, [0, 1, 2]), (9, 5, [0, 1, 2, 3, 4]), (1, 40, [0])):
        network = Network([f" N{i} knows the x." for i in range(20)], conflict="Yes")
        module = searching(ring, top_k=2, threshold=0.0, depth=depth, expansions=expansions)
        [answer] = module.answer(["Who knows the N0?"], 8, network)
        asked = [prompt.split("Question:")[-1].count("Step:") - 1 for prompt in network.prompts if "Step:" in prompt]
        assert len(network.prompts) <= expansions * (2 + 3 * 2)
        assert len([p for p in network.prompts if p.endswith("Step:")]) <= expansions
        assert max(asked) <= depth - 1
        assert {*steps} <= {*asked}
        assert answer in names


def test_questions_are_searched_together_and_prompts_run_once():
    alone, together = Network(CHAIN, NAMES), Network(CHAIN, NAMES)
    other = QUESTION.replace("What", "Which")
    answers = [searching().answer([question], 8, alone)[0] for question in (QUESTION, other)]
    assert searching().answer([QUESTION, other, QUESTION], 8, together) == [*answers, answers[0]]
    assert len(together.calls) < len(alone.calls)
    assert len({*together.prompts}) == len(together.prompts)


@pytest.fixture(scope="module")
def deepedit(tmp_path_factory, small_world):
    """A tiny model with a context that holds the examples."""
    folder = tmp_path_factory.mktemp("long")
    tiny_network("llama", max_position_embeddings=4096).float().save_pretrained(folder)
    tiny_tokenizer([STEP, ENTITY, *CONFLICTS, (small_world / "facts.jsonl").read_text()]).save_pretrained(folder)
    return folder


def test_a_run_has_null_in_place_of_scores_and_says_why(deepedit, small_world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lke_lightning.stage_two.decoding.STEP_TOKENS", 3)
    arguments = [
        "fit", "-c", METHOD, "--model.pretrained", str(deepedit), "--model.layers", "[0,1]",
        "--data", "JsonLines", "--data.path", str(small_world / "facts.jsonl"), "--data.batch_size", "1",
        "--data.limit", "2", "--stage_two.expansions", "1", "--scorecard.generated_tokens", "3",
        "--scorecard.long_answers", "true", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
        "--checkpoint.keep", "-1", "--checkpoint.every_n_train_steps", "1",
    ]  # fmt: skip
    main([*arguments, "--trainer.default_root_dir", str(tmp_path / "run")])
    card = json.loads((tmp_path / "run" / "scorecard.json").read_text())
    why = "Teacher-forced scores after editing are undefined: a ThoughtSearch answers in the network's place"
    assert card["unscored"].startswith(why)
    assert why[:40] in capsys.readouterr().out
    for moment in ("just_after", "final"):
        assert {*card[moment]["efficacy"].values(), card[moment]["score"]} == {None}
        assert card[moment]["generated"]["efficacy"]["exact"] is not None
    assert card["before"]["efficacy"]["success"] is not None
    entries = [json.loads(line) for line in (tmp_path / "run" / "ledger.jsonl").read_text().splitlines()]
    edits = [entry for entry in entries if entry["event"] == "edit"]
    assert len(edits) == 2
    assert not any("nll_just_after" in entry or "first_choice_just_after" in entry for entry in edits)

    early = str(tmp_path / "run" / "checkpoints" / "batch-00000001.ckpt")
    main([*arguments, "--trainer.default_root_dir", str(tmp_path / "resumed"), "--ckpt_path", early])
    ends = [Run.read(tmp_path / name).checkpoint["editing"]["beside"] for name in ("run", "resumed")]
    assert ends[0] == ends[1]
    again = json.loads((tmp_path / "resumed" / "scorecard.json").read_text())
    assert again["final"] == card["final"]

    edited = resume(tmp_path / "run")
    with pytest.raises(EditError, match="beside them, in a ThoughtSearch"):
        edited.export(tmp_path / "merged")


def test_from_python_it_answers_and_without_edits_the_network_does(deepedit):
    stages, _ = compose(read(METHOD))
    stages.two.options = (*stages.two.options[:-1], 2)
    facts = [{"prompt": "Bob was born in the", "subject": "Bob", "target": "city", "original": "river"}]
    edited = edit(*load(str(deepedit)), facts, [0], stages.one, stages.two)
    model = edited.editor.language_model
    assert edited.after["efficacy"]["success"] is None
    assert edited.before["efficacy"]["success"] is not None
    assert model.beside[NAME].holding == [0]
    edited.undo("0")
    assert edited.answer(["Bob was born in the"], 4) == complete(model, ["Bob was born in the"], 4)
    with model.unedited():
        plain = score(model, [EditRequest("0", "Bob was born in the", "city", original="river")])
    assert torch.isfinite(plain[0]["efficacy"]).all()


def test_examples_that_do_not_fit_are_refused_at_once(small_world):
    stages, _ = compose(read(METHOD))
    with pytest.raises(EditError, match=r"edit 0: the examples of the search, .* take a model with a longer context"):
        edit(*load(str(small_world / "model")), [{"prompt": "Bob is", "target": "city"}], [0], stages.one, stages.two)
