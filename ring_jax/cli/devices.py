# SPDX-License-Identifier: Apache-2.0
"""Which devices a command computes on."""

import jax

from ring_jax.config import RunConfig


def use_devices(config: RunConfig) -> None:
    """Makes the CPU show as many devices as the run asks for; accelerators stay theirs.

    Call it before the first array: a backend that runs cannot be divided any more. Of
    several processes, each has the devices that its launcher gave it (XLA_FLAGS).
    """
    if jax.distributed.is_initialized():
        return
    jax.config.update("jax_num_cpu_devices", config.num_devices)
