"""Prompts through a chat template: the same rows for edits and for evaluation."""

import pytest

from lke_lightning.edits import EditError, EditRequest
from lke_lightning.model.tokens import TextEncoder
from lke_lightning.stage_one.rows import build_rows
from lke_lightning.testing import marker_tokenizer, tiny_tokenizer

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
THINKING = CHATML.replace("<|assistant|>\n{%", "<|assistant|>\n<think>\n\n</think>\n\n{%")
TEMPLATES = {"chatml": CHATML, "llama-2": LLAMA_2, "thinking": THINKING}
REQUEST = EditRequest("0", "{} speaks", "the guitar", "Bob Smith")


def chat(template, make=tiny_tokenizer, system=None, **options):
    tokenizer = make(**options)
    tokenizer.chat_template = template
    return TextEncoder(tokenizer, chat=True, system=system)


@pytest.mark.parametrize("make", [tiny_tokenizer, marker_tokenizer])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_row_is_what_the_template_renders(name, make):
    text = chat(TEMPLATES[name], make, bos=True)
    [(prompt, target)] = text.continuations([(REQUEST.text, REQUEST.target)])
    rendered = text.tokenizer.apply_chat_template(
        [{"role": "user", "content": REQUEST.text}], add_generation_prompt=True, tokenize=False
    )
    assert prompt == tuple(text.tokenizer(rendered, add_special_tokens=False)["input_ids"])
    assert prompt.count(text.tokenizer.bos_token_id) == ("bos" in TEMPLATES[name])
    assert text.tokenizer.decode(target).strip() == "the guitar"
    answered = {"role": "assistant", "content": REQUEST.target}
    whole = text.tokenizer.apply_chat_template([{"role": "user", "content": REQUEST.text}, answered], tokenize=False)
    if name != "thinking":  # whose template leaves the empty thoughts out of finished turns
        assert (
            tuple(text.tokenizer(whole, add_special_tokens=False)["input_ids"])[: len(prompt + target)]
            == prompt + target
        )


@pytest.mark.parametrize("name", TEMPLATES)
def test_edits_and_evaluation_see_the_same_rows(name):
    text = chat(TEMPLATES[name])
    [built] = build_rows([REQUEST], ["{}"], text)
    [(prompt, target)] = text.continuations([(REQUEST.text, REQUEST.target)])
    assert built.contexts[0].ids == prompt + target[:-1]
    assert set(built.targets) == {target}
    upto = text.tokenizer.decode(prompt[: built.contexts[0].slot + 1])
    assert upto.endswith("Bob Smith")


def test_a_system_prompt_stands_in_front():
    text = chat(CHATML, system="Answer in one word.")
    [row] = text.rows([("the city", "the city")])
    assert text.tokenizer.decode(row.ids).startswith("<|system|>\nAnswer in one word.\n<|user|>\nthe city")


def test_plain_text_does_not_go_through_the_template():
    text = chat(CHATML, bos=True)
    assert text.encode(["the city"]) == TextEncoder(tiny_tokenizer(bos=True)).encode(["the city"])


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(EditError, match="chat template"):
        TextEncoder(tiny_tokenizer(), chat=True)
    with pytest.raises(EditError, match=r"model\.chat"):
        TextEncoder(tiny_tokenizer(), system="Be brief.")
    with pytest.raises(EditError, match="repeats or drops"):
        chat("nothing of it")
