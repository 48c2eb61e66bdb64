# SPDX-License-Identifier: Apache-2.0
"""Grading with math-verify: how fast, on how many cores, and what decoding keeps.

A part of `python -m benchmarks.generate`. On an accelerator the cores that grade are
free; here both want the same ones, so what decoding keeps is at worst its share of
them, by threads that run at once.
"""

import itertools
import os
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ring_jax.config import VerificationConfig
from ring_jax.verify import Question, Sandbox

TURNS = 3


def measure(decode: Callable[[], float], *, num_answers: int) -> dict[str, Any]:
    """Grades answers, then decodes without and with grading beside it, in turns.

    Args:
      decode: generates for a while; returns tokens/s.
      num_answers: graded at first, without anything beside.

    Returns:
      Answers/s; cores that the workers took; the share of the decoding rate that is
      left while others are graded, and answers/s meanwhile.
    """
    num_workers = len(os.sched_getaffinity(0))
    before, start = _seconds_of_children(), time.perf_counter()
    with open_sandbox(num_workers) as sandbox:
        outcomes = [answer.outcome for answer in sandbox.stream(ask(num_answers))]
        seconds = time.perf_counter() - start
    cores = (_seconds_of_children() - before) / seconds
    expected = ["right" if number % 3 else "wrong" for number in range(num_answers)]
    assert outcomes == expected, "math-verify's verdicts are not what they should be"
    alone, beside, graded = [], [], []
    for _ in range(TURNS):
        alone.append(decode())
        with GradingBeside(num_workers) as grading:
            beside.append(decode())
        graded.append(grading.answers_per_second)
    return {
        "grading_answers": num_answers,
        "grading_answers_per_second": round(num_answers / seconds, 1),
        "grading_workers": num_workers,
        "grading_cores": round(cores, 2),
        "grading_decode_share": round(
            statistics.median(beside) / statistics.median(alone), 3
        ),
        "grading_answers_per_second_beside": round(statistics.median(graded), 1),
    }


def ask(num_answers: int | None) -> Iterator[Question]:
    """Asks about fractions: every third is wrong, every tenth an expression."""
    for number in itertools.count() if num_answers is None else range(num_answers):
        unit = r"\pi" if number % 10 == 0 else ""
        gold = number + 7 if number % 3 else number + 8
        yield Question(
            verifier="math",
            reply=rf"The area is \boxed{{\frac{{{number + 1}}}{{{number + 7}}}{unit}}}",
            answer=rf"\frac{{{number + 1}}}{{{gold}}}{unit}",
            metadata={},
        )


def open_sandbox(num_workers: int) -> Sandbox:
    """Opens a sandbox with the limits that an evaluation has by default."""
    limits = VerificationConfig()
    return Sandbox(
        num_workers=num_workers,
        timeout_seconds=limits.timeout_seconds,
        max_memory_bytes=limits.max_memory_bytes,
    )


class GradingBeside:
    """Grades without end on a thread, from when its workers are ready."""

    def __init__(self, num_workers: int):
        self.answers_per_second = 0.0
        self._num_workers = num_workers
        self._is_ready, self._is_over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._grade)

    def __enter__(self) -> "GradingBeside":
        self._thread.start()
        self._is_ready.wait()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _grade(self) -> None:
        with open_sandbox(self._num_workers) as sandbox:
            answers = sandbox.stream(ask(None))
            next(answers)
            self._is_ready.set()
            start = time.perf_counter()
            num_answers = 0
            while not self._is_over.is_set():
                next(answers)
                num_answers += 1
            self.answers_per_second = num_answers / (time.perf_counter() - start)


def _seconds_of_children() -> float:
    """Returns the CPU seconds of the processes that were started and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
