# SPDX-License-Identifier: Apache-2.0
"""Settings of the processes that verify answers."""

import dataclasses
from typing import Literal

from ring_jax.config.errors import require_above, require_at_least


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class VerificationConfig:
    """Grading of replies by the verifiers that rows name, in processes of their own."""

    check: Literal["drop", "keep"] = "drop"
    without_verifier: Literal["drop", "keep"] = "keep"
    """Rows that name no verifier."""
    num_workers: int = 2
    timeout_seconds: float = 10.0
    """Of one row; the worker is killed with all that it started."""
    max_memory_bytes: int = 4_000_000_000
    """Address space of one worker."""

    def __post_init__(self):
        require_at_least(self, 1, "num_workers", "max_memory_bytes")
        require_above(self, 0, "timeout_seconds")
