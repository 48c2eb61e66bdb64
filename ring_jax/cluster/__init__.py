# SPDX-License-Identifier: Apache-2.0
"""Where a run runs: TPU slices by name, compiler flags by preset, GKE's manifest.

The scripts of `launch/` ask this room by `python -m ring_jax.cluster`, on machines
where nothing is installed yet: it imports the standard library only.
"""

from ring_jax.cluster.accelerators import GENERATIONS as GENERATIONS
from ring_jax.cluster.accelerators import Generation as Generation
from ring_jax.cluster.accelerators import Slice as Slice
from ring_jax.cluster.accelerators import UnknownNameError as UnknownNameError
from ring_jax.cluster.accelerators import find_slice as find_slice
from ring_jax.cluster.jobset import JobSet as JobSet
from ring_jax.cluster.jobset import render as render
from ring_jax.cluster.presets import FLAGS_FILE as FLAGS_FILE
from ring_jax.cluster.presets import Preset as Preset
from ring_jax.cluster.presets import find_preset as find_preset
from ring_jax.cluster.presets import preset_names as preset_names
