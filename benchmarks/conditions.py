# SPDX-License-Identifier: Apache-2.0
"""Where and when a figure was measured: the last keys of every benchmark's JSON line.

    python -m benchmarks.NAME | tail -1 > benchmarks/results/NAME.json

keeps a line beside the code. A figure in the README or in `docs/` has such a file.
"""

import datetime
import os
import pathlib
import platform

from ring_jax.cli.platforms import skip_absent_tpu

skip_absent_tpu(os.environ)

import jax  # noqa: E402  (reads the environment)


def conditions() -> dict[str, str | int]:
    """Returns the device, the cores this process may use, jax's version, the date."""
    return {
        "device": jax.devices()[0].device_kind,
        "cpu": _cpu_model(),
        "num_cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        "date": datetime.date.today().isoformat(),
    }


def _cpu_model() -> str:
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()
