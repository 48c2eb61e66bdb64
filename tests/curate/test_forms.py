# SPDX-License-Identifier: Apache-2.0
"""All forms of chat data become the same rows; what has no form says so."""

import datetime
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring_jax.config import RawSourceConfig
from ring_jax.curate.forms import detect, normalise
from ring_jax.curate.rows import RawRecord, Rejection
from ring_jax.data.schema import Row, row_from_json, row_to_json

CONFIG = RawSourceConfig(path="x", licence="MIT", domain="maths", version="3")

SAME = {
    "row": {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello", "think": "A greeting."},
        ]
    },
    "messages": {
        "messages": [
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "content": "Hello",
                "reasoning_content": "A greeting.",
            },
        ],
        "split": "train",
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "<think>\nA greeting.\n</think>\n\nHello"},
        ]
    },
    "alpaca": {
        "instruction": "Hi",
        "input": "",
        "output": "<think>A greeting.</think>Hello",
    },
    "prompt_completion": {
        "prompt": "Hi",
        "completion": "<think>A greeting.</think>\nHello",
    },
    "preference": {
        "prompt": "Hi",
        "chosen": "<think>A greeting.</think>Hello",
        "rejected": "What?",
    },
}


def row_of(fields: dict) -> Row | Rejection:
    return normalise(RawRecord(where="f:1", fields=fields), CONFIG, source="s")


@pytest.mark.parametrize("form", SAME)
def test_every_form_gives_the_same_conversation(form):
    row = row_of(SAME[form])
    assert isinstance(row, Row), row
    assert detect(SAME[form]) == form
    user, assistant = row.messages
    assert (user.role, user.content) == ("user", "Hi")
    assert (assistant.think, assistant.content) == ("A greeting.", "Hello")
    assert (row.licence, row.package, row.domain) == ("MIT", "f==3", "maths")


def test_a_preference_keeps_its_rejected_reply():
    row = row_of(SAME["preference"])
    assert isinstance(row, Row)
    assert row.metadata["rejected"] == {"think": "", "content": "What?"}
    lists = {
        name: [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": reply},
        ]
        for name, reply in (("chosen", "Hello"), ("rejected", "What?"))
    }
    row = row_of(lists)
    assert isinstance(row, Row)
    assert [turn.content for turn in row.messages] == ["Hi", "Hello"]


def test_tool_calls_of_the_usual_form_are_understood():
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "add", "arguments": '{"a": 1}'},
    }
    row = row_of(
        {
            "messages": [
                {"role": "user", "content": "1 + 1?"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "2"},
                {"role": "assistant", "content": "It is 2."},
            ],
            "tools": [{"name": "add"}],
        }
    )
    assert isinstance(row, Row), row
    assert row.messages[1].tool_calls[0].arguments == {"a": 1}
    assert row.messages[2].role == "tool"
    assert row.metadata["tools"] == [{"name": "add"}]


BAD = {
    "value is a number": {"conversations": [{"from": "human", "value": 3}]},
    "unknown speaker": {"conversations": [{"from": "narrator", "value": "x"}]},
    "turns are a text": {"messages": "Hi", "split": "x"},
    "a turn is a text": {"messages": ["Hi"], "split": "x"},
    "speaker is a list": {"messages": [{"role": ["user"], "content": "Hi"}], "x": 1},
    "no output": {"instruction": "Hi", "output": None},
    "output is a list": {"instruction": "Hi", "output": ["x"]},
    "empty reply": {"prompt": "Hi", "completion": "  "},
    "same replies": {"prompt": "Hi", "chosen": "a", "rejected": "a"},
    "no prompt": {"chosen": "a", "rejected": "b"},
    "arguments cut off": {
        "messages": [
            {"role": "user", "content": "x"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "f", "arguments": '{"a":'}}],
            },
        ]
    },
    "metadata is a text": {"prompt": "Hi", "completion": "x", "metadata": "m"},
    "a date": {"prompt": "Hi", "completion": "x", "day": datetime.date(2026, 1, 1)},
    "bytes": {"text": "x", "metadata": {"picture": b"\x00"}},
    "not a number": {"prompt": "Hi", "completion": "x", "score": float("nan")},
    "half a surrogate": {"prompt": "Hi", "completion": "x", "note": "\ud800"},
    "text is a number": {"text": 5},
    "nothing": {},
}


@pytest.mark.parametrize("fields", BAD.values(), ids=BAD)
def test_a_record_without_a_form_is_turned_away_with_one_line(fields):
    rejection = row_of(fields)
    assert isinstance(rejection, Rejection)
    assert rejection.detail
    assert "\n" not in rejection.detail
    json.dumps(rejection.excerpt, ensure_ascii=False).encode()


def test_line_ends_and_unicode_have_one_form():
    row = row_of({"prompt": "a\r\nb\rc", "completion": "e\u0301"})
    assert isinstance(row, Row)
    assert [turn.content for turn in row.messages] == ["a\nb\nc", "\u00e9"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "from", "value", "think", "tool_calls"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(
    """
    messages conversations instruction input output prompt completion response chosen
    rejected text system id metadata answer level difficulty samples
    """.split()  # noqa: SIM905  (a list of this length reads better as text)
)


@given(st.dictionaries(NAMES, JSON, max_size=4))
def test_whatever_a_record_holds_it_becomes_a_row_or_a_reason(fields):
    row = row_of(fields)
    if isinstance(row, Row):
        line = row_to_json(row)
        assert row_from_json(line, where="x", defaults={}) == row
        assert row_to_json(row_from_json(line, where="x", defaults={})) == line
    else:
        assert row.reason in ("form", "schema", "control_characters")
