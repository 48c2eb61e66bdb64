# SPDX-License-Identifier: Apache-2.0
"""How long a Pallas kernel takes on a TPU that is not there.

    compilation = compile_kernels(fn, *abstract_args, chip="v6e")
    estimate(compilation.kernels[0], scalars, work=Work(flops, num_bytes))

The TPU's own compiler compiles ahead of time and dumps its final bundles; these are
exact: bundles, spills, VMEM, matmuls issued, bytes moved. The time is an estimate: the
kernel's scalar program is run on the group sizes given, one bundle a cycle, with matrix
units that serve in order and DMAs that share the bandwidth of HBM (`timeline.py`).
Nothing of it is measured on a TPU.

The dumps are undocumented and tied to libtpu's version, which every `Compilation`
names; this reads those of 0.0.50 and 0.0.52.
"""

from pallas_kernels.schedule.compile import (
    CHIPS,
    Compilation,
    Kernel,
    compile_into,
    compile_kernels,
)
from pallas_kernels.schedule.compiler import CompileError
from pallas_kernels.schedule.estimate import Estimate, Work, estimate
from pallas_kernels.schedule.skew import zipf_sizes
from pallas_kernels.schedule.timeline import UnknownValueError

__all__ = [
    "CHIPS",
    "Compilation",
    "CompileError",
    "Estimate",
    "Kernel",
    "UnknownValueError",
    "Work",
    "compile_into",
    "compile_kernels",
    "estimate",
    "zipf_sizes",
]
