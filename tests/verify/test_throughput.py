# SPDX-License-Identifier: Apache-2.0
"""Ten thousand answers pass through a few warm workers, and few are held at a time."""

import itertools
import time
from collections.abc import Iterator

import pytest

from ring_jax.verify import Question, Sandbox

NUM_ANSWERS = 10_000


def ask(number: int) -> Question:
    # Every tenth is parsed and compared as an expression.
    unit = r"\pi" if number % 10 == 0 else ""
    gold = number + 8 if number % 3 == 0 else number + 7
    return Question(
        verifier="math",
        reply=rf"So the area is \boxed{{\frac{{{number}}}{{{number + 7}}}{unit}}}.",
        answer=rf"\frac{{{number}}}{{{gold}}}{unit}",
        metadata={},
    )


@pytest.mark.slow
def test_ten_thousand_answers_are_graded_by_warm_workers():
    with Sandbox(
        num_workers=2, timeout_seconds=30.0, max_memory_bytes=4_000_000_000
    ) as sandbox:
        start = time.monotonic()
        answers = sandbox.stream(ask(number) for number in range(1, 1 + NUM_ANSWERS))
        outcomes = [answer.outcome for answer in answers]
        print(f"{NUM_ANSWERS / (time.monotonic() - start):.0f} answers per second")
    assert outcomes == [
        "right" if number % 3 else "wrong" for number in range(1, 1 + NUM_ANSWERS)
    ]


def test_a_stream_without_end_is_graded_with_few_held_at_a_time():
    taken = 0

    def endless() -> Iterator[Question]:
        nonlocal taken
        while True:
            taken += 1
            yield Question(verifier="match", reply="4", answer="4", metadata={})

    with Sandbox(
        num_workers=1, timeout_seconds=30.0, max_memory_bytes=4_000_000_000
    ) as sandbox:
        answers = sandbox.stream(endless())
        found = [answer.outcome for answer in itertools.islice(answers, 100)]
    assert found == ["right"] * 100
    assert taken < 1000
