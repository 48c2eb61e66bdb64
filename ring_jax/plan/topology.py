# SPDX-License-Identifier: Apache-2.0
"""Pods that need not be there: their names, their devices for the compiler.

The names are those of `ring_jax.cluster`; the devices come from libtpu, which compiles
for any topology that it knows, on a machine without an accelerator.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from pallas_kernels.hardware import TPUS, Tpu
from pallas_kernels.schedule import CHIPS
from ring_jax.cluster import GENERATIONS, Slice, UnknownNameError, find_slice
from ring_jax.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Pod:
    """Slices of one kind of TPU, joined over the data centre's network."""

    chip: str
    """A generation of `ring_jax.cluster`: v5e, v5p, v6e or tpu7x."""
    topology: str
    """Of one slice, in chips: 4x4x2."""
    num_slices: int = 1

    @property
    def name(self) -> str:
        """As `--topology` and `--slices` say it: v5p:4x4x2, 2 x v5e:16x16."""
        prefix = "" if self.num_slices == 1 else f"{self.num_slices} x "
        return f"{prefix}{self.chip}:{self.topology}"

    @property
    def num_chips(self) -> int:
        """Of all slices."""
        return self.num_slices * math.prod(_sizes(self.topology))

    @property
    def num_devices(self) -> int:
        """As jax counts them: a chip of two cores is one device, but two on tpu7x."""
        generation = GENERATIONS[self.chip]
        return self.num_chips * generation.cores_per_chip // self.tpu.num_cores

    @property
    def devices_per_chip(self) -> int:
        """Two on tpu7x, whose cores jax counts alone."""
        return self.num_devices // self.num_chips

    @property
    def tpu(self) -> Tpu:
        """What one device has."""
        return TPUS[CHIPS[self.chip].device_kind]


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a device is."""

    slice: int
    x: int
    y: int
    z: int
    core: int
    """Of the chip."""


def find_pod(name: str, *, num_slices: int = 1) -> Pod:
    """Returns the pod of a name such as v5p:4x4x4, or of an accelerator's: v5p-128.

    Raises:
      ConfigError: no such generation, or not in that size; the nearest names are told.
    """
    if num_slices < 1:
        raise ConfigError(f"--slices={num_slices} must be at least 1.")
    chip, colon, topology = name.partition(":")
    if not colon:
        try:
            found = find_slice(name)
        except UnknownNameError:
            raise ConfigError(_unknown(name)) from None
        return Pod(found.generation.name, found.topology, num_slices)
    if chip not in GENERATIONS or not _is_possible(chip, topology):
        raise ConfigError(_unknown(name))
    return Pod(chip, topology, num_slices)


def _is_possible(chip: str, topology: str) -> bool:
    """Whether a slice can have the shape; libtpu would take larger ones than exist.

    Hosts are 2x2 chips, but for a single one, and a pod is the largest slice.
    """
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", topology):
        return False
    sizes, pod = _sizes(topology), _sizes(GENERATIONS[chip].topologies[-1])
    whole_hosts = all(size % 2 == 0 for size in sizes[:2]) or math.prod(sizes) == 1
    return (
        len(sizes) == len(pod)
        and whole_hosts
        and all(size <= most for size, most in zip(sorted(sizes), pod, strict=True))
    )


def _sizes(topology: str) -> list[int]:
    return [int(size) for size in topology.split("x")]


def _unknown(name: str) -> str:
    slices = [
        Slice(generation, topology)
        for generation in GENERATIONS.values()
        for topology in generation.topologies
    ]
    names = [found.name for found in slices]
    if ":" in name:
        names = [f"{found.generation.name}:{found.topology}" for found in slices]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
    return f"--topology={name} is no TPU slice; near it are {', '.join(near)}."


def pod_devices(pod: Pod) -> Sequence[Any]:
    """Returns the devices of a pod that is not there; loads libtpu.

    Raises:
      ConfigError: libtpu knows no such topology.
    """
    slices = {"num_slices": pod.num_slices} if pod.num_slices > 1 else {}
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{pod.chip}:{pod.topology}", **slices
        ).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition("\n")[0][:200]
        raise ConfigError(f"--topology={pod.name}: libtpu refuses: {reason}") from None


def position(device: Any) -> Position:
    """Returns where a TPU device is; a lone slice is number 0."""
    # Only devices of several slices know their slice.
    number = getattr(device, "slice_index", 0) or 0
    x, y, z = device.coords
    return Position(number, x, y, z, device.core_on_chip)
