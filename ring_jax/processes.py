# SPDX-License-Identifier: Apache-2.0
"""What the processes of one run must decide alike, or leave to the first of them.

Files of a run are written by the first process; every array belongs to all. What one
process alone can see (a file, a signal) may steer a collective only after it was agreed
on, or the others wait for ever. All processes call each function here, in one order.
"""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_first() -> bool:
    """Tells whether this process writes the run's files and speaks to the user."""
    return jax.process_index() == 0


def from_first(value: int) -> int:
    """Returns what the first process gave, to all."""
    return int(multihost_utils.broadcast_one_to_all(np.asarray(value, np.int32)))


def json_from_first(value: Any) -> Any:
    """Returns the JSON value that the first process gave, to all."""
    if jax.process_count() == 1:
        return value
    text = json.dumps(value if is_first() else None).encode()
    words = np.zeros(from_first(len(text)), np.uint8)
    if is_first():
        words[:] = np.frombuffer(text, np.uint8)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(words)))


def any_has(flag: bool) -> bool:
    """Returns whether the flag is set in at least one process, to all."""
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def have_same(data: bytes) -> bool:
    """Returns whether all processes gave the same bytes; their length must agree."""
    words = np.frombuffer(data, np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(words))
    return bool(np.all(gathered.reshape(-1, words.size) == words))


def meet(name: str) -> None:
    """Waits until all processes have come to the place of this name."""
    multihost_utils.sync_global_devices(name)
