"""Chats through templates as real models have them, and what is thought before an answer."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from cat_lib.method.estimators.likelihood import self_bon
from cat_lib.method.judge import Judge
from cat_lib.schema import Completion, Group, Sampling

# as Qwen 3: an empty block of thinking where it is off
QWEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
)
# as Gemma 2 and 3's ancestors: no system turn, and the roles alternate
STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "[{{ m.role }}] {{ m.content }} {% endfor %}[assistant]"
)
# as R1's distillates: the thinking is opened for the model, whatever it is told
OPENED = "{% for m in messages %}{{ m.content }}{% endfor %}<think>\n"


@pytest.fixture
def with_template(embedded):
    def make(template, **changes):
        tokenizer = copy.deepcopy(embedded.tokenizer)
        tokenizer.chat_template = template
        return replace(embedded, tokenizer=tokenizer, **changes)

    return make


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


def test_a_model_is_told_not_to_think_unless_it_is_asked_to(with_template):
    chat = turns(("user", "Hi"))
    off, on = with_template(QWEN), with_template(QWEN, thinking=True)
    assert off.render(chat).endswith("<think>\n\n</think>\n\n")
    assert "think" not in on.render(chat)
    assert off.encode(chat) == off.tokenizer(off.render(chat), add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("chat", "read"),
    [
        ([("system", "Be brief."), ("user", "Hi")], "[user] Be brief.\n\nHi [assistant]"),
        ([("user", "Hi"), ("user", "there")], "[user] Hi\n\nthere [assistant]"),
        (
            [("system", "S"), ("user", "A"), ("assistant", "B"), ("system", "T"), ("user", "C")],
            "[user] S\n\nA [assistant] B [user] T\n\nC [assistant]",
        ),
        ([("user", "A"), ("assistant", "B"), ("user", "C")], "[user] A [assistant] B [user] C [assistant]"),
    ],
)
def test_turns_that_a_template_refuses_are_folded(with_template, chat, read):
    assert with_template(STRICT).render(turns(*chat)) == read


def test_turns_that_stay_refused_are_named(with_template):
    with pytest.raises(ValueError, match=r"turns assistant, user \('I am first'\).*Roles must alternate.*leave it out"):
        with_template(STRICT).render(turns(("assistant", "I am first"), ("user", "B")))


def test_a_template_that_takes_all_turns_gets_them_as_they_are(with_template):
    rendered = with_template(QWEN).render(turns(("system", "S"), ("user", "A"), ("user", "B")))
    assert rendered.count("<|im_start|>") == 4


def test_what_is_thought_is_counted_and_not_said(with_template):
    opened, closed = with_template(OPENED), with_template(QWEN, thinking=True)
    chat, ids = turns(("user", "Hi")), [5, 6, 2]
    assert opened.read(chat, "It is\n</think>\n\nHello", ids, Sampling(9)).text == "Hello"
    assert opened.read(chat, "It is a long story", ids, Sampling(9)).text == ""  # cut while it thought
    assert closed.read(chat, "<think>\nIt is\n</think>\n\nHello", ids, Sampling(9)).text == "Hello"
    assert closed.read(chat, "Hello", ids, Sampling(9)).text == "Hello"
    assert closed.read(chat, "<think>It", ids, Sampling(9)).token_ids == tuple(ids)


def test_generation_cuts_the_thinking_and_books_its_tokens(with_template):
    model = with_template(OPENED)
    with model.ledger.measure() as spent:
        ((completion,),) = model.generate([turns(("user", "What is 2 + 2?"))], 1, Sampling(8, temperature=0))
    assert completion.text == ""  # eight tokens, and the thinking never ended
    assert len(completion.token_ids) == spent["policy"].completion_tokens == 8


def test_a_word_is_read_where_no_thought_is_due(with_template, monkeypatch):
    """A probability judge and self-selected best-of-N ask a model that may think without letting it."""
    model = with_template(QWEN, thinking=True)
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(
            type(model), "score", lambda self, heads, branches, words: asked.extend(branches) or [[[-1.0] * 4]]
        )
        Judge(model.anchor("judge"), "chat")([("Rest.", "Says to rest.")])
    ((after,),) = asked
    assert after.endswith("<think>\n\n</think>\n\n")
    with pytest.raises(ValueError, match=r"always thinks first.*judge_prompt='text'"):
        Judge(with_template(OPENED), "chat")([("Rest.", "Says to rest.")])
    with pytest.raises(ValueError, match="always thinks first"):
        self_bon(with_template(OPENED), "reasoning")([Group("q", "2 + 2?", (Completion("4", (), "stop"),), ("4",))])
