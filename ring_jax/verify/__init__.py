# SPDX-License-Identifier: Apache-2.0
"""Is a reply right? Each row names its verifier; all are pure functions of text."""

from ring_jax.verify.grade import Verdict, grade, most_frequent_answer_score

__all__ = ["Verdict", "grade", "most_frequent_answer_score"]
