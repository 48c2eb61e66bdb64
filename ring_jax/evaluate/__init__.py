# SPDX-License-Identifier: Apache-2.0
"""What the model can: suites of questions, answered freely and graded."""

from ring_jax.evaluate.stage_end import StageEnd as StageEnd
from ring_jax.evaluate.table import score_table as score_table
