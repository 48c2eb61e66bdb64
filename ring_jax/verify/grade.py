# SPDX-License-Identifier: Apache-2.0
"""Grading by the verifier that a row names, and the score of not reading questions."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ring_jax.config import ConfigError
from ring_jax.verify import (
    choice,
    constraints,
    ifbench,
    ifeval,
    match,
    math_answer,
    number,
    program,
    reasoning,
    teval,
    tool_call,
)

REASONING_PREFIX = "reasoning_gym/"
VERIFIERS = {
    "match": match.is_match,
    "number": number.is_number,
    "choice": choice.is_chosen,
    "math": math_answer.is_equal,
    "constraints": constraints.are_met,
    "tool_call": tool_call.is_accepted,
    "teval": teval.is_right,
}
"""Name -> function of reply, answer and metadata; beside `reasoning_gym/<task>`."""
EXPLAINING = {
    "program": program.first_failure,
    "ifbench": ifbench.INSTRUCTIONS.first_failure,
    "ifbench_loose": ifbench.INSTRUCTIONS.first_loose_failure,
    "ifeval": ifeval.INSTRUCTIONS.first_failure,
    "ifeval_loose": ifeval.INSTRUCTIONS.first_loose_failure,
}
"""Name -> function that returns why a reply is wrong, or nothing."""
WHOLE_REPLY = frozenset(
    {"number", "choice", "math", "program", "teval"}
    | {"ifbench", "ifbench_loose", "ifeval", "ifeval_loose"}
)
"""Verifiers that find the answer in a reply by themselves."""
ISOLATED = frozenset({"math", "program"})
"""Verifiers that may take long or for ever; a `Sandbox` limits them."""
COMPARING = frozenset({"number", "choice", "math"})
"""Verifiers that can take the answer of one reply as the gold answer of another."""


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome for one reply."""

    is_correct: bool
    extracted: str
    """What was compared: the reply without white space around it."""
    detail: str = ""
    """Why a reply is wrong, where its verifier can tell."""


def grade(
    *, verifier: str, reply: str, answer: str, metadata: Mapping[str, Any]
) -> Verdict:
    """Grades the answer part of a reply; never raises because of what a reply says.

    Args:
      verifier: as in the row: a name of `VERIFIERS` or `EXPLAINING`, or
        `reasoning_gym/<task>`. those of `ISOLATED` are for a `Sandbox`.
      reply: the generated answer, without reasoning and end token.
      answer: the gold answer of the row.
      metadata: of the row; each verifier reads its own keys.

    Raises:
      ConfigError: there is no such verifier, or it cannot work here.
    """
    extracted = reply.strip()
    if not extracted:
        return Verdict(False, extracted)
    if verifier.startswith(REASONING_PREFIX):
        task = verifier.removeprefix(REASONING_PREFIX)
        return Verdict(reasoning.is_solved(task, extracted, metadata), extracted)
    if verifier in EXPLAINING:
        failure = EXPLAINING[verifier](extracted, answer, metadata)
        return Verdict(not failure, extracted, failure)
    if verifier not in VERIFIERS:
        known = [*VERIFIERS, *EXPLAINING, f"{REASONING_PREFIX}<task>"]
        raise ConfigError(f"verifier={verifier!r} must be one of {known}.")
    return Verdict(VERIFIERS[verifier](extracted, answer, metadata), extracted)


def most_frequent_answer_score(answers: Sequence[str]) -> float:
    """Computes the accuracy of always giving the most frequent gold answer, 0 to 1.

    It is what a model reaches that knows the task's answers and ignores the question.
    """
    if not answers:
        return 0.0
    counts = collections.Counter(match.normalize(answer) for answer in answers)
    return max(counts.values()) / len(answers)
