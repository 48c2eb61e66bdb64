# SPDX-License-Identifier: Apache-2.0
"""Verifiers accept what is right in any form they promise, and nothing else."""

from typing import Any

import pytest

from ring_jax.config import ConfigError
from ring_jax.verify import grade, most_frequent_answer_score, reasoning

CALL = '<tool_call>{"name": "area", "arguments": %s}</tool_call>'
ACCEPTED = [
    {"area": {"base": [10], "unit": ["cm", ""], "deep": [True], "of": [[1, 2]]}}
]
GOOD_ARGUMENTS = '{"base": 10, "deep": true, "of": [1, 2]}'
FORM = {"kind": "form", "count": 2, "separator": ", ", "case": "upper", "ending": "!"}
WORDS = {"kind": "words", "words": ["oak", "oak"]}
CHOICES = {"kind": "choices", "choices": ["red", "blue", "green"], "count": 2}
SORTED: dict[str, Any] = {
    "entry": {
        "answer": "['7.0', '12.0', '30.0']",
        "metadata": {"direction": "ascending"},
    }
}


def is_correct(verifier, reply, *, answer="", **metadata) -> bool:
    return grade(
        verifier=verifier, reply=reply, answer=answer, metadata=metadata
    ).is_correct


@pytest.mark.parametrize("reply", ["Brasília", " brasilia. ", "the Brasilia", "BSB"])
def test_match_forgives_case_accents_and_punctuation(reply):
    assert is_correct("match", reply, answer="Brasília", accepted=["BSB"])


@pytest.mark.parametrize("reply", ["Brasil", "Brasilia, Rio", "", "...", "B S B"])
def test_match_refuses_other_answers(reply):
    assert not is_correct("match", reply, answer="Brasília", accepted=["BSB"])


def test_match_keeps_signs():
    assert not is_correct("match", "5", answer="-5")
    assert is_correct("match", "-5", answer="-5")


@pytest.mark.parametrize(
    ("constraint", "reply"),
    [
        (FORM, "OAK, OAK!"),
        (WORDS, "OAK, OAK!"),
        (CHOICES, "red green"),
        (CHOICES, "Blue, RED"),
    ],
)
def test_a_reply_that_meets_its_constraints_is_right(constraint, reply):
    assert is_correct("constraints", reply, constraints=[constraint])


@pytest.mark.parametrize(
    ("constraint", "reply"),
    [
        (FORM, "oak, OAK!"),
        (FORM, "OAK, OAK"),
        (FORM, "OAK OAK!"),
        (FORM, "OAK!"),
        (FORM, "OAK, OAK, OAK!"),
        (FORM, "OAK, , OAK!"),
        (FORM, "OAK, OAK!!"),
        (WORDS, "oak"),
        (WORDS, "oak elm"),
        (WORDS, "oak oak oak"),
        (CHOICES, "red red"),
        (CHOICES, "red"),
        (CHOICES, "red pink"),
        (CHOICES, "red blue green"),
    ],
)
def test_a_broken_constraint_is_wrong(constraint, reply):
    assert not is_correct("constraints", reply, constraints=[constraint])


def test_all_constraints_must_hold():
    assert is_correct("constraints", "OAK, OAK!", constraints=[WORDS, FORM])
    assert not is_correct("constraints", "OAK, ELM!", constraints=[WORDS, FORM])


@pytest.mark.parametrize(
    "arguments",
    [
        GOOD_ARGUMENTS,
        '{"of": [1, 2], "deep": true, "base": 10}',
        '{"base": 10.0, "unit": "C.M", "deep": true, "of": [1, 2]}',
    ],
)
def test_a_call_is_compared_by_meaning(arguments):
    assert is_correct("tool_call", CALL % arguments, accepted=ACCEPTED)


@pytest.mark.parametrize(
    "reply",
    {
        "wrong value": CALL % GOOD_ARGUMENTS.replace("10", "11"),
        "missing argument": CALL % '{"base": 10}',
        "extra argument": CALL % GOOD_ARGUMENTS.replace("{", '{"x": 1, '),
        "number as text": CALL % GOOD_ARGUMENTS.replace("10", '"10"'),
        "one for true": CALL % GOOD_ARGUMENTS.replace("true", "1"),
        "other function": (CALL % GOOD_ARGUMENTS).replace("area", "sum"),
        "other list": CALL % GOOD_ARGUMENTS.replace("[1, 2]", "[2, 1]"),
        "text beside": "Sure! " + CALL % GOOD_ARGUMENTS,
        "twice": CALL % GOOD_ARGUMENTS * 2,
        "no tags": '{"name": "area", "arguments": {"base": 10}}',
        "not json": CALL % "{base: 10}",
        "no object": CALL % "[]",
        "deep nesting": "<tool_call>" + "[" * 100000 + "</tool_call>",
    }.values(),
)
def test_any_other_call_is_wrong(reply):
    assert not is_correct("tool_call", reply, accepted=ACCEPTED)


@pytest.mark.parametrize("reply", ["7 12 30", "7, 12, 30", "7.0 12 30"])
def test_sorted_numbers_are_read_without_brackets(reply):
    assert is_correct("reasoning_gym/number_sorting", reply, **SORTED)


@pytest.mark.parametrize("reply", ["7 12 31", "7 30 12", "7 12", "x", "7 12 30 30"])
def test_sorted_numbers_must_be_exact(reply):
    # reasoning-gym itself forgives a difference of 1 in each number.
    assert not is_correct("reasoning_gym/number_sorting", reply, **SORTED)


@pytest.mark.parametrize("task", sorted(reasoning.SAFE_TASKS))
@pytest.mark.parametrize(
    "reply", ["x", "[", "'", "1/0", "9" * 5000, "nan", "__import__('os')", "×", "\0"]
)
def test_no_reply_breaks_a_verifier(task, reply):
    entry = {
        "answer": "['5']" if task in reasoning.LIST_TASKS else "5",
        "metadata": {
            "direction": "ascending",
            "sorted_words": ["5"],
            "solution": 5,
            "numerator": 10,
            "denominator": 4,
            "simplified_numerator": 5,
            "simplified_denominator": 2,
        },
    }
    assert not is_correct(f"reasoning_gym/{task}", reply, entry=entry)


def test_a_gold_answer_from_a_file_runs_no_code(tmp_path):
    trap = tmp_path / "trap"
    code = f"[__import__('pathlib').Path({str(trap)!r}).touch()]"
    entry = {"answer": code, "metadata": {"direction": "ascending"}}
    assert not is_correct("reasoning_gym/number_sorting", "7", entry=entry)
    assert not trap.exists()


@pytest.mark.parametrize("verifier", ["", "matches", "reasoning_gym/binary_matrix"])
def test_an_unknown_verifier_is_refused(verifier):
    with pytest.raises(ConfigError, match="must be one of"):
        is_correct(verifier, "5")


def test_most_frequent_answer_score_is_the_share_of_the_mode():
    assert most_frequent_answer_score(["Yes", "yes.", "no", "7"]) == 0.5
    assert most_frequent_answer_score([]) == 0.0


AREA_AND_SUM = [
    {"area": {"base": [10]}},
    {"sum": {"of": [[1, 2]]}},
    {"area": {"base": [10, 11]}},
]


@pytest.mark.parametrize(
    ("order", "is_right"),
    [
        (("area 10", "sum", "area 11"), True),
        (("sum", "area 10", "area 11"), True),
        (("area 11", "area 10", "sum"), True),
        (("area 11", "area 11", "sum"), False),
        (("area 10", "sum"), False),
        (("area 10", "sum", "sum"), False),
        (("area 10", "sum", "area 11", "area 10"), False),
    ],
)
def test_several_calls_may_come_in_any_order_each_for_one_that_is_accepted(
    order, is_right
):
    calls = {
        "area 10": CALL % '{"base": 10}',
        "area 11": CALL % '{"base": 11}',
        "sum": (CALL % '{"of": [1, 2]}').replace("area", "sum"),
    }
    reply = "\n".join(calls[name] for name in order)
    assert is_correct("tool_call", reply, accepted=AREA_AND_SUM) == is_right
