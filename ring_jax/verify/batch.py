# SPDX-License-Identifier: Apache-2.0
"""Grading of replies of which few need a sandbox."""

from collections.abc import Sequence

from ring_jax.config import VerificationConfig
from ring_jax.verify.grade import ISOLATED, grade
from ring_jax.verify.sandbox import Answer, Question, Sandbox


def grade_all(
    questions: Sequence[Question], *, config: VerificationConfig
) -> list[Answer]:
    """Grades here what always comes to an end, and the rest in a sandbox.

    Starting a sandbox's workers takes seconds, which most questions can spare.

    Raises:
      ConfigError: a verifier is unknown or cannot work here.
    """
    isolated = [question for question in questions if question.verifier in ISOLATED]
    with Sandbox(
        num_workers=config.num_workers,
        timeout_seconds=config.timeout_seconds,
        max_memory_bytes=config.max_memory_bytes,
    ) as sandbox:
        answers = sandbox.stream(isolated)
        return [
            next(answers) if question.verifier in ISOLATED else _grade_here(question)
            for question in questions
        ]


def _grade_here(question: Question) -> Answer:
    verdict = grade(
        verifier=question.verifier,
        reply=question.reply,
        answer=question.answer,
        metadata=question.metadata,
    )
    return Answer("right" if verdict.is_correct else "wrong", verdict.detail)
