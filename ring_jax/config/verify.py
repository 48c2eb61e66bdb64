# SPDX-License-Identifier: Apache-2.0
"""Settings of the processes that verify answers."""

import dataclasses
from typing import Literal

from ring_jax.config.errors import ConfigError


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
        if self.num_workers < 1 or self.timeout_seconds <= 0:
            raise ConfigError(
                f"num_workers={self.num_workers} must be at least 1 and "
                f"timeout_seconds={self.timeout_seconds} above 0."
            )
