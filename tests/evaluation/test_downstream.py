"""Few-shot tasks: what is asked, how it is scored, what does not fit, and figures against plain formulas."""

import csv
import json
import math

import pytest
import torch

from lke_lightning.edits import EditError
from lke_lightning.evaluation import downstream
from lke_lightning.evaluation.answers import Answers, common_beginning
from lke_lightning.evaluation.tasks import MMLU, MRPC, NLI, RTE, SST2, CoLA
from lke_lightning.evaluation.text_perplexity import MEPPL
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.testing import WORDS, tiny_network, tiny_tokenizer


@pytest.fixture(scope="module", params=[("gpt2", False), ("llama", True)], ids=["gpt2", "llama with BOS"])
def model(request):
    family, bos = request.param
    network = tiny_network(family, max_position_embeddings=400)
    return LanguageModel(network, tiny_tokenizer(bos=bos), [0, 1])


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def reviews(count=30):
    return [{"sentence": f"{WORDS[i % 20]} the {WORDS[(3 * i) % 20]}", "label": i % 3 % 2} for i in range(count)]


def pairs(count=30):
    return [
        {"sentence1": f"the {WORDS[i % 20]}", "sentence2": f"a {WORDS[(i + 5) % 20]}", "label": i % 2}
        for i in range(count)
    ]


def plain_nll(model, prompt, answer):
    """One prompt and one answer at a time, the whole text anew."""
    ids, words = model.text.continuations([(prompt, answer)])[0]
    logits = model.network(torch.tensor([ids + words])).logits[0].double()
    logp = logits.log_softmax(-1)
    return -sum(logp[len(ids) - 1 + j, word].item() for j, word in enumerate(words)) / len(words)


def weighted_f1(given, labels):
    total = 0.0
    for label in set(labels):
        hit = sum(g == label and r == label for g, r in zip(given, labels, strict=True))
        total += 2 * hit / (given.count(label) + labels.count(label)) * labels.count(label)
    return total / len(labels)


def test_answers_are_as_probable_as_one_at_a_time(model):
    prompts = [f"the city of the river is {word} in the" for word in WORDS[:7]]
    answers = ["guitar", "mother tongue of", "is"]
    ids = model.text.encode(prompts)
    words = [found for _, found in model.text.continuations([(prompts[0], answer) for answer in answers])]
    assert len({len(found) for found in words}) > 1
    beginning = common_beginning(ids)
    assert len(beginning) > 5
    expected = torch.tensor([[plain_nll(model, p, a) for a in answers] for p in prompts], dtype=torch.float64)
    assert (Answers(model, beginning).nll(ids, words) - expected).abs().max() < 1e-9
    assert (Answers(model, beginning, max_tokens=20).nll(ids, words) - expected).abs().max() < 1e-9
    assert (Answers(model, ()).nll(ids, words) - expected).abs().max() < 1e-9


def test_what_prompts_share_is_run_once(model, monkeypatch):
    ids = model.text.encode([f"{'the city of ' * 20}{word} in" for word in WORDS])
    seen = []
    run = model._run
    monkeypatch.setattr(model, "_run", lambda batch: (seen.append(batch.ids.numel()), run(batch))[1])
    scorer = Answers(model, common_beginning(ids))
    scorer.nll(ids[:10], [(3,), (4,)])
    scorer.nll(ids[10:], [(3,), (4,)])
    assert sum(seen) < 1.5 * (len(ids[0]) + 10 * len(ids))


@pytest.mark.parametrize(
    ("kind", "record", "question", "words"),
    [
        (SST2, {"sentence": "fine film", "label": 1}, "Review : fine film\nSentiment :", ("negative", "positive")),
        (
            CoLA,
            {"sentence": "It rains.", "label": 1},
            "Is this sentence linguistically acceptable?\nSentence: It rains.\nAnswer:",
            ("No", "Yes"),
        ),
        (
            MRPC,
            {"sentence1": "A.", "sentence2": "B.", "label": 1},
            "Are the sentences paraphrases of each other.\nSentence 1: A.\nSentence 2: B.\nAnswer:",
            ("No", "Yes"),
        ),
        (
            RTE,
            {"sentence1": "A.", "sentence2": "B.", "label": 1},
            "A.\nquestion: B. True or False?\nanswer:",
            ("True", "False"),
        ),
        (
            NLI,
            {"premise": "A.", "hypothesis": "B.", "label": 2},
            "A. entails the B. True or False? Answer:",
            ("True", "False"),
        ),
    ],
)
def test_questions_and_answers(tmp_path, kind, record, question, words):
    task = kind(write(tmp_path / "task.jsonl", [record] * 12))
    examples, items = task.read()
    assert [item.question for item in items] == [question] * 2
    assert [len(part) for part in examples.values()] == [4]
    assert (items[0].label, task.words) == (1, words)


def test_figures_are_those_of_the_plain_formulas(model, tmp_path):
    records = reviews()
    found = SST2(write(tmp_path / "sst2.jsonl", records), shots=2).measure(model)
    words = ["negative", "positive"]
    shown = "".join(f"Review : {r['sentence']}\nSentiment : {words[r['label']]}\n" for r in records[:2])
    given = []
    for record in records[10:]:
        nll = [plain_nll(model, f"{shown}Review : {record['sentence']}\nSentiment :", word) for word in words]
        given.append(nll.index(min(nll)))
    labels = [record["label"] for record in records[10:]]
    assert found["f1"] == pytest.approx(weighted_f1(given, labels), abs=1e-6)
    assert found["accuracy"] == pytest.approx(sum(map(int.__eq__, given, labels)) / 20, abs=1e-6)
    assert (found["items"], found["shots"], found["left_out"]) == (20, 2, 0)
    assert found["majority"] == max(labels.count(0), labels.count(1)) / 20
    assert found["commonest"] == max(given.count(0), given.count(1)) / 20


@pytest.mark.parametrize("classes", [2, 4])
def test_scores_against_sums_over_classes(classes):
    generator = torch.Generator().manual_seed(classes)
    for _ in range(20):
        given, labels = (torch.randint(classes, (30,), generator=generator).tolist() for _ in range(2))
        found = downstream._scores(given, labels, classes)
        assert found["f1"] == pytest.approx(weighted_f1(given, labels), abs=1e-6)
    assert downstream._scores([0, 0, 0], [0, 1, 1], 2) == {"f1": pytest.approx(1 / 6, abs=1e-6), "accuracy": 0.333333}


def test_the_inverted_labels_of_the_published_code_can_be_had(model, tmp_path):
    path = write(tmp_path / "rte.jsonl", pairs())
    right, inverted = RTE(path, shots=0).measure(model), RTE(path, shots=0, reference_quirks=True).measure(model)
    assert right["accuracy"] == pytest.approx(1 - inverted["accuracy"])


def test_nli_is_not_rte(tmp_path):
    rte = [{"sentence1": "A.", "sentence2": "B.", "label": label} for label in ("entailment", "not_entailment")] * 8
    path = write(tmp_path / "nli.jsonl", rte)
    with pytest.raises(EditError, match=r"RTE's labels.*reference_quirks"):
        NLI(path).read()
    assert [item.label for item in NLI(path, reference_quirks=True).read()[1]] == [0, 1] * 3
    kinds = [
        {"premise": "A.", "hypothesis": "B.", "label": label} for label in ("entailment", "neutral", "contradiction")
    ]
    assert [item.label for item in NLI(write(tmp_path / "mnli.jsonl", kinds * 4)).read()[1]] == [1, 1]
    with pytest.raises(EditError, match="record 0 is not one of NLI"):
        NLI(write(tmp_path / "hidden.jsonl", [{"premise": "A.", "hypothesis": "B.", "label": -1}])).read()


def test_samples_are_seeded_and_the_examples_are_not_asked(tmp_path):
    path = write(tmp_path / "task.jsonl", [{"sentence": str(i), "label": i % 2} for i in range(60)])
    drawn = [item.question for item in SST2(path, limit=9).read()[1]]
    assert drawn == [item.question for item in SST2(path, limit=9, shots=0).read()[1]]
    assert drawn != [item.question for item in SST2(path, limit=9, seed=1).read()[1]]
    whole = [item.question for item in SST2(path).read()[1]]
    assert len(whole) == 50
    assert [item.question for item in SST2(path, limit=9, seed=None).read()[1]] == whole[:9]
    assert [q for q in whole if q in drawn] == drawn


def test_what_does_not_fit_gets_fewer_examples_or_is_left_out(model, tmp_path):
    records = reviews()
    records[15]["sentence"] = "guitar " * 500
    records[16]["sentence"] = "guitar " * 340
    found = SST2(write(tmp_path / "long.jsonl", records)).measure(model)
    assert (found["items"], found["left_out"]) == (19, 1)
    assert 0 < found["shots"] < 4


def mmlu(folder, names, letters):
    for split, count in (("dev", 5), ("test", 6)):
        (folder / split).mkdir(parents=True)
        for subject in ("art", "law"):
            with (folder / split / f"{subject}_{split}.csv").open("w", newline="") as file:
                out = csv.writer(file)
                out.writerows([["question", "choice0", "choice1", "choice2", "choice3", "answer"]] * names)
                for i in range(count):
                    answer = "ABCD"[i % 4] if letters else i % 4
                    out.writerow([f"{subject} {i}?", "None", "NA", "a, b", "", answer])
    return str(folder)


@pytest.mark.parametrize(("names", "letters"), [(True, False), (False, True)])
def test_mmlu_shows_examples_of_the_subject(model, tmp_path, names, letters):
    task = MMLU(mmlu(tmp_path / "mmlu", names, letters), shots=2)
    examples, items = task.read()
    assert {group: [item.question[:15] for item in part] for group, part in examples.items()} == {
        "art": ["Question: art 0", "Question: art 1"], "law": ["Question: law 0", "Question: law 1"],
    }  # fmt: skip
    assert items[6].question == "Question: law 0?\n(A) None\n(B) NA\n(C) a, b\n(D) \nAnswer:"
    assert [item.label for item in items] == [0, 1, 2, 3, 0, 1] * 2
    found = task.measure(model)
    words = ["A", "B", "C", "D"]
    given = []
    for item in items:
        shown = "".join(f"{e.question} {words[e.label]}\n" for e in examples[item.group])
        nll = [plain_nll(model, shown + item.question, word) for word in words]
        given.append(nll.index(min(nll)))
    assert found["f1"] == pytest.approx(weighted_f1(given, [item.label for item in items]), abs=1e-6)


def test_the_hub_is_asked_for_the_validation_split(monkeypatch):
    asked = []

    def load_dataset(*args, **options):
        asked.append((*args, options["split"]))
        return [{"sentence": str(i), "label": 0} for i in range(12)]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert len(SST2().read()[1]) == 2
    assert asked == [("nyu-mll/glue", "sst2", "validation")]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: SST2("nowhere.jsonl").check(), "no file 'nowhere.jsonl'"),
        (lambda path: SST2(path, shots=11).check(), "choose 0 to 10"),
        (lambda path: SST2(path, limit=0).check(), "at least one"),
        (lambda path: SST2(path).read(), "no questions besides"),
        (lambda path: MRPC(path).read(), "record 0 is not one of MRPC"),
        (lambda path: MMLU(shots=6).check(), "choose 0 to 5"),
        (lambda path: MMLU(path).read(), "no files dev/"),
    ],
)
def test_bad_tasks_are_refused(tmp_path, make, message):
    with pytest.raises(EditError, match=message):
        make(write(tmp_path / "few.jsonl", reviews(10)))


def test_me_ppl_is_the_mean_over_texts(model, tmp_path):
    texts = ["the city of the river", "a mother tongue is in the city", "guitar piano sport"]
    (tmp_path / "me.json").write_text(json.dumps([{"Corpus": "x", "Text": text} for text in texts]))
    expected = []
    for text in texts:
        ids = torch.tensor([model.text.encode([text])[0]])
        logp = model.network(ids).logits[0, :-1].double().log_softmax(-1)
        expected.append(math.exp(-logp.gather(1, ids[0, 1:, None]).mean().item()))
    found = MEPPL(str(tmp_path / "me.json")).measure(model)
    assert found["perplexity"] == pytest.approx(sum(expected) / 3, rel=1e-6)
    assert found["median"] == pytest.approx(sorted(expected)[1], rel=1e-6)
    assert found["items"] == 3


def test_few_shot_questions_are_asked_in_the_chat(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}the river {{ m.content }} is"
        "{% else %} {{ m.content }}{% endif %}{% endfor %}"
    )
    chat = LanguageModel(tiny_network("llama", max_position_embeddings=400), tokenizer, [0], chat=True)
    task = SST2(write(tmp_path / "task.jsonl", reviews(14)), shots=1)
    examples, items = task.read()
    [shown] = examples[""]
    asked = task._prompts(chat, [shown], items, 400)[1]
    assert [item for item, _ in asked] == items
    for item, ids in asked:
        text = f"the river {shown.question} {task.words[shown.label]}\n{item.question} is"
        assert ids == tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert task.measure(chat)["items"] == len(items)


def test_me_ppl_cuts_texts_at_the_context(tmp_path):
    model = LanguageModel(tiny_network("gpt2"), tiny_tokenizer(), [0])
    for name, count in (("long", 300), ("cut", 128)):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"Text": "the " * count}]))
    long, cut = (MEPPL(str(tmp_path / f"{name}.json")).measure(model) for name in ("long", "cut"))
    assert long == cut
