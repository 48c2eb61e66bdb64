# SPDX-License-Identifier: Apache-2.0
"""No evaluation item comes through, however it is dressed; templates do not count."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring_jax.config import ConfigError, ContaminationConfig, RawSourceConfig
from ring_jax.curate.contamination import (
    EvaluationSet,
    find_contamination,
    index_of,
    read_evaluation_set,
)
from ring_jax.curate.rows import Rejection
from ring_jax.data.schema import Message, Row

LONG = (
    "Let a and b be positive integers such that ab + 1 divides a squared plus b "
    "squared; show that the quotient is a perfect square."
)
SHORT = "Find the remainder of 7^100 divided by 13."
TINY = "2 + 3"
ITEMS = [("1", LONG), ("2", SHORT), ("3", TINY)]


def make_row(prompt: str, reply: str = "Yes, indeed.") -> Row:
    return Row(
        id="r",
        messages=(Message("user", prompt), Message("assistant", reply)),
        source="s",
        domain="d",
        licence="MIT",
        package="p==1",
    )


def is_found(row: Row, items=ITEMS, **settings) -> bool:
    known = EvaluationSet(name="exam", files=(), items=items)
    index = index_of([known], config=ContaminationConfig(**settings))
    (result,) = find_contamination([row], index=index)
    return isinstance(result, Rejection)


@pytest.mark.parametrize(
    "row",
    [
        make_row(LONG),
        make_row(f"Solve:\n\n{LONG.upper()}!!"),
        make_row("What is it?", f"My homework was: {LONG.replace(' ', chr(10))}"),
        make_row("Part (b). " + " ".join(LONG.split()[3:])),
        make_row(f"Quick one: {SHORT} Thanks."),
        make_row("  2  + 3 "),
    ],
)
def test_an_item_is_found(row):
    assert is_found(row)


@pytest.mark.parametrize(
    "row",
    [
        make_row("Let a and b be positive integers such that ab is even."),
        make_row("Find the remainder of 7^100 divided by 11."),
        make_row("2 - 3"),
        make_row("What is 2 + 3?"),
        make_row("12 + 3"),
    ],
)
def test_another_question_is_not(row):
    assert not is_found(row)


def test_the_wording_of_a_template_is_not_contamination_but_its_items_are():
    story = "Count the legs of all the animals that are standing in the big barn today"
    items = [(str(n), f"{story}: {n} cows and {n + 1} hens.") for n in range(20)]
    assert not is_found(make_row(f"{story}: 50 cows and 2 hens."), items)
    assert is_found(make_row(items[7][1]), items)
    assert is_found(make_row(f"{story}: 50 cows."), items, max_items_per_ngram=20)


@given(st.integers(0, 40), st.integers(0, 40), st.sampled_from(["", " ", "\n", " -- "]))
def test_thirteen_words_in_sequence_are_enough_wherever_they_stand(before, after, mark):
    found = LONG.split()[5:18]
    text = ["one"] * before + [mark.join(["", " ".join(found), ""])] + ["two"] * after
    assert is_found(make_row(" ".join(text)))
    fewer = ["one"] * before + found[:12] + ["two"] * after
    assert not is_found(make_row(" ".join(fewer)))


@pytest.mark.parametrize(
    "record",
    [
        {"problem": LONG, "answer": "1"},
        {"question": LONG},
        {"messages": [{"role": "user", "content": LONG}]},
        {"conversations": [{"from": "human", "value": LONG}]},
        {"prompt": [{"role": "user", "content": LONG}]},
    ],
)
def test_questions_are_found_in_files_of_any_form(tmp_path, record):
    path = tmp_path / "exam.jsonl"
    path.write_text(json.dumps(record) + "\n")
    config = RawSourceConfig(path=str(path), licence="MIT")
    known = read_evaluation_set(config, name="exam", seed=0, max_row_bytes=10_000)
    assert known.items == [("exam.jsonl:1", LONG)]


@pytest.mark.parametrize("line", ['{"solution": "x"}', "{", '{"problem": ""}', "[]"])
def test_an_item_that_cannot_be_read_is_refused(tmp_path, line):
    path = tmp_path / "exam.jsonl"
    path.write_text(line + "\n")
    config = RawSourceConfig(path=str(path), licence="MIT")
    with pytest.raises(ConfigError, match="exam.jsonl:1"):
        read_evaluation_set(config, name="exam", seed=0, max_row_bytes=10_000)
