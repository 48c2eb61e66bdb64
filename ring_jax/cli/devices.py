# SPDX-License-Identifier: Apache-2.0
"""Which devices a command computes on, and where their compiled programs are kept."""

import os
import pathlib

import jax

from ring_jax.config import RunConfig

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
"""JAX's own; a run takes it, and an empty one keeps nothing."""
MIN_COMPILE_SECONDS = 2.0
"""Faster programs are not worth a file."""


def use_devices(config: RunConfig) -> None:
    """Makes the CPU show as many devices as the run asks for; accelerators stay theirs.

    Call it before the first array: a backend that runs cannot be divided any more. Of
    several processes, each has the devices that its launcher gave it (XLA_FLAGS).
    """
    keep_compiled_programs()
    if jax.distributed.is_initialized():
        return
    jax.config.update("jax_num_cpu_devices", config.num_devices)


def keep_compiled_programs() -> None:
    """Lets a second start find the programs that the first one compiled.

    JAX's key is the program, the devices, the versions and the compiler's flags. On
    several hosts the first process writes, where the others can read: set
    `JAX_COMPILATION_CACHE_DIR` to a folder that they share.
    """
    if CACHE_VARIABLE in os.environ:
        return
    jax.config.update("jax_compilation_cache_dir", str(default_folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)


def default_folder() -> pathlib.Path:
    """Returns the folder of this user's compiled programs."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "ring_jax" / "compiled"
