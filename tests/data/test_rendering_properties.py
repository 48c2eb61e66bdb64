# SPDX-License-Identifier: Apache-2.0
"""What holds of every rendered conversation, whatever its texts spell."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ring_jax.config import TOKEN_CLASSES
from ring_jax.data import chat, tokenizer
from ring_jax.data.chat_template import to_hugging_face
from ring_jax.data.schema import Message, Row, ToolCall
from ring_jax.data.template_worker import environment
from tests.untagged_tokenizer import without_tool_tags

CALL = ToolCall("add", {"a": 1})
# Merges across the borders of a call's text: where tags are no tokens, they count.
TRAINED = tokenizer.train(
    [f"Sure.<tool_call>{CALL.to_json()}</tool_call>" for _ in range(50)]
    + ["It's 12 and so on; the name, the number. ", *chat.ROLE_NAMES.values()],
    vocab_size=330,
)
SPECIAL_IDS = {TRAINED.special_id(name) for name in tokenizer.SPECIAL_TOKENS}
JINJA = {
    name: environment().from_string(text) for name, text in chat.CHAT_TEMPLATES.items()
}


WITHOUT_TOOL_TAGS = without_tool_tags(TRAINED)

# What tokenizers and templates trip over: contractions, runs of white space and
# punctuation, characters of several bytes or of several code points, halves of tags.
BITS = [
    "It's",
    " ",
    "\n",
    "\n\n",
    "\t",
    "12",
    "<",
    "</",
    "{",
    '"}',
    "&",
    "é",
    "e\u0301",
]
PLAIN = st.one_of(
    st.lists(
        st.sampled_from([*BITS, "汉字", "👍🏽", "\u200d", "a", "."]), max_size=8
    ).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
).filter(lambda text: not any(name in text for name in tokenizer.SPECIAL_TOKENS))
FORGED = st.lists(st.sampled_from([*BITS, *tokenizer.SPECIAL_TOKENS]), max_size=8).map(
    "".join
)


def conversations(text) -> st.SearchStrategy[Row]:
    """Rows of up to seven turns in any order, with texts from a strategy."""
    values = st.one_of(text, st.integers(), st.booleans(), st.none(), st.floats(0, 1))
    calls = st.builds(
        ToolCall, text, st.dictionaries(text, values | st.lists(values), max_size=3)
    )
    some_calls = st.lists(calls, max_size=2).map(tuple)
    assistant = st.builds(
        Message, st.just("assistant"), text, think=text, tool_calls=some_calls
    )
    others = st.builds(Message, st.sampled_from(["system", "user", "tool"]), text)
    replies = assistant.filter(lambda m: bool(m.content.strip() or m.tool_calls))
    earlier = st.lists(st.one_of(others, assistant), max_size=6)
    return st.builds(_row, earlier, replies)


def _row(earlier: list[Message], reply: Message) -> Row:
    origin: dict[str, Any] = {
        "source": "s",
        "domain": "d",
        "licence": "MIT",
        "package": "p==1",
    }
    return Row(id="test", messages=(*earlier, reply), **origin)


TEMPLATES = st.sampled_from(chat.TEMPLATES)
often = settings(deadline=None, max_examples=150, derandomize=True)


@often
@given(row=conversations(st.one_of(PLAIN, FORGED)), template=TEMPLATES)
def test_classes_cover_all_tokens_in_the_order_of_a_turn(row, template):
    rendered = chat.render(row, TRAINED, template=template)
    names = [TOKEN_CLASSES[number] for number in rendered.classes]
    order = ["prompt", "think", "answer", "tool", "stop"]
    assert len(rendered.ids) == len(names)
    assert names == sorted(names, key=order.index)
    assert names.count("stop") == 1
    prompt = chat.render_prompt(row, TRAINED, template=template)
    assert rendered.ids[: len(prompt)].tolist() == prompt
    assert names.count("prompt") == len(prompt)


@often
@given(row=conversations(st.one_of(PLAIN, FORGED)), template=TEMPLATES)
def test_trained_tokens_of_each_class_decode_to_that_part_of_the_reply(row, template):
    rendered = chat.render(row, TRAINED, template=template)
    texts = {
        name: TRAINED.decode(rendered.ids[rendered.classes == number].tolist())
        for number, name in enumerate(TOKEN_CLASSES)
    }
    reply = row.reply
    thinks = reply.think and template != "ling"
    assert texts["think"] == (f"<think>{reply.think}</think>" if thinks else "")
    assert texts["answer"] == reply.content
    spelled = (f"<tool_call>{call.to_json()}</tool_call>" for call in reply.tool_calls)
    assert texts["tool"] == "".join(spelled)
    assert texts["stop"] == tokenizer.END_TOKEN


@often
@given(row=conversations(FORGED), template=TEMPLATES)
def test_no_special_token_arises_from_the_text_of_a_message(row, template):
    ids = chat.render(row, TRAINED, template=template).ids.tolist()
    *earlier, reply = row.messages
    thinking = {"ling": (), "ring": (reply,), "ring_keep_thinking": row.messages}[
        template
    ]
    num_thinking = sum(bool(message.think) for message in thinking)
    num_calls = sum(len(message.tool_calls) for message in row.messages)
    expected = 2 * (len(earlier) + 1) + 2 * num_thinking + 2 * num_calls + 1
    assert len(SPECIAL_IDS & set(ids)) >= 3
    assert sum(token in SPECIAL_IDS for token in ids) == expected


@often
@given(row=conversations(st.one_of(PLAIN, FORGED)), template=TEMPLATES)
def test_the_jinja_template_writes_the_text_of_our_tokens(row, template):
    for text, ids in as_served(row, template, TRAINED):
        assert text == TRAINED.decode(ids)


@often
@given(row=conversations(PLAIN), template=TEMPLATES)
def test_a_server_gets_our_tokens_from_the_whole_text(row, template):
    for text, ids in as_served(row, template, TRAINED):
        assert TRAINED.encode_rendered(text) == ids


@often
@given(row=conversations(PLAIN), template=TEMPLATES)
def test_so_does_one_whose_tokenizer_has_no_tool_tags(row, template):
    for text, ids in as_served(row, template, WITHOUT_TOOL_TAGS):
        assert WITHOUT_TOOL_TAGS.encode_rendered(text) == ids
    rendered = chat.render(row, WITHOUT_TOOL_TAGS, template=template)
    counts = np.bincount(rendered.classes, minlength=len(TOKEN_CLASSES))
    assert counts[0] == 0
    assert (counts[TOKEN_CLASSES.index("tool")] > 0) == bool(row.reply.tool_calls)
    assert (np.diff(rendered.classes) >= 0).all()


@pytest.mark.parametrize(
    ("content", "answers", "first"),
    [("Sure.", ["Sure", ".<"], "tool"), ("Sure", ["Sure"], "<")],
)
def test_a_token_across_two_texts_has_the_class_of_its_first_character(
    content, answers, first
):
    row = _row([], Message("assistant", content, tool_calls=(CALL,)))
    rendered = chat.render(row, WITHOUT_TOOL_TAGS, template="ring")
    answer, tool = (
        [WITHOUT_TOOL_TAGS.decode([token]) for token in rendered.ids[is_class]]
        for is_class in (
            rendered.classes == TOKEN_CLASSES.index("answer"),
            rendered.classes == TOKEN_CLASSES.index("tool"),
        )
    )
    assert (answer, tool[0]) == (answers, first)
    spelled = f"<tool_call>{CALL.to_json()}</tool_call>"
    assert "".join(answer + tool) == f"{content}{spelled}"


def test_a_call_is_encoded_as_a_server_does_that_sees_no_border():
    spelled = f"<tool_call>{CALL.to_json()}</tool_call>"
    (only_call,) = chat.render_rows(
        [_row([], Message("assistant", "", tool_calls=(CALL,)))],
        WITHOUT_TOOL_TAGS,
        template="ring",
    )
    tool_ids = only_call.ids[only_call.classes == TOKEN_CLASSES.index("tool")]
    assert WITHOUT_TOOL_TAGS.decode(tool_ids.tolist()) == spelled
    assert tool_ids.tolist() == WITHOUT_TOOL_TAGS.encode_rendered(spelled)
    pieces = ["<tool_call>", CALL.to_json(), "</tool_call>"]
    apart = [WITHOUT_TOOL_TAGS.encode_rendered(piece) for piece in pieces]
    assert tool_ids.tolist() != sum(apart, [])


def as_served(row, template, of) -> list[tuple[str, list[int]]]:
    """Jinja's text and our ids, of the prompt and of the whole conversation."""
    turns = [to_hugging_face(message) for message in row.messages]
    jinja = JINJA[template]
    prompt = jinja.render(messages=turns[:-1], add_generation_prompt=True)
    whole = jinja.render(messages=turns, add_generation_prompt=False)
    return [
        (prompt, chat.render_prompt(row, of, template=template)),
        (whole, chat.render(row, of, template=template).ids.tolist()),
    ]
