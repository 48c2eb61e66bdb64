# SPDX-License-Identifier: Apache-2.0
"""T-Eval's scorers, as OpenCompass' evaluators count."""

import pytest

from ring_jax.config import ConfigError
from ring_jax.verify import grade, teval

TRUTH = {"action": "Map.route", "args": {"start": "A", "km": 3, "tags": ["x"]}}
JSON = {
    "kind": "instruct",
    "form": "json",
    "truth": TRUTH,
    "template": {"thought": "thought", "action": "name", "args": "args"},
}
STRING = JSON | {
    "form": "string",
    "template": {
        "thought_start": "Thought:",
        "thought_end": "\n",
        "action_start": "Action:",
        "action_end": "\n",
        "args_start": "Args:",
        "args_end": "",
    },
}
RETRIEVE = {"kind": "retrieve", "form": "str", "truth": {"name": "Map.route"}}
REVIEW = {"kind": "review", "form": "str", "truth": {"answer": "C"}}
ARGUMENTS = '{"start": "A", "km": 3, "tags": ["x"]}'


def in_json(name="Map.route", arguments=ARGUMENTS):
    return f'{{"thought": "go", "name": "{name}", "args": {arguments}}}'


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        (in_json(), 1),
        (f"```json\n{in_json()}\n```", 1),
        (in_json().replace('"', "'"), 1),
        (f"<think>hm</think>{in_json()}", 1),
        (in_json(name="Map.find"), 3 / 4),
        (in_json(arguments='{"start": "A", "km": 4, "tags": ["x"]}'), 3 / 4),
        (in_json(arguments='{"start": "A"}'), 2 / 4),
        (in_json(arguments="[1]"), 1 / 4),
        (in_json(name="no", arguments="{}"), 0),
        (f'{{"name": "Map.route", "args": {ARGUMENTS}}}', 0),
        (f"Sure: {in_json()}", 0),
        ("Map.route", 0),
        ("[" * 50_000, 0),
        ("{" * 50_000, 0),
    ],
)
def test_a_call_in_json_is_scored_by_its_exact_parts(reply, score):
    assert teval.score(reply, JSON) == score


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        (f"Thought: go\nAction: Map.route\nArgs: {ARGUMENTS}", 1),
        (f"Well.\nThought: go\nAction:Map.route\nArgs:\n{ARGUMENTS}\n", 1),
        (f"Thought: go\nAction: Map.find\nArgs: {ARGUMENTS}", 3 / 4),
        ("Thought: go\nAction: Map.route\nArgs: start=A", 1 / 4),
        ("Thought: go\nAction: Map.route\nArgs: __import__('os').getcwd()", 1 / 4),
        (f"Action: Map.route\nArgs: {ARGUMENTS}", 0),
        ("Thought: go\nAction: Map.route", 0),
    ],
)
def test_a_call_in_text_is_scored_between_its_marks(reply, score):
    assert teval.score(reply, STRING) == score


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Map.route", 1),
        ("I would use Map.route", 1),
        ("Map.route or Map.find", 0),
        ("Map.route, FinishAction", 0),
        ("route", 0),
        ("a" * 100_000, 0),
    ],
)
def test_a_retrieved_tool_is_the_only_one_that_is_named(reply, score):
    assert teval.score(reply, RETRIEVE) == score


@pytest.mark.parametrize(
    ("reply", "score"), [("C", 1), ("Answer: C. It is", 1), ("A", 0), ("the C", 0)]
)
def test_a_review_is_a_letter(reply, score):
    assert teval.score(reply, REVIEW) == score


def test_only_full_marks_are_right():
    for reply, is_right in ((in_json(), True), (in_json(name="Map.find"), False)):
        verdict = grade(verifier="teval", reply=reply, answer="", metadata=JSON)
        assert verdict.is_correct == is_right


def test_a_kind_without_scorer_is_an_error():
    with pytest.raises(ConfigError, match="'plan' must be"):
        teval.score("x", {"kind": "plan", "truth": {}})
