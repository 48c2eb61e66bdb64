# SPDX-License-Identifier: Apache-2.0
"""Calls are accepted as the leaderboard's own checker does, on its own items."""

import collections
import copy
import importlib
import importlib.util
import json
import pathlib
import random
import sys
import types

import pytest

from ring_jax.verify import grade

MODELS = "bfcl_eval.constants.model_config"
CONVERTERS = "bfcl_eval.eval_checker.ast_eval.type_convertor"


@pytest.fixture
def checker(monkeypatch):
    """The package's checker, without the clients and parsers that it does not need."""
    plain = types.SimpleNamespace(underscore_to_dot=False)
    models = types.ModuleType(MODELS)
    known = collections.defaultdict(lambda: plain)
    monkeypatch.setattr(models, "MODEL_CONFIG_MAPPING", known, raising=False)
    monkeypatch.setitem(sys.modules, MODELS, models)
    for language in ("java", "js"):
        name = f"{CONVERTERS}.{language}_type_converter"
        module = types.ModuleType(name)
        monkeypatch.setattr(module, f"{language}_type_converter", None, raising=False)
        monkeypatch.setitem(sys.modules, name, module)
    return importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker")


def read(name: str) -> list[dict]:
    spec = importlib.util.find_spec("bfcl_eval")
    assert spec is not None and spec.submodule_search_locations is not None
    path = pathlib.Path(spec.submodule_search_locations[0], "data", name)
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def first(accepted):
    """One value of those that are accepted, all the way down."""
    if isinstance(accepted, dict):
        given = {name: [o for o in of if o != ""] for name, of in accepted.items()}
        return {name: first(of[0]) for name, of in given.items() if of}
    if isinstance(accepted, list):
        return [first(value) for value in accepted]
    return accepted


def other(value):
    if isinstance(value, str):
        return value + "zq"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value + 17 if is_number else value


def spellings(calls, rng):
    """The gold calls and five ways to change them."""
    yield calls
    yield rng.sample(calls, len(calls))
    yield calls[:-1]
    yield [*calls, calls[0]]
    yield [("no_such", calls[0][1]), *calls[1:]]
    place = rng.randrange(len(calls))
    name, arguments = calls[place]
    changed = {key: other(value) for key, value in list(arguments.items())[:1]}
    yield [*calls[:place], (name, arguments | changed), *calls[place + 1 :]]


@pytest.mark.parametrize(
    "category", ["simple_python", "multiple", "parallel", "parallel_multiple"]
)
def test_a_reply_is_accepted_where_the_leaderboard_accepts_it(checker, category):
    functions = {item["id"]: item for item in read(f"BFCL_v4_{category}.json")}
    golds = read(f"possible_answer/BFCL_v4_{category}.json")
    rng, verdicts, differing = random.Random(0), collections.Counter(), set()
    for gold in golds:
        accepted = gold["ground_truth"]
        calls = [pair for call in accepted for pair in first_calls(call)]
        for said in spellings(calls, rng):
            theirs = checker.ast_checker(
                functions[gold["id"]]["function"],
                [{name: copy.deepcopy(arguments)} for name, arguments in said],
                copy.deepcopy(accepted),
                checker.Language.PYTHON,
                category,
                "model",
            )["valid"]
            ours = is_accepted(said, accepted)
            verdicts[theirs] += 1
            if ours != theirs:
                assert ours, f"{gold['id']} refuses {said}"
                differing.add(gold["id"])
    assert min(verdicts[True], verdicts[False]) > len(golds)
    # It takes the type of an argument from the first accepted value, here "", and
    # refuses its own gold answers of two items.
    assert len(differing) == (2 if category == "parallel_multiple" else 0)


def first_calls(call):
    return [(name, first(parameters)) for name, parameters in call.items()]


def is_accepted(said, accepted) -> bool:
    texts = [json.dumps({"name": name, "arguments": given}) for name, given in said]
    reply = "\n".join(f"<tool_call>{text}</tool_call>" for text in texts)
    metadata = {"accepted": accepted}
    return grade(
        verifier="tool_call", reply=reply, answer="", metadata=metadata
    ).is_correct
