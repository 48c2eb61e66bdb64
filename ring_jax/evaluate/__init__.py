# SPDX-License-Identifier: Apache-2.0
"""What it can."""

from ring_jax.evaluate.panel import Panel as Panel
from ring_jax.evaluate.panel import grade_item as grade_item
from ring_jax.evaluate.table import panel_table as panel_table
