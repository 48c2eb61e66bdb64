# SPDX-License-Identifier: Apache-2.0
"""What is minimised."""

from ring_jax.objectives.cross_entropy import (
    linear_cross_entropy as linear_cross_entropy,
)
from ring_jax.objectives.training_loss import LossStats as LossStats
from ring_jax.objectives.training_loss import next_tokens as next_tokens
from ring_jax.objectives.training_loss import training_loss as training_loss
