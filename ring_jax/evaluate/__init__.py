# SPDX-License-Identifier: Apache-2.0
"""What the model can: the held-out panel, free-running and graded."""

from ring_jax.evaluate.panel import Panel as Panel
from ring_jax.evaluate.table import panel_table as panel_table
