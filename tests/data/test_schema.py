# SPDX-License-Identifier: Apache-2.0
"""Bad rows are refused in one line that names the row."""

import json
from typing import Any

import pytest

from ring_jax.config import ConfigError
from ring_jax.data.schema import Message, Row, ToolCall, row_from_json

DEFAULTS: dict[str, Any] = {
    "source": "s",
    "domain": "d",
    "licence": "CC0-1.0",
    "package": "p==1",
}
USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Hello"}
CALL = {"name": "f", "arguments": {"x": 1}}

BAD = {
    "no assistant turn": ({"messages": [USER]}, "no assistant turn"),
    "ends with user": ({"messages": [USER, REPLY, USER]}, "ends with a turn"),
    "empty answer": ({"messages": [USER, {**REPLY, "content": " "}]}, "is empty"),
    "no content": ({"messages": [USER, {"role": "assistant"}]}, "needs `role`"),
    "wrong role": ({"messages": [{**USER, "role": "bot"}, REPLY]}, "role='bot'"),
    "number as content": ({"messages": [USER, {**REPLY, "content": 5}]}, "content=5"),
    "thinking user": ({"messages": [{**USER, "think": "x"}, REPLY]}, "user turn has"),
    "unknown message field": ({"messages": [{**USER, "x": 1}, REPLY]}, "'x'"),
    "messages as text": ({"messages": "Hi"}, "must be a list"),
    "message as text": ({"messages": ["Hi"]}, "needs `role`"),
    "nothing": ({}, "0 messages and 0 characters"),
    "both": ({"messages": [USER, REPLY], "text": "x"}, "give it one of the two"),
    "number as text": ({"text": 5}, "text=5"),
    "number as answer": ({"messages": [USER, REPLY], "answer": 5}, "answer=5"),
    "text as metadata": ({"text": "x", "metadata": "y"}, "metadata='y'"),
    "truth as difficulty": ({"text": "x", "difficulty": True}, "difficulty=True"),
    "unknown field": ({"text": "x", "lisence": "MIT"}, "lisence"),
    "call without name": (
        {"messages": [USER, {**REPLY, "tool_calls": [{"arguments": {}}]}]},
        "tool call",
    ),
    "arguments as text": (
        {"messages": [USER, {**REPLY, "tool_calls": [{**CALL, "arguments": "x"}]}]},
        "tool call",
    ),
}


@pytest.mark.parametrize(("fields", "message"), BAD.values(), ids=BAD)
def test_a_bad_row_is_refused_by_name(fields, message):
    with pytest.raises(ConfigError, match=message) as error:
        row_from_json(json.dumps(fields), where="rows.jsonl:7", defaults=DEFAULTS)
    assert "rows.jsonl:7" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("line", ["", "{", "[]", "null", '"x"'])
def test_a_line_that_is_no_object_is_refused(line):
    with pytest.raises(ConfigError, match=r"rows\.jsonl:7"):
        row_from_json(line, where="rows.jsonl:7", defaults=DEFAULTS)


def test_a_good_row_keeps_every_field():
    call = {**REPLY, "content": "", "think": "t", "tool_calls": [CALL]}
    fields = {"messages": [USER, call], "answer": "a", "metadata": {"k": [1]}}
    row = row_from_json(json.dumps(fields), where="rows.jsonl:7", defaults=DEFAULTS)
    assert row == Row(
        id="rows.jsonl:7",
        messages=(
            Message("user", "Hi"),
            Message("assistant", "", "t", (ToolCall("f", {"x": 1}),)),
        ),
        answer="a",
        metadata={"k": [1]},
        **DEFAULTS,
    )
