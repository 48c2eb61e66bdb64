# SPDX-License-Identifier: Apache-2.0
"""The time of a kernel on given scalar operands, beside what the chip could do."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from pallas_kernels.hardware import Tpu
from pallas_kernels.schedule import timeline
from pallas_kernels.schedule.compile import Kernel
from pallas_kernels.schedule.timeline import Timeline


@dataclasses.dataclass(frozen=True)
class Work:
    """What the result takes, whoever computes it."""

    flops: float
    num_bytes: float
    """Operands and results, once each."""

    def roofline_seconds(self, tpu: Tpu) -> float:
        """Returns max(flops / peak, bytes / bandwidth of HBM)."""
        compute = self.flops / tpu.flops_per_second
        return max(compute, self.num_bytes / tpu.hbm_bytes_per_second)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the cores did, and how that compares with the chip's best."""

    cores: tuple[Timeline, ...]
    work: Work
    tpu: Tpu

    @property
    def seconds(self) -> float:
        """Of the slowest core."""
        return max(core.seconds for core in self.cores)

    @property
    def compute_seconds(self) -> float:
        """Of the slowest core, if no DMA were waited for."""
        return max(core.compute_seconds for core in self.cores)

    @property
    def hbm_bytes(self) -> int:
        """Moved by all cores."""
        return sum(core.hbm_bytes for core in self.cores)

    @property
    def hbm_seconds(self) -> float:
        """In which the busiest core's DMAs have work."""
        return max(core.hbm_seconds for core in self.cores)

    @property
    def num_busy_cores(self) -> int:
        """Cores that multiply anything."""
        return sum(core.num_matmuls > 0 for core in self.cores)

    @property
    def share_of_peak(self) -> float:
        """Useful FLOP/s over the chip's."""
        return self.work.flops / self.tpu.flops_per_second / self.seconds

    @property
    def share_of_roofline(self) -> float:
        """The roofline's time over this one."""
        return self.work.roofline_seconds(self.tpu) / self.seconds


def estimate(
    kernel: Kernel, scalars: Mapping[int, np.ndarray], *, work: Work
) -> Estimate:
    """Runs a kernel's scalar program on every core of its chip.

    Args:
      kernel: of `compile_kernels`.
      scalars: operand number -> i32 values, of the operands in scalar memory. Of a
        `pallas_call` with scalar prefetch these are the leaves of its first arguments,
        in order.
      work: what the result takes.

    Raises:
      ValueError: the kernel has no such operand, or one of another size.
      UnknownValueError: the kernel's path depends on more than `scalars`.
    """
    sizes = kernel.program.scalar_sizes
    for number, values in scalars.items():
        if sizes.get(number) != np.size(values):
            raise ValueError(
                f"{kernel.name}: operand {number} has {sizes.get(number, 'no')} i32 "
                f"values, and {np.size(values)} are given. Plan for the rows that it "
                "was compiled for."
            )
    cores = tuple(
        timeline.run(kernel.blocks, scalars, tpu=kernel.tpu, core=core)
        for core in range(kernel.tpu.num_cores)
    )
    return Estimate(cores, work, kernel.tpu)
