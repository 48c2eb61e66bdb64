# SPDX-License-Identifier: Apache-2.0
"""Where code of strangers runs: it sees Python, a scratch folder, and nothing else.

This room needs the standard library only, so that its processes start in milliseconds.
"""

from ring_jax.jail.client import Cell, Finished, Jail, JailError, JailLostError
from ring_jax.jail.probe import check_jail

__all__ = ["Cell", "Finished", "Jail", "JailError", "JailLostError", "check_jail"]
