"""Facts in words: which are found, what they are put before, and what of them a run keeps."""

import json
import math
import re
import sys

import pytest
import torch

from lke_lightning import EditError, edit, resume
from lke_lightning.checkpoints import newest
from lke_lightning.cli import main
from lke_lightning.composition import compose
from lke_lightning.configuration import configs, read
from lke_lightning.data import JsonLines
from lke_lightning.edits import EditRequest, Probe
from lke_lightning.evaluation.generated import complete
from lke_lightning.evaluation.teacher_forced import continuations, score
from lke_lightning.model.beside import Beside
from lke_lightning.model.language_model import load
from lke_lightning.parts import described, remade
from lke_lightning.run_folder import Run
from lke_lightning.stage_two.facts import NAME
from lke_lightning.stage_two.in_context import ORDER, InContext, Preface
from lke_lightning.stage_two.retrieval import BM25, Retriever
from tests.conftest import NAMES
from tests.model.test_chat import CHATML, chat

METHOD = str(configs() / "method" / "in-context.yaml")
FACTS = [
    {"id": name, "prompt": f"{name} was born in the", "subject": name, "target": target, "original": "river"}
    for name, target in zip(NAMES, ["city", "guitar"] * 4, strict=True)
]
OWN = EditRequest("0", FACTS[0]["prompt"], "city", original="river")
ANEW = {**FACTS[0], "id": "Ana anew", "target": "piano"}


@pytest.fixture
def begin(small_world):
    """Edits a model that is loaded anew."""

    def start(facts, **options):
        stages, _ = compose(read(METHOD))
        two = InContext(BM25(), **options) if options else stages.two
        return edit(*load(str(small_world / "model")), facts, [0, 1], stages.one, two, batch_size=3)

    return start


def preface(edited):
    return edited.editor.language_model.beside[NAME]


def naive(question, texts):
    """Score texts by the formula: Lucene's BM25, k1 = 1.5, b = 0.75."""
    texts = [re.findall(r"\w+", text.lower()) for text in texts]
    length, scores = sum(map(len, texts)) / len(texts), [0.0] * len(texts)
    for word in re.findall(r"\w+", question.lower()):
        having = sum(word in text for text in texts)
        for i, text in enumerate(texts):
            count = text.count(word)
            rarity = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
            scores[i] += rarity * count / (count + 1.5 * (0.25 + 0.75 * len(text) / length))
    return scores


@pytest.mark.parametrize("question", ["Ana was born in", "the the city", "born BORN, Bob?", "nothing of it", "?"])
def test_scores_are_those_of_the_formula(question):
    texts = ["Ana was born in the", "Bob plays the guitar in the city", "the the the", "born"]
    assert BM25().index(texts)(question).tolist() == pytest.approx(naive(question, texts), rel=1e-5)


def test_texts_without_words_bear_on_nothing():
    assert BM25().index(["?", ""])("what?").tolist() == [0.0, 0.0]
    assert BM25().index(["?", "what"])("what?").tolist()[0] == 0.0


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(EditError, match=r"pip install 'lke-lightning\[retrieval\]'"):
        BM25()


def test_a_replaced_or_undone_fact_is_found_no_more_and_comes_back(begin):
    edited, question = begin([*FACTS, ANEW], threshold=0.9), "Ana was born in the"

    def said():
        return "".join(preface(edited).before(question))

    assert said() == "New fact: Ana was born in the piano.\nPrompt: "
    assert edited.undo("Ana anew") == {"Ana anew": "Ana"}
    assert said() == "New fact: Ana was born in the city.\nPrompt: "
    edited.undo("Ana")
    assert said() == ""
    edited.redo("Ana anew")
    assert "piano" in said()
    assert "city" not in said()
    with pytest.raises(EditError, match="was used before"):
        edited.edit([FACTS[1]])
    assert "piano" in said()
    edited.revert()
    assert said() == ""


def test_what_no_fact_bears_on_scores_bit_for_bit_as_before(begin):
    edited = begin(FACTS, threshold=0.9, top_k=2)
    model = edited.editor.language_model
    pairs = [("Zoe plays the", "guitar"), ("Zoe plays the", "piano"), ("the capital of", "the city")]
    with model.unedited():
        before = continuations(model, pairs)
        texts = complete(model, [prompt for prompt, _ in pairs[1:]], 5)
        plain = score(model, [OWN])[0]["efficacy"]
    assert torch.equal(continuations(model, pairs).nll, before.nll)
    assert complete(model, [prompt for prompt, _ in pairs[1:]], 5) == texts
    assert not torch.equal(score(model, [OWN])[0]["efficacy"], plain)
    edited.revert()
    assert torch.equal(score(model, [OWN])[0]["efficacy"], plain)


def test_scores_are_those_of_the_question_behind_its_facts_alone_or_together(begin):
    edited = begin(FACTS, top_k=2)
    model, prompts = edited.editor.language_model, [fact["prompt"] for fact in FACTS]
    prefaces = ["".join(preface(edited).before(prompt)) for prompt in prompts]
    assert all(before.count("New fact") == 2 for before in prefaces)
    together, answers = continuations(model, [(p, "guitar") for p in prompts]).nll, complete(model, prompts, 4)
    for i, prompt in enumerate(prompts):
        assert continuations(model, [(prompt, "guitar")]).nll.item() == pytest.approx(together[i].item(), rel=1e-5)
        assert complete(model, [prompt], 4) == [answers[i]]
    with model.unedited():
        whole = continuations(model, [(before + p, "guitar") for before, p in zip(prefaces, prompts, strict=True)])
    torch.testing.assert_close(whole.nll, together)


def test_facts_stand_in_the_users_message():
    text = chat(CHATML)
    [bare] = text.prompts(["Ana speaks"])
    text.preface = lambda question: ["Bob plays. ", "Ana works. "]
    [asked] = text.prompts(["Ana speaks"])
    assert text.tokenizer.decode(asked) == text.tokenizer.decode(bare).replace("Ana", "Bob plays. Ana works. Ana", 1)
    [row] = text.rows([("Ana speaks", "Ana")])
    assert row.ids == asked
    assert text.tokenizer.decode(row.ids[: row.slot + 1]).endswith("Bob plays. Ana works. Ana")


def test_the_least_relevant_facts_give_way_and_the_last_one_does_not(begin):
    edited = begin(FACTS, top_k=4)
    text = edited.editor.language_model.text
    question = "Ana was born in the"
    counts = set()
    for words in range(0, 120, 6):
        asked = "plays " * words + question
        parts = preface(edited).before(asked)
        whole = text.fitted(parts, asked)
        if whole is None:
            with pytest.raises(EditError, match="not even the most relevant fact fits"):
                text.prompts([asked])
            assert text.prompts([asked], may_exceed=True)[0] == tuple(text.encode([asked])[0])
            break
        assert len(text.prompts([asked])[0]) <= 128 - 16
        assert whole == "".join(parts[-whole.count("New fact") :]) + asked
        counts.add(whole.count("New fact"))
    assert len(counts) > 1
    assert whole is None
    with pytest.raises(EditError, match="edit long: the fact and its prompt do not fit"):
        edited.edit([{"id": "long", "prompt": "a guitar " * 60 + "is", "target": "city"}])


def test_demonstrations_are_made_of_other_facts_by_kind():
    requests = [
        EditRequest(
            str(i), "{} plays the", f"target{i}", f"Name{i} common", paraphrases=[f"Name{i}'s sport is"],
            neighbours=[Probe(f"Other{i} plays the", f"answer{i}")] if i != 3 else [],
        )
        for i in range(10)
    ]  # fmt: skip
    module = Preface(BM25(), 1, 0.6, 8)
    module.add(requests)
    module.hold(range(10))
    *shown, last = module.before("Name9 common plays the")
    assert last == "New fact: Name9 common plays the target9.\nPrompt: "
    shown.reverse()  # the most relevant first; they are equals, so the oldest
    answers = [part.splitlines()[1] for part in shown]
    wanted = {
        "copy": "Name{0} common plays the target{0}",
        "update": "Name{0}'s sport is target{0}",
        "retain": "Other{0} plays the answer{0}",
    }
    assert answers == [f"Prompt: {wanted[kind if i != 3 else 'update'].format(i)}" for i, kind in enumerate(ORDER)]
    assert module.before("Nobody") == []
    assert "Other2" not in "".join(module.before("Other2 plays the"))  # its answer is asked for


def test_a_description_is_plain_and_gives_the_same_facts(begin, tmp_path):
    module = preface(begin([*FACTS, ANEW]))
    plain = json.loads(json.dumps(described(module)))
    again = remade(plain, Beside)
    assert described(again) == plain
    assert [again.before(fact["prompt"]) for fact in FACTS] == [module.before(fact["prompt"]) for fact in FACTS]
    module.save(tmp_path / "facts.jsonl")
    read_back = list(JsonLines(str(tmp_path / "facts.jsonl")).read())
    assert [request.target for request in read_back] == [module.facts[number]["target"] for number in range(1, 9)]


def test_a_retriever_of_ones_own_needs_an_index_alone(begin):
    class Last(Retriever):
        settings = {}  # noqa: RUF012

        def index(self, texts):
            return lambda question: torch.arange(len(texts)) + 1.0

    module = Preface(Last(), 1, 0.0, 0)
    module.add([EditRequest(str(i), "Ana plays", f"the {i}") for i in range(3)])
    module.hold([0, 1, 2])
    assert module.found("anything") == [2]


@pytest.fixture(scope="module")
def arguments(small_world):
    return [
        "fit", "-c", METHOD, "--model.pretrained", str(small_world / "model"), "--model.layers", "[0,1]",
        "--data", "JsonLines", "--data.path", str(small_world / "facts.jsonl"), "--data.batch_size", "2",
        "--checkpoint.every_n_train_steps", "2", "--checkpoint.keep", "-1", "--trainer.accelerator", "cpu",
        "--guard.norm_growth", "2", "--guard.action", "split", "--trainer.enable_progress_bar", "false",
    ]  # fmt: skip


def test_a_run_goes_on_is_scored_opened_and_undone(arguments, small_world, tmp_path, capsys):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    main([*arguments, "--trainer.default_root_dir", str(whole)])
    early = str(whole / "checkpoints" / "batch-00000002.ckpt")
    main([*arguments, "--trainer.default_root_dir", str(resumed), "--ckpt_path", early])
    ends = [Run.read(folder).checkpoint for folder in (whole, resumed)]
    assert ends[0]["editing"]["beside"] == ends[1]["editing"]["beside"]
    assert len(ends[0]["editing"]["beside"][NAME]["init_args"]["facts"]) == 9
    cards = [json.loads((folder / "scorecard.json").read_text()) for folder in (whole, resumed)]
    assert cards[0]["final"] == cards[1]["final"]
    assert cards[0]["final"]["efficacy"] != cards[0]["before"]["efficacy"]

    last = str(whole / "checkpoints" / "last.ckpt")
    main(["validate", *arguments[1:], "--trainer.default_root_dir", str(tmp_path / "scored"), "--ckpt_path", last])
    assert json.loads((tmp_path / "scored" / "scorecard.json").read_text())["final"] == cards[0]["final"]

    edited = resume(whole)
    assert edited.score()["efficacy"] == cards[0]["final"]["efficacy"]
    edited.undo("8")
    edited.save(whole)
    again = resume(whole)
    assert "New fact: Ana was born in the city." in "".join(preface(again).before("Ana was born in the"))
    for format in ("merged", "delta", "lora"):
        with pytest.raises(EditError, match="beside them, in a Preface"):
            again.export(tmp_path / format, format)


def test_facts_that_are_not_those_of_the_run_are_refused(begin, tmp_path):
    begin(FACTS[:3]).save(tmp_path)
    path = newest(tmp_path)
    whole = path.read_bytes()
    for damage, message in (
        (lambda beside: beside.clear(), "lacks the facts of its run"),
        (lambda beside: beside[NAME]["init_args"].update(holding=[0, 7]), "is not of its edits"),
        (lambda beside: beside[NAME]["init_args"]["facts"].pop(), "is not of its edits"),
        (lambda beside: beside[NAME]["init_args"]["facts"][0].pop("target"), "is not of its edits"),
    ):
        path.write_bytes(whole)
        checkpoint = torch.load(path, weights_only=True)
        damage(checkpoint["editing"]["beside"])
        torch.save(checkpoint, path)
        stages, _ = compose(read(METHOD))
        with pytest.raises(EditError, match=message):
            resume(tmp_path, stages.one, stages.two)


def test_what_cannot_be_is_said_at_once(arguments, tmp_path):
    for given, message in (
        (["--stage_two.top_k", "0"], r"stage_two\.top_k is 0"),
        (["--stage_two.threshold", "1"], r"stage_two\.threshold is 1"),
        (["--stage_two.demonstrations", "-1"], r"stage_two\.demonstrations is -1"),
        (["--stage_one", "OutputGradients"], "InContext needs no targets"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([*arguments, *given, "--trainer.default_root_dir", str(tmp_path / "run")])
