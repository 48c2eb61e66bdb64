# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM: one process hears them, and all stop after the same step."""

import contextlib
import signal
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ring_jax import sharding


class StopRequest:
    """Whether the run was asked to stop."""

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self._is_asked = False
        self._agreed: jax.Array | None = None

    def hear(self, signum: int, frame: object) -> None:
        """Notes a signal; a second one interrupts at once."""
        del signum, frame
        if self._is_asked:
            raise KeyboardInterrupt
        self._is_asked = True

    def is_due(self) -> bool:
        """Tells, the same to all processes, whether to stop after this step.

        With several processes, one small collective a step carries the question, and
        the answer is that of the step before, which the devices have passed: nobody
        waits, and a run stops a step or two after the signal.
        """
        if jax.process_count() == 1:
            return self._is_asked
        before = self._agreed
        asked = sharding.one_per_device(int(self._is_asked), self._mesh)
        self._agreed = _largest(asked)
        return before is not None and bool(before)


@jax.jit
def _largest(asked: jax.Array) -> jax.Array:
    return jnp.max(asked)


@contextlib.contextmanager
def stop_request(mesh: Mesh) -> Iterator[StopRequest]:
    """Turns signals into a request, so that a step is never cut in half."""
    request = StopRequest(mesh)
    previous = {
        number: signal.signal(number, request.hear)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
