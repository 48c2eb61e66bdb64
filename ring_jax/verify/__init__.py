# SPDX-License-Identifier: Apache-2.0
"""Is a reply right? Each row names its verifier; all are pure functions of text."""

from ring_jax.verify.final_answer import final_answer, split_reasoning
from ring_jax.verify.grade import (
    COMPARING,
    WHOLE_REPLY,
    Verdict,
    grade,
    most_frequent_answer_score,
)
from ring_jax.verify.match import normalize
from ring_jax.verify.program import is_same_result
from ring_jax.verify.sandbox import Answer, Question, Sandbox, Trial

__all__ = [
    "COMPARING",
    "WHOLE_REPLY",
    "Answer",
    "Question",
    "Sandbox",
    "Trial",
    "Verdict",
    "final_answer",
    "grade",
    "is_same_result",
    "most_frequent_answer_score",
    "normalize",
    "split_reasoning",
]
