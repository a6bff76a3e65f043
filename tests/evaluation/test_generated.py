"""Free generation in batches against one plain forward per token."""

import pytest
import torch

from lke_lightning.edits import EditError, EditRequest, Probe
from lke_lightning.evaluation import generated
from lke_lightning.evaluation.generated import answer, complete, continue_freely, decode, end_tokens, write_about
from lke_lightning.metrics import TextSimilarity, ngram_entropy
from lke_lightning.model.language_model import LanguageModel
from lke_lightning.testing import tiny_network, tiny_tokenizer

PROMPTS = ["Bob was born in", "Bob was born in the", "The capital", "a", "Bob was", "the river is the city of the"]


def build(family, bos=False):
    return LanguageModel(tiny_network(family), tiny_tokenizer(bos=bos), [0])


def naive(model, ids, count, ends=frozenset()):
    """Run the whole text anew for every token."""
    new = []
    while len(new) < count:
        new.append(model.network(input_ids=torch.tensor([[*ids, *new]])).logits[0, -1].argmax().item())
        if new[-1] in ends:
            break
    return new


def greedy(logits, numbers, step):
    return logits.argmax(1)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("max_tokens", [1, 40, 10_000])
def test_greedy_tokens_against_plain_forwards(family, bos, max_tokens):
    model = build(family, bos)
    rows = model.text.encode(PROMPTS)
    limits = [9, 1, 5, 12, 9, 0]
    free = [naive(model, ids, limit) for ids, limit in zip(rows, limits, strict=True)]
    ends = {free[0][3], free[3][7]}  # so that rows end at different steps
    expected = [naive(model, ids, limit, ends) for ids, limit in zip(rows, limits, strict=True)]
    assert decode(model, rows, limits, greedy, lambda token: token in ends, max_tokens) == expected
    assert len({len(tokens) for tokens in expected}) > 2


def test_generation_agrees_with_transformers():
    model = build("llama")
    ids = model.text.encode(["Bob was born in"])
    whole = model.network.generate(torch.tensor(ids), max_new_tokens=8, do_sample=False, pad_token_id=1)[0].tolist()
    found = decode(model, ids, [8], greedy, end_tokens(model).__contains__)
    assert [*ids[0], *found[0]] == whole


def test_no_text_becomes_longer_than_the_model_has_positions():
    model = build("gpt2")
    rows = [tuple(range(5, 125)), tuple(range(5, 133))]
    assert [len(new) for new in decode(model, rows, [50, 50], greedy, lambda token: False)] == [8, 0]


def test_answers_end_at_line_breaks_and_end_tokens(monkeypatch):
    model = build("llama")
    [row] = model.text.encode(["Bob was born in"])
    first, second = naive(model, row, 2)
    tokenizer = model.text.tokenizer
    assert complete(model, ["Bob was born in "], 2) == [
        tokenizer.decode([*row, first, second])[len("Bob was born in") :]
    ]
    monkeypatch.setattr(generated, "end_tokens", lambda _: frozenset({second}))
    assert complete(model, ["Bob was born in"], 9)[0].strip() == tokenizer.decode([first, second]).strip()
    monkeypatch.setattr(generated._LineBreaks, "__call__", lambda self, token: token == first)
    assert complete(model, ["Bob was born in"], 9)[0].strip() == tokenizer.decode([first]).strip()


def test_each_question_is_compared_with_its_own_answers():
    model = build("llama")
    says = dict(zip(PROMPTS, complete(model, PROMPTS, 6), strict=True))
    first_word = says["The capital"].split()[0]
    request = EditRequest(
        id="0", prompt="{} was born in", subject="Bob", target="nowhere", aliases=(says["Bob was born in"].upper(),),
        paraphrases=("Bob was born in the", "Bob was"), neighborhood=(Probe("The capital", first_word),),
        two_hop=(Probe("a", "nothing"), Probe("a", "nothing", (says["a"],))),
    )  # fmt: skip
    other = EditRequest(id="1", prompt="The capital", target=says["The capital"])
    seen = []

    def judge(asked):
        seen.extend(asked)
        return [float(prompt == "a") for prompt, _, _ in asked]

    one, two = answer(model, [request, other], 6, judge=judge)
    assert one.scores["efficacy/generated"].tolist() == [[1, 1, 0]]
    assert one.scores["paraphrase/generated"].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert one.scores["neighborhood/generated"].tolist() == [[len(says["The capital"].split()) == 1, 1, 0]]
    assert one.scores["two_hop/generated"].tolist() == [[0, 0, 1], [1, 1, 1]]
    assert "portability/generated" not in one.scores
    assert (one.text, two.text) == (says["Bob was born in"], says["The capital"])
    assert two.scores["efficacy/generated"].tolist() == [[1, 1, 0]]
    assert ("a", says["a"], ("nothing", says["a"])) in seen
    assert len(seen) == len(set(seen))
    assert answer(model, [other], 6)[0].scores["efficacy/generated"][0, 2].isnan()


def test_what_is_sampled_depends_on_the_prompt_alone():
    model = build("gpt2")
    together = continue_freely(model, PROMPTS, total_tokens=20)
    state = torch.get_rng_state()
    alone = [continue_freely(model, [prompt], total_tokens=20)[0] for prompt in PROMPTS]
    assert together == alone
    assert torch.equal(state, torch.get_rng_state())
    assert continue_freely(model, PROMPTS, total_tokens=20, seed=1) != together
    ids = [model.text.encode([prompt + text])[0] for prompt, text in zip(PROMPTS, together, strict=True)]
    assert all(len(row) >= 20 for row in ids)


def test_sampling_follows_the_most_probable_tokens(monkeypatch):
    model = build("gpt2")
    monkeypatch.setattr(generated, "texts_of", lambda model, rows, found: [new for [new] in found])
    [row] = model.text.encode(["Bob was born in the"])
    probability = model.network(input_ids=torch.tensor([row])).logits[0, -1].topk(5)
    shares = probability.values.softmax(0).tolist()
    draws = [continue_freely(model, ["Bob was born in the"], len(row) + 1, seed=seed)[0] for seed in range(400)]
    for token, share in zip(probability.indices.tolist(), shares, strict=True):
        assert draws.count(token) / 400 == pytest.approx(share, abs=4 * (share * (1 - share) / 400) ** 0.5)
    assert set(draws) <= set(probability.indices.tolist())


def test_fluency_and_consistency_of_what_is_written():
    model = build("llama")
    references = ("the city of the river", "a guitar")
    asked = [
        EditRequest(id="0", prompt="a", target="b", generation=("Bob was", "The capital"), references=references),
        EditRequest(id="1", prompt="a", target="c"),
    ]
    similarity = TextSimilarity(references)
    one, two = write_about(model, asked, similarity)
    texts = [
        prompt + text
        for prompt, text in zip(asked[0].generation, continue_freely(model, asked[0].generation), strict=True)
    ]
    fluency = sum(map(ngram_entropy, texts)) / 2
    assert one["texts"].tolist() == [[pytest.approx(fluency), pytest.approx(similarity(texts, references))]]
    assert two["texts"].isnan().all()
    assert write_about(model, asked[:1])[0]["texts"][0, 1].isnan()


CHAT = (
    "{% for m in messages %}{% if m.role == 'user' %}the river {{ m.content }} is{% else %} {{ m.content }}{% endif %}"
    "{% endfor %}"
)


def test_a_chat_answers_behind_its_template():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    chat, plain = LanguageModel(tiny_network("llama"), tokenizer, [0], chat=True), build("llama")
    asked = [f"the river {prompt} is" for prompt in PROMPTS]
    expected = [naive(chat, chat.text.prompts([prompt])[0], 6) for prompt in PROMPTS]
    assert expected == [naive(plain, ids, 6) for ids in plain.text.encode(asked)]
    assert complete(chat, PROMPTS, 6) == complete(plain, asked, 6) != complete(plain, PROMPTS, 6)
    request = EditRequest(id="0", prompt="Bob was", target="a", generation=("The capital",))
    assert answer(chat, [request], 6)[0].text == complete(plain, ["the river Bob was is"], 6)[0]


def test_the_length_of_a_sampled_text_does_not_count_the_template(monkeypatch):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    chat, plain = LanguageModel(tiny_network("llama"), tokenizer, [0], chat=True), build("llama")
    monkeypatch.setattr(generated, "texts_of", lambda model, rows, found: [len(new) for new in found])
    assert continue_freely(chat, PROMPTS, total_tokens=20) == continue_freely(plain, PROMPTS, total_tokens=20)


@pytest.mark.parametrize("family", ["gpt2", "llama"])  # learned positions, and rotary ones
def test_a_prompt_beyond_the_context_is_refused(family):
    with pytest.raises(EditError, match=r"'the the .*context holds 128: shorten it"):
        complete(build(family), ["the " * 200], 5)
