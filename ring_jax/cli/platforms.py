# SPDX-License-Identifier: Apache-2.0
"""Where no TPU is, nobody asks the TPU's library for one.

`ring plan` needs libtpu, and jax tries every library that is installed before it takes
the CPU: each command would begin with libtpu's complaints about the TPU that it misses.
The choice is made before jax is imported, and holds for processes that the command
starts.
"""

import importlib.metadata
import importlib.util
import pathlib
from collections.abc import MutableMapping

VARIABLE = "JAX_PLATFORMS"
_CHOICES = (VARIABLE, "JAX_FORCE_TPU_INIT", "PJRT_NAMES_AND_LIBRARY_PATHS")
"""Variables by which a user tells jax what to compute on. `TPU_LIBRARY_PATH` is none:
libtpu sets it in whatever imports it."""
_PLUGINS = "jax_plugins"
"""Entry points, and a namespace of packages, of jax's other accelerators."""
_GOOGLE = "0x1ae0"
_NO_TPU = ("0x01", "0x02")
"""Classes of Google's disks and network cards, which any virtual machine has."""


def skip_absent_tpu(
    environment: MutableMapping[str, str], *, root: pathlib.Path = pathlib.Path("/")
) -> None:
    """Makes jax take the CPU, if that is all it can find and libtpu is installed.

    Nothing is chosen where the user chose, where jax has a plugin for another kind of
    accelerator, or where anything speaks for a TPU: its errors are worth their lines.

    Args:
      environment: what jax will read; gets `JAX_PLATFORMS`.
      root: has "dev" and "sys".
    """
    if importlib.util.find_spec("libtpu") is None:
        return
    if any(name in environment for name in _CHOICES):
        return
    if has_tpu(root) or _has_plugins():
        return
    environment[VARIABLE] = "cpu"


def has_tpu(root: pathlib.Path) -> bool:
    """Says whether a TPU has a device file, or a place on the bus though no file."""
    device = root / "dev"
    groups = (path.name for path in device.glob("vfio/*"))
    # That file alone is the driver's own.
    if any(device.glob("accel*")) or any(name != "vfio" for name in groups):
        return True
    return any(
        path.read_text("ascii").strip() == _GOOGLE
        and not path.with_name("class").read_text("ascii").startswith(_NO_TPU)
        for path in root.glob("sys/bus/pci/devices/*/vendor")
    )


def _has_plugins() -> bool:
    if importlib.util.find_spec(_PLUGINS) is not None:
        return True
    return bool(importlib.metadata.entry_points(group=_PLUGINS))
