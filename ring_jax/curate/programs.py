# SPDX-License-Identifier: Apache-2.0
"""Coding tasks with their tests, as TACO, APPS, CodeContests and Codeforces hold them.

A record of the form `program` has

  prompt         the task
  starter_code   what the program must begin with; asked for in the prompt
  completion     a reply, where the set has one
  solutions      else programs of people; the first in Python 3 becomes the reply
  tests, more_tests, generated_tests
                 inputs and outputs, as lists of pairs or a pair of lists

and ends with what the verifier `program` reads: `metadata.tests`, a list of
`{"input": text, "output": text}`. Where a function is called, `metadata.function` names
it, an input is one JSON value a line (its arguments), and the output is JSON.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ring_jax.config import ConfigError

TESTS = ("tests", "more_tests", "generated_tests")
PYTHON3 = 3
"""Of `solutions.language` in CodeContests: 1 is Python 2, 2 is C++, 4 is Java.

Source: https://huggingface.co/datasets/deepmind/code_contests, data fields.
"""


def as_completion(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Makes a record with prompt, completion and `metadata.tests` of a coding task.

    Raises:
      ConfigError: no task, no program to reply with, or tests of no known shape.
    """
    if not isinstance(prompt := fields.get("prompt"), str) or not prompt.strip():
        raise ConfigError(f"{where}: prompt={prompt!r:.80} must be a coding task.")
    if starter := _code(fields.get("starter_code")):
        prompt += f"\n\nBegin with this code:\n\n{_fenced(starter)}"
    own = (*TESTS, "prompt", "starter_code", "solutions", "completion")
    taken = {name: value for name, value in fields.items() if name not in own}
    tests = [
        test
        for name in TESTS
        if fields.get(name)
        for test in _tests(_parsed(fields[name], where, name), where, name)
    ]
    taken["prompt"] = prompt
    taken["completion"] = fields.get("completion") or _reply(fields, where)
    if tests:
        taken["metadata"] = {**taken.get("metadata", {}), "tests": tests}
        taken["answer"] = f"{len(tests)} tests"
        if function := _function(fields, where):
            taken["metadata"]["function"] = function
    return taken


def _function(fields: Mapping[str, Any], where: str) -> str:
    tests = _parsed(fields.get("tests") or [], where, "tests")
    return tests.get("fn_name") or "" if isinstance(tests, Mapping) else ""


def _code(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _fenced(code: str) -> str:
    return f"```python\n{code}\n```"


def _reply(fields: Mapping[str, Any], where: str) -> str:
    solutions = _parsed(fields.get("solutions") or [], where, "solutions")
    if isinstance(solutions, Mapping):
        pairs = zip(solutions["language"], solutions["solution"], strict=True)
        solutions = [code for language, code in pairs if language == PYTHON3]
    programs = [_code(solution) for solution in solutions]
    if not any(programs):
        raise ConfigError(f"{where}: has no solution in Python 3 to reply with.")
    return _fenced(next(filter(None, programs)))


def _parsed(value: Any, where: str, name: str) -> Any:
    """Reads what a column holds; some sets hold JSON as text."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: {name} is not JSON ({error}).") from None
    if not isinstance(value, Mapping | list | tuple):
        raise ConfigError(f"{where}: {name}={value!r:.80} must be a list or an object.")
    return value


def _tests(tests: Any, where: str, name: str) -> Iterator[dict[str, Any]]:
    if isinstance(tests, Mapping):
        inputs = tests.get("inputs", tests.get("input"))
        outputs = tests.get("outputs", tests.get("output"))
        if not _are_paired(inputs, outputs):
            raise ConfigError(f"{where}: {name} has no output for each input.")
        if tests.get("fn_name"):
            yield from _calls(inputs, outputs, where, name)
            return
        for given, expected in zip(inputs, outputs, strict=True):
            yield {"input": _text(given), "output": _text(expected)}
        return
    for test in tests:
        if not isinstance(test, Mapping) or not {"input", "output"} <= set(test):
            raise ConfigError(f"{where}: test {test!r:.80} needs input and output.")
        yield {"input": _text(test["input"]), "output": _text(test["output"])}


def _calls(
    inputs: Sequence[Any], outputs: Sequence[Any], where: str, name: str
) -> Iterator[dict[str, str]]:
    """Writes calls of a function as text: arguments line by line, and the value."""
    if not all(isinstance(arguments, list) for arguments in inputs):
        raise ConfigError(f"{where}: {name} has arguments that are no lists.")
    # APPS wraps values in a list, for some of its sources and then in all tests.
    if all(isinstance(value, list) and len(value) == 1 for value in outputs):
        outputs = [value for (value,) in outputs]
    for arguments, value in zip(inputs, outputs, strict=True):
        given = "\n".join(json.dumps(argument) for argument in arguments)
        yield {"input": given, "output": json.dumps(value)}


def _are_paired(inputs: Any, outputs: Any) -> bool:
    are_lists = isinstance(inputs, Sequence) and isinstance(outputs, Sequence)
    return are_lists and len(inputs) == len(outputs)


def _text(lines: Any) -> str:
    """Joins what some tests hold as a list of lines."""
    if isinstance(lines, list | tuple):
        return "\n".join(map(str, lines))
    return str(lines)
