# SPDX-License-Identifier: Apache-2.0
"""Coding tasks without a judge: programs that agree on inputs become their tests.

Two right programs are seldom the same text, but they print the same. So each sampled
program is run on the inputs of its task, in the jail of the verifier `program`:

1. Inputs on which half of the programs or more do not end well are left out: they
   break the task's own limits, or the task is too hard.
2. Programs agree that give the same on all inputs that are left. More than
   `min_agreement` of all samples must; their outputs are the tests, and the first of
   them is the reply.

A task that has tests of its own keeps them, all of them: an agreement against one of
its outputs turns it away.

Source: programs grouped by what they give on a model's own inputs, as in AlphaCode
(arXiv:2203.07814); agreement as a sign of being right, as in CodeT (arXiv:2207.10397).
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

from ring_jax.config import CodingConfig
from ring_jax.curate.answers import STEP, samples_of
from ring_jax.curate.forms import read_reply
from ring_jax.curate.rows import Rejection, reject
from ring_jax.data.schema import Row
from ring_jax.verify import Sandbox, Trial, is_same_result

VERIFIER = "program"
MAX_INPUT_CHARACTERS = 10_000
_OF_TEST = ("input", "output")
_INPUT = re.compile(r"<input>(.*?)</input>", re.DOTALL)

Outputs = Sequence[str | None]
"""Of a program, one for each input; None where it did not end well."""


def read_inputs(reply: str) -> list[str]:
    """Finds the different inputs below the task in a teacher's reply."""
    below = read_reply(reply).content.rpartition("</problem>")[2]
    texts = [found.strip("\r\n") for found in _INPUT.findall(below)]
    return [
        f"{text}\n"
        for text in dict.fromkeys(texts)
        if text.strip() and len(text) <= MAX_INPUT_CHARACTERS
    ]


def has_tests(row: Row) -> bool:
    """Tells whether a coding task has inputs, on which programs can be compared."""
    tests = row.metadata.get("tests")
    return (
        isinstance(tests, list | tuple)
        and bool(tests)
        and all(isinstance(test, Mapping) for test in tests)
        and all(isinstance(test.get(key), str) for test in tests for key in _OF_TEST)
    )


def keep_agreeing(
    rows: Sequence[Row],
    *,
    sandbox: Sandbox,
    config: CodingConfig,
    min_agreement: float,
) -> list[Row | Rejection]:
    """Keeps tasks whose sampled programs agree, with the outputs as their tests.

    Args:
      rows: with `metadata.samples`, and `metadata.tests`, of which each has an `input`
        and may have an `output`.
      sandbox: runs programs.
      config: of coding tasks.
      min_agreement: share of the samples; more must agree.

    Raises:
      ConfigError: programs cannot be confined on this machine.
    """
    trials = [
        Trial(reply=sample, inputs=_inputs(row), metadata=_running(row))
        for row in rows
        for sample in samples_of(row)
    ]
    outputs = iter(sandbox.outputs(trials))
    return [
        _judge(
            row,
            list(itertools.islice(outputs, len(samples_of(row)))),
            config=config,
            min_agreement=min_agreement,
        )
        for row in rows
    ]


def _inputs(row: Row) -> list[str]:
    return [test["input"] for test in row.metadata["tests"]]


def _running(row: Row) -> Mapping[str, object]:
    names = ("function", "preamble", "seconds")
    return {name: row.metadata[name] for name in names if name in row.metadata}


def _judge(
    row: Row,
    outputs: Sequence[Outputs],
    *,
    config: CodingConfig,
    min_agreement: float,
) -> Row | Rejection:
    tests = row.metadata["tests"]
    has_outputs = all("output" in test for test in tests)
    kept = [
        place
        for place in range(len(tests))
        if has_outputs or 2 * sum(out[place] is None for out in outputs) < len(outputs)
    ]
    if not has_outputs and len(kept) < config.min_inputs:
        detail = (
            f"most programs end well on {len(kept)} of {len(tests)} inputs, not on "
            f"min_inputs={config.min_inputs}"
        )
        return reject(row, step=STEP, reason="few_inputs", detail=detail)
    function = row.metadata.get("function", "")
    results = [[out[place] for place in kept] for out in outputs]
    winners = max(_agreeing(results, function), key=len, default=[])
    if len(winners) <= min_agreement * len(outputs):
        detail = (
            f"{len(winners)} of {len(outputs)} programs agree on all {len(kept)} inputs"
        )
        return reject(row, step=STEP, reason="no_majority", detail=detail)
    agreed = [
        {"input": tests[place]["input"], "output": results[winners[0]][number]}
        for number, place in enumerate(kept)
    ]
    if has_outputs:
        if fault := _against(tests, agreed, function):
            reason = "majority_against_answer"
            return reject(row, step=STEP, reason=reason, detail=fault)
        agreed = tests
    elif _are_same([test["output"] for test in agreed], agreed[0]["output"], function):
        detail = f"on all {len(kept)} inputs the output is {agreed[0]['output']!r:.80}"
        return reject(row, step=STEP, reason="same_output", detail=detail)
    return _with_tests(row, agreed, winners[0], share=len(winners) / len(outputs))


def _agreeing(results: Sequence[Outputs], function: str) -> Iterator[list[int]]:
    """Yields the numbers of programs that give the same, in their order."""
    left = [n for n, result in enumerate(results) if None not in result]
    while left:
        first = results[left[0]]
        same = [
            number
            for number in left
            if all(
                is_same_result(ours or "", theirs or "", function=function)
                for ours, theirs in zip(results[number], first, strict=True)
            )
        ]
        # A value that is not even itself, such as NaN in JSON, agrees with none.
        same = same or [left[0]]
        yield same
        left = [number for number in left if number not in same]


def _against(
    tests: Sequence[Mapping[str, str]],
    agreed: Sequence[Mapping[str, str | None]],
    function: str,
) -> str:
    for number, (own, ours) in enumerate(zip(tests, agreed, strict=True), 1):
        if not is_same_result(ours["output"] or "", own["output"], function=function):
            return (
                f"test {number}: most programs give {ours['output']!r:.80}, not "
                f"{own['output']!r:.80}"
            )
    return ""


def _are_same(outputs: Sequence[str | None], first: str | None, function: str) -> bool:
    return all(
        is_same_result(output or "", first or "", function=function)
        for output in outputs
    )


def _with_tests(
    row: Row,
    tests: Sequence[Mapping[str, str | None]],
    winner: int,
    *,
    share: float,
) -> Row:
    reply = read_reply(samples_of(row)[winner])
    return dataclasses.replace(
        row,
        messages=(*row.messages[:-1], reply),
        answer=row.answer or f"{len(tests)} tests",
        metadata={**row.metadata, "tests": list(tests), "pass_rate": share},
    )
