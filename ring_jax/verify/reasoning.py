# SPDX-License-Identifier: Apache-2.0
"""Reasoning problems, graded by reasoning-gym's own verifier of the task."""

import ast
import functools
import json
from collections.abc import Mapping
from typing import Any

from ring_jax.config import ConfigError

SAFE_TASKS = frozenset(
    """
    base_conversion basic_arithmetic chain_sum decimal_chain_sum fraction_simplification
    gcd gsm_symbolic leg_counting letter_counting number_filtering number_format
    number_sorting prime_factorization products simple_equations spell_backward
    word_sequence_reversal word_sorting
    """.split()  # noqa: SIM905  (a list of this length reads better as text)
)
"""Tasks whose verifier was read, and runs nothing that a reply says. Others
call `eval` on the reply (binary_matrix, spiral_matrix, string_insertion)."""
# Tasks that write a list as Python does; our prompts ask for blanks between the items.
LIST_TASKS = ("number_sorting", "number_filtering")


def is_solved(task: str, reply: str, metadata: Mapping[str, Any]) -> bool:
    """Asks the task's verifier for full marks.

    Args:
      task: name of a reasoning-gym dataset, one of `SAFE_TASKS`.
      reply: the answer alone.
      metadata: of the row; `entry` holds what the verifier reads.

    Raises:
      ConfigError: the task is not one of these, or reasoning-gym is missing.
    """
    if task not in SAFE_TASKS:
        raise ConfigError(
            f"verifier: reasoning task {task!r} must be one of {sorted(SAFE_TASKS)}."
        )
    entry = {"question": "", **metadata["entry"]}
    native = _as_list(reply) if task in LIST_TASKS else reply
    try:
        if task == "number_sorting":
            return _is_sorted_exactly(native, entry)
        return _dataset(task).score_answer(native, entry) >= 1.0
    except (ValueError, TypeError, ArithmeticError, SyntaxError):
        # Some verifiers parse without care; a reply that they cannot read is not right.
        return False


def _as_list(reply: str) -> str:
    return str([] if reply == "none" else reply.replace(",", " ").split())


def _is_sorted_exactly(native: str, entry: dict[str, Any]) -> bool:
    # Its verifier calls `eval` on a gold answer that is not JSON, and a row from a file
    # must not run code; it also forgives a difference of 1, which suits no integer.
    gold = ast.literal_eval(entry["answer"])
    given = ast.literal_eval(native)
    is_exact = [float(number) for number in given] == [float(number) for number in gold]
    json_entry = {**entry, "answer": json.dumps(gold)}
    return is_exact and _dataset("number_sorting").score_answer(native, json_entry) >= 1


@functools.lru_cache
def _dataset(task: str) -> Any:
    try:
        import reasoning_gym
    except ModuleNotFoundError:
        raise ConfigError(
            "verify: reasoning-gym is missing; run pip install 'ring-jax[data]'."
        ) from None
    return reasoning_gym.create_dataset(task, size=1, seed=0)
