# SPDX-License-Identifier: Apache-2.0
"""TPU slices by the names that people type, and what each cloud interface calls them.

Sources: Google Cloud's pages on TPU configurations and TPU software versions; for GKE's
labels and machine types the table of xpk (`system_characteristics.py`, June 2026).
"""

import dataclasses
import math


class UnknownNameError(ValueError):
    """A name that no table has; the message says which there are."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """One chip generation and the slices that it is rented in."""

    name: str
    """What people type, and the name of its preset of compiler flags."""
    cores_per_chip: int
    """As its slices are counted: v5p-64 has 32 chips, v6e-64 has 64."""
    topologies: tuple[str, ...]
    gke_accelerator: str
    gke_machine: str
    """Of four chips."""
    tpu_vm_prefix: str | None
    """The prefix of gcloud's accelerator type; None: only GKE rents it."""
    runtime_version: str | None
    """The image of a TPU VM."""


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    *("8x8x16", "8x16x16"),
)

GENERATIONS = {
    generation.name: generation
    for generation in (
        Generation(
            "v5e",
            cores_per_chip=1,
            topologies=_FLAT,
            gke_accelerator="tpu-v5-lite-podslice",
            gke_machine="ct5lp-hightpu-4t",
            tpu_vm_prefix="v5litepod",
            runtime_version="v2-alpha-tpuv5-lite",
        ),
        Generation(
            "v5p",
            cores_per_chip=2,
            topologies=(*_CUBES, "16x16x16", "16x16x24"),
            gke_accelerator="tpu-v5p-slice",
            gke_machine="ct5p-hightpu-4t",
            tpu_vm_prefix="v5p",
            runtime_version="v2-alpha-tpuv5",
        ),
        Generation(
            "v6e",
            cores_per_chip=1,
            topologies=_FLAT,
            gke_accelerator="tpu-v6e-slice",
            gke_machine="ct6e-standard-4t",
            tpu_vm_prefix="v6e",
            runtime_version="v2-alpha-tpuv6e",
        ),
        Generation(
            "tpu7x",
            cores_per_chip=2,
            topologies=_CUBES,
            gke_accelerator="tpu7x",
            gke_machine="tpu7x-standard-4t",
            tpu_vm_prefix=None,
            runtime_version=None,
        ),
    )
}

_ALIASES = {"v5litepod": "v5e"}
_CHIPS_PER_HOST = 4


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice of one generation, in the shape that its size has by default."""

    generation: Generation
    topology: str

    @property
    def num_chips(self) -> int:
        """The product of the topology."""
        return math.prod(int(size) for size in self.topology.split("x"))

    @property
    def num_hosts(self) -> int:
        """Machines of four chips, as GKE's node pools have them."""
        return self.num_chips // _CHIPS_PER_HOST

    @property
    def name(self) -> str:
        """As people type it."""
        return f"{self.generation.name}-{self._size}"

    @property
    def tpu_vm_type(self) -> str | None:
        """What gcloud calls it; None: only GKE rents it."""
        prefix = self.generation.tpu_vm_prefix
        return None if prefix is None else f"{prefix}-{self._size}"

    @property
    def _size(self) -> int:
        return self.num_chips * self.generation.cores_per_chip


def find_slice(name: str) -> Slice:
    """Returns the slice of a name such as v5p-64, v6e-256 or v5litepod-256.

    Raises:
      UnknownNameError: no such generation, or it is not rented in that size.
    """
    prefix, _, size = name.partition("-")
    generation = GENERATIONS.get(_ALIASES.get(prefix, prefix))
    if generation is None:
        raise UnknownNameError(
            f"--type={name} is of no known TPU generation; they are "
            f"{', '.join(GENERATIONS)}, as in v5p-64."
        )
    slices = [Slice(generation, topology) for topology in generation.topologies]
    for candidate in slices:
        if size == candidate.name.partition("-")[2]:
            return candidate
    names = ", ".join(candidate.name for candidate in slices)
    raise UnknownNameError(
        f"--type={name} is not a size that {generation.name} is rented in; "
        f"take one of {names}."
    )
