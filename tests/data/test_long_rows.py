# SPDX-License-Identifier: Apache-2.0
"""Long rows: nothing of a reply is lost, trained twice, or torn from its question."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ring_jax.config import TOKEN_CLASSES, ConfigError, LongRowsConfig
from ring_jax.data import chat
from ring_jax.data.long_rows import LengthPolicy, LengthReport
from ring_jax.data.schema import Message, Row
from ring_jax.data.tokenizer import Tokenizer, train

PROMPT, THINK, ANSWER, TOOL, STOP = range(1, len(TOKEN_CLASSES))
WORDS = ("so", "we", "have", "three", "apples", "and", "eat", "one", "四个", "苹果")
ENDS = (" ", ". ", ".\n", ".\n\n", "\n", "\n\n\n", "!\r\n", "。", "? ")


@functools.cache
def tokenizer() -> Tokenizer:
    # Line ends of one, two and three characters become tokens of different kinds.
    texts = [f"{word}{end}{word}" for word in WORDS for end in ENDS] * 3
    return train(texts, vocab_size=330)


def make(**content) -> Row:
    return Row(id="a", source="s", domain="d", licence="MIT", package="p==1", **content)


def row_of(think: str, *, question: str = "How many?", answer: str = "Two.") -> Row:
    turns = (Message("user", question), Message("assistant", answer, think=think))
    return make(messages=turns)


def rendered(row: Row) -> chat.Rendered:
    return chat.render(row, tokenizer(), template="ring")


def policy(seq_len: int, **settings) -> LengthPolicy:
    config = LongRowsConfig(**({"policy": "split", "carried_tokens": 8} | settings))
    return LengthPolicy(config, tokenizer(), seq_len=seq_len)


PIECES = st.tuples(st.sampled_from(WORDS), st.sampled_from(ENDS)).map("".join)
TRACES = st.lists(PIECES, min_size=1, max_size=120).map("".join)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    think=TRACES,
    seq_len=st.integers(24, 120),
    carried=st.integers(1, 60),
    answer=st.lists(PIECES, min_size=1, max_size=12).map("".join),
)
def test_parts_hold_every_token_of_the_reply_once_and_whole_answers(
    think, seq_len, carried, answer
):
    row = rendered(row_of(think, answer=answer + "x"))
    parts = policy(seq_len, carried_tokens=carried).fit(row)
    (begins,) = np.nonzero(row.classes == THINK)
    head_T = row.ids[: begins[0] + 1]
    for part in parts:
        assert len(part.ids) <= seq_len
        # The question and the tag that opens the reasoning, in every part.
        assert part.ids[: len(head_T)].tolist() == head_T.tolist()
    if parts:
        joined = [
            (token, token_class)
            for part in parts
            for token, token_class in zip(part.ids, part.classes, strict=True)
            if token_class != PROMPT
        ]
        is_reply_T = row.classes != PROMPT
        expected = zip(row.ids[is_reply_T], row.classes[is_reply_T], strict=True)
        assert joined == list(expected)
    for part in parts[:-1]:
        # Only a part of the reasoning: what follows is in the next one.
        assert set(part.classes.tolist()) <= {PROMPT, THINK}
        assert part.ids[-1] != tokenizer().special_id("</think>")
    for part in parts[-1:]:
        (ends,) = np.nonzero(part.ids == tokenizer().special_id("</think>"))
        assert len(ends) == 1
        assert part.classes[ends[0]] == THINK
        rest = part.classes[ends[0] + 1 :].tolist()
        assert rest == [ANSWER] * (len(rest) - 1) + [STOP]
    for before, after in zip(parts, parts[1:], strict=False):
        # What is carried is the end of the reasoning so far, word for word.
        (new,) = np.nonzero(after.classes != PROMPT)
        carried_T = after.ids[len(head_T) : new[0]]
        so_far = before.ids[len(head_T) :]
        assert 1 <= len(carried_T) <= max(carried, 1)
        assert so_far[-len(carried_T) :].tolist() == carried_T.tolist()


def test_reasoning_is_cut_behind_a_paragraph_else_a_line_else_a_sentence():
    text = "so we have. three apples. and we eat one. " * 2

    def second_part(think: str) -> str:
        parts = policy(70, carried_tokens=1).fit(rendered(row_of(think)))
        assert len(parts) > 1
        last = tokenizer().decode(parts[0].ids.tolist())
        return last[-12:]

    assert second_part(text + "so we\n\n" + text + text).endswith("so we\n\n")
    assert second_part(text + "so we\n" + text + text).endswith("so we\n")
    assert second_part(text + text).endswith(".")


def test_what_has_no_boundary_or_no_room_for_its_answer_is_left_out_and_counted():
    split = policy(48)
    endless = rendered(row_of("so" * 200))
    long_answer = rendered(row_of("so. " * 9, answer="we have three apples " * 20))
    long_question = rendered(row_of("so. " * 60, question="we have apples " * 30))
    no_reasoning = rendered(row_of("", answer="we have three apples. " * 20))
    report = LengthReport()
    for row in (endless, long_answer, long_question, no_reasoning):
        parts, report = split.fit_counted(row, report)
        assert parts == []
    short, long = rendered(row_of("so.")), rendered(row_of("so we have one. " * 30))
    for row in (short, long):
        parts, report = split.fit_counted(row, report)
    assert (report.rows, report.rows_left_out, report.rows_split) == (6, 4, 1)
    assert report.parts == len(parts) > 1
    lost = [endless, long_answer, long_question, no_reasoning]
    assert report.tokens_left_out == sum(len(row.ids) for row in lost)
    assert report.loss == report.tokens_left_out / report.tokens
    assert policy(48, policy="drop").fit(long) == []
    assert policy(48, policy="drop").fit(short) == [short]


def test_a_plain_text_is_cut_and_every_token_but_the_first_is_predicted_once():
    text = "we have three apples. and eat one.\n\n" * 12
    row = rendered(make(text=text))
    parts = policy(40).fit(row)
    assert len(parts) > 3
    joined = [
        int(token)
        for part in parts
        for token, token_class in zip(part.ids, part.classes, strict=True)
        if token_class != PROMPT
    ]
    assert joined == row.ids.tolist()
    assert all(part.classes[0] == PROMPT for part in parts[1:])
    assert [part.classes[-1] == STOP for part in parts] == [False] * (
        len(parts) - 1
    ) + [True]


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="max_loss=1.5"):
        LongRowsConfig(max_loss=1.5)
    with pytest.raises(ConfigError, match="carried_tokens=0"):
        LongRowsConfig(carried_tokens=0)
