# SPDX-License-Identifier: Apache-2.0
"""The one chip table: what each device kind has, and which TPU kernels are built for.

Sources: the vendors' product pages (Google Cloud TPU system architecture; NVIDIA H100
and H200 data sheets, dense figures without sparsity); `TpuInfo` of jax for VMEM. Links:
what a chip's page states for all links, both ways, is divided by both; 90 % of that is
what a stream gets (jax-ml's scaling book measures 4.5e10 and 9e10 bytes/s). Data-center
network: "DCN bandwidth per chip" of the same pages; v5e's is its pod's over 256 chips.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator

import jax

PEAK_FLOPS_PER_SECOND = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 1153.5e12,  # a device is one of a chip's two cores
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}
"""`jax.Device.device_kind` -> FLOP/s of one device, as jax counts devices."""


def peak_flops_per_second(device_kind: str) -> float | None:
    """Returns the dense bfloat16 peak of a device kind; None: it is not known."""
    return PEAK_FLOPS_PER_SECOND.get(device_kind)


@dataclasses.dataclass(frozen=True)
class Tpu:
    """What a kernel must know of a chip."""

    name: str
    num_cores: int
    """TensorCores that one jax device has."""
    vmem_bytes: int
    """Of one core."""
    clock_hz: float
    hbm_bytes: int
    """What the compiler lets a program of one jax device have, of libtpu 0.0.50."""
    hbm_bytes_per_second: float
    """Of one jax device."""
    num_matrix_units: int
    """Of one core."""
    matrix_unit_width: int
    cycles_per_matmul: int
    """In which a matrix unit multiplies 16 bfloat16 rows by its matrix."""
    num_delay_slots: int
    """Bundles behind a branch that are executed even if it is taken."""
    eight_bit_types: tuple[str, ...]
    """Types of 8 bits that its matrix units multiply without conversion."""
    link_bytes_per_second: float
    """Of one link between neighbouring chips, one way."""
    num_torus_axes: int
    """Axes along which a chip has two such links, one to each neighbour."""
    wrap_multiple: int
    """A slice closes its torus along an axis whose length is a multiple of this."""
    network_bytes_per_second: float
    """Of one chip, out of its slice over the data-center network."""
    devices_per_chip: int = 1
    """jax devices that share the chip's links."""

    @property
    def flops_per_second(self) -> float:
        """The dense bfloat16 peak of one jax device."""
        units = self.num_cores * self.num_matrix_units
        flops_per_row = 2 * self.matrix_unit_width**2
        return units * flops_per_row * 16 / self.cycles_per_matmul * self.clock_hz


MIB = 2**20
GIB = 2**30
_V5E = Tpu(
    "TPU v5 lite",
    num_cores=1,
    vmem_bytes=128 * MIB,
    clock_hz=1.503e9,
    hbm_bytes=int(15.75 * GIB),
    hbm_bytes_per_second=819e9,
    num_matrix_units=4,
    matrix_unit_width=128,
    cycles_per_matmul=16,
    num_delay_slots=4,
    eight_bit_types=("int8",),
    link_bytes_per_second=45e9,
    num_torus_axes=2,
    wrap_multiple=16,
    network_bytes_per_second=25e9 / 8,
)
_V5P = dataclasses.replace(
    _V5E,
    name="TPU v5p",
    num_cores=2,
    vmem_bytes=64 * MIB,
    clock_hz=1.75e9,
    hbm_bytes=int(95.73 * GIB),
    hbm_bytes_per_second=2765e9,
    link_bytes_per_second=90e9,
    num_torus_axes=3,
    wrap_multiple=4,
    network_bytes_per_second=50e9 / 8,
)
_V6E = Tpu(
    "TPU v6 lite",
    num_cores=1,
    vmem_bytes=128 * MIB,
    clock_hz=1.75e9,
    hbm_bytes=int(31.24 * GIB),
    hbm_bytes_per_second=1640e9,
    num_matrix_units=2,
    matrix_unit_width=256,
    cycles_per_matmul=8,
    num_delay_slots=4,
    eight_bit_types=("int8",),
    link_bytes_per_second=90e9,
    num_torus_axes=2,
    wrap_multiple=16,
    network_bytes_per_second=100e9 / 8,
)
_V7X = dataclasses.replace(
    _V6E,
    name="TPU7x",
    vmem_bytes=64 * MIB,
    clock_hz=2.2e9,
    num_delay_slots=6,
    hbm_bytes=int(94.74 * GIB),
    hbm_bytes_per_second=3690e9,
    eight_bit_types=("float8_e4m3fn", "float8_e5m2"),
    link_bytes_per_second=90e9,
    num_torus_axes=3,
    wrap_multiple=4,
    network_bytes_per_second=100e9 / 8,
    devices_per_chip=2,
)
TPUS = {
    "TPU v5 lite": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU7x": _V7X,
}
"""`jax.Device.device_kind` -> the chip. The matrix units and their pace are those with
which clock and published peak agree; a jax device of tpu7x is one core."""

_pretended = contextvars.ContextVar[Tpu | None]("pretended", default=None)


@contextlib.contextmanager
def pretend(device_kind: str) -> Iterator[Tpu]:
    """Builds kernels as for a TPU that is not there, to interpret them.

    Raises:
      KeyError: `TPUS` does not know the device kind.
    """
    token = _pretended.set(TPUS[device_kind])
    try:
        yield TPUS[device_kind]
    finally:
        _pretended.reset(token)


def target_tpu() -> Tpu | None:
    """Returns the TPU that kernels are built for; None where there is none we know.

    That is the mesh's in force, which may be one to compile for ahead of time, or else
    the first device.
    """
    return _pretended.get() or TPUS.get(_device_kind())


def why_no_tpu() -> str | None:
    """Returns why kernels for TPUs cannot run; None if they can."""
    if target_tpu() is not None:
        return None
    return f"the device is {_device_kind()}, and it is for {', '.join(TPUS)}"


def _device_kind() -> str:
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    return device.device_kind
