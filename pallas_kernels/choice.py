# SPDX-License-Identifier: Apache-2.0
"""Says which implementation of an operation runs, so that none is taken silently."""

import functools
import logging

import jax

LOGGER = logging.getLogger("pallas_kernels")


def log_choice(operation: str, implementation: str) -> None:
    """Logs, once a process, what an operation's program is made of."""
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    log_once(f"{operation}: {implementation} on {device.device_kind}")


@functools.cache
def log_once(message: str) -> None:
    """Logs what a process needs to be told only once."""
    LOGGER.info(message)
