# SPDX-License-Identifier: Apache-2.0
"""Programs, judged by their tests; they run in a jail and nowhere else.

Three kinds of tests, by the keys of a row's metadata:

- `tests`: a list of `input` and `output`, as of APPS, TACO and CodeContests. The
  program reads standard input and prints.
- `tests` and `function`: as of LiveCodeBench and LeetCode. An input holds
  one JSON value a line, the arguments; the output is the JSON of what the function (or
  the method of a class `Solution`) returns.
- `check`: Python that runs behind the program, as of MBPP; with `function` it defines
  `check(candidate)`, as of HumanEval.

`seconds` limits one test (6 by default), `preamble` is Python in front of the program.

Outputs are compared outside of the jail. A `check` runs in the program's own process: a
program that is written to cheat can make it succeed, but not by ending early.
"""

import atexit
import decimal
import functools
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from ring_jax.config import ConfigError
from ring_jax.jail import Cell, Finished, Jail, JailError, JailLostError, check_jail
from ring_jax.verify.final_answer import without_reasoning

SECONDS = 6.0
"""Of one test, where the row says nothing; that of LiveCodeBench."""
MAX_CHARACTERS = 1_000_000
"""Of a program; more is none."""
MAX_OUTPUT_CHARACTERS = 10_000
"""Of what a program prints on an input of `run_on`; more is no test."""

_FENCED = re.compile(r"^ *```[ \t]*([\w+-]*)[^\n]*\n(.*?)^ *```", re.DOTALL | re.M)
_PYTHON = ("python", "python3", "py", "")

# What solutions for LeetCode take for granted.
_LEETCODE = """\
import bisect, collections, functools, heapq, itertools, math, operator, random, re
import string, sys
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from typing import *
"""
# Both answer on a descriptor of their own: what the program prints is no answer.
_BEGIN = """\
import json, os, sys, types
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
sys.setrecursionlimit(50000)
module = sys.modules["program"] = types.ModuleType("program")
names = module.__dict__
source = open("/program/program.py", encoding="utf-8").read()
exec(compile(source, "program.py", "exec"), names)
request = json.load(sys.stdin)
"""
_END = """
answers.flush()
os._exit(0)
"""
_CALL = f"""{_BEGIN}
name = request["function"]
function = names[name] if name in names else getattr(names["Solution"](), name)
json.dump(function(*request["arguments"]), answers, default=list)
{_END}"""
_CHECK = f"""{_BEGIN}
exec(compile(request["check"], "check.py", "exec"), names)
if request["function"]:
    names["check"](names[request["function"]])
answers.write(request["password"])
{_END}"""


def first_failure(reply: str, answer: str, metadata: Mapping[str, Any]) -> str:
    """Runs the last fenced Python block of a reply against the row's tests.

    Returns:
      Why the program is not right, in one line; empty where it passes every test.

    Raises:
      ConfigError: programs cannot be confined on this machine.
      JailLostError: the jail's own processes were ended.
      LookupError, TypeError: the row's tests are not of the form above.
    """
    del answer  # one program of many
    program = _program_of(reply)
    if not program:
        return f"the reply holds no program of up to {MAX_CHARACTERS} characters"
    jail = proven_jail()
    try:
        return _first_failure(jail, program, metadata)
    except JailLostError:
        raise
    except JailError as error:
        # Confinement was proven: this program, or the machine, ended its keeper.
        return f"the program was not run to its end: {error}"


def run_on(
    reply: str, inputs: Sequence[str], metadata: Mapping[str, Any]
) -> list[str | None]:
    """Runs the program of a reply on inputs, as on those of `tests`.

    Returns:
      What it printed, or the JSON of what its function returned, of each input; None
      where it did not end well, or with more than `MAX_OUTPUT_CHARACTERS`.

    Raises:
      ConfigError, JailLostError, LookupError, TypeError: as `first_failure`.
    """
    program = _program_of(reply)
    if not program:
        return [None] * len(inputs)
    function, seconds = metadata.get("function", ""), _seconds(metadata)
    printed: list[str | None] = []
    with proven_jail().open_cell(_files(program, metadata)) as cell:
        for given in inputs:
            found = _run(cell, given, function, seconds)
            is_short = len(found.stdout) <= MAX_OUTPUT_CHARACTERS
            is_good = is_short and not _bad_end(found, seconds)
            printed.append(found.stdout if is_good else None)
    return printed


def _program_of(reply: str) -> str:
    program = extract_program(reply)
    return program if len(program) <= MAX_CHARACTERS else ""


def extract_program(reply: str) -> str:
    """Returns the last fenced block of Python, or all of a reply without fences."""
    text = without_reasoning(reply)
    blocks = _FENCED.findall(text)
    if not blocks:
        return "" if "```" in text else text.strip()
    known = [code for language, code in blocks if language.lower() in _PYTHON]
    return known[-1].strip() if known else ""


@functools.cache
def start_jail() -> Jail:
    """Starts the processes of this process's jail, before its rights are taken away."""
    jail = Jail()
    atexit.register(jail.close)
    return jail


@functools.cache
def proven_jail() -> Jail:
    """Returns the jail of this process after a probe has tried to break out of it.

    Raises:
      ConfigError: programs cannot be confined on this machine.
    """
    try:
        check_jail(start_jail())
    except JailError as error:
        raise _refusal(error) from None
    return start_jail()


def _refusal(error: JailError) -> ConfigError:
    return ConfigError(
        f"verifier 'program': programs cannot be confined here ({error}), so none is "
        "run. Allow user namespaces (Linux 5.14 or later; user.max_user_namespaces "
        "above 0, no seccomp or AppArmor profile against unshare), or keep rows with "
        "programs out."
    )


def _first_failure(jail: Jail, program: str, metadata: Mapping[str, Any]) -> str:
    function, seconds = metadata.get("function", ""), _seconds(metadata)
    if "check" in metadata:
        preamble = metadata.get("preamble", "")
        files = {"program.py": f"{preamble}\n{program}\n", "check.py": _CHECK}
        with jail.open_cell(files) as cell:
            return _failed_check(cell, metadata["check"], function, seconds)
    tests: Sequence[Mapping[str, str]] = metadata["tests"]
    if not tests:
        raise LookupError("tests is empty")
    with jail.open_cell(_files(program, metadata)) as cell:
        for number, test in enumerate(tests, 1):
            if failure := _failed_test(cell, test, function, seconds):
                return f"test {number} of {len(tests)}: {failure}"
    return ""


def _seconds(metadata: Mapping[str, Any]) -> float:
    return float(metadata.get("seconds", SECONDS))


def _files(program: str, metadata: Mapping[str, Any]) -> dict[str, str]:
    taken = _LEETCODE if metadata.get("function") else ""
    preamble = metadata.get("preamble", "")
    return {"program.py": f"{taken}{preamble}\n{program}\n", "call.py": _CALL}


def _failed_test(
    cell: Cell, test: Mapping[str, str], function: str, seconds: float
) -> str:
    found = _run(cell, test["input"], function, seconds)
    if failure := _bad_end(found, seconds):
        return failure
    if is_same_result(found.stdout, test["output"], function=function):
        return ""
    done = "returned" if function else "printed"
    return f"it {done} {_short(found.stdout)}, not {_short(test['output'])}"


def _run(cell: Cell, given: str, function: str, seconds: float) -> Finished:
    if not function:
        return cell.run(["/program/program.py"], stdin=given, seconds=seconds)
    lines = filter(None, map(str.strip, given.splitlines()))
    request = {"function": function, "arguments": [json.loads(line) for line in lines]}
    return cell.run(["/program/call.py"], stdin=json.dumps(request), seconds=seconds)


def _failed_check(cell: Cell, check: str, function: str, seconds: float) -> str:
    password = secrets.token_hex()
    request = {"check": check, "function": function, "password": password}
    found = cell.run(["/program/check.py"], stdin=json.dumps(request), seconds=seconds)
    if failure := _bad_end(found, seconds):
        return failure
    return "" if found.stdout == password else "it ended before its check did"


def _bad_end(found: Finished, seconds: float) -> str:
    if found.is_late:
        return f"no end after {seconds:g} seconds"
    if found.exit_status:
        said = found.stderr.strip().splitlines() or [""]
        return f"exit status {found.exit_status}, {said[-1][:200]!r}"
    return ""


def _short(text: str) -> str:
    return repr(text if len(text) < 80 else text[:77] + "...")


def is_same_result(found: str, expected: str, *, function: str) -> bool:
    """Compares what programs printed, or the JSON of what a function returned."""
    if not function:
        return is_same_output(found, expected)
    try:
        return json.loads(found) == json.loads(expected)
    except (ValueError, RecursionError):
        return False


def is_same_output(printed: str, expected: str) -> bool:
    """Compares line by line, blanks at the ends aside, and numbers by value.

    Source: the comparison of LiveCodeBench's standard-input problems.
    """
    ours = [line.strip() for line in printed.strip().splitlines()]
    theirs = [line.strip() for line in expected.strip().splitlines()]
    return len(ours) == len(theirs) and all(map(_is_same_line, ours, theirs))


def _is_same_line(ours: str, theirs: str) -> bool:
    if ours == theirs:
        return True
    try:
        numbers = [
            [decimal.Decimal(w) for w in line.split()] for line in (ours, theirs)
        ]
    except decimal.InvalidOperation:
        return False
    return numbers[0] == numbers[1]
