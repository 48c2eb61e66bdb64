# SPDX-License-Identifier: Apache-2.0
"""What a mesh costs where it gains nothing: eight emulated devices on the same cores.

    python -m benchmarks.mesh_overhead [--turns=2]

A training step of a small MoE (the shape of `train_step.py` with 8 layers, so that they
are a loop, and 8 rows of 512 tokens, in float32) on one device and on meshes of eight,
which share the machine's two cores. The work is the same; what a mesh adds is gathers,
sums and copies. Turns are interleaved and medians compared. The last line is one JSON
object: mesh -> its seconds over those of one device.
"""

import argparse
import dataclasses
import json
import os
import sys

import jax

from benchmarks.conditions import conditions
from benchmarks.train_step import NUM_CORES, medians, run_config, timed_step
from ring_jax import sharding
from ring_jax.config import MeshConfig

NUM_DEVICES = 8
MESHES = {
    "8 data": MeshConfig(data=8),
    "8 fsdp": MeshConfig(data=1, fsdp=8),
    "4 fsdp x 2 expert": MeshConfig(data=1, fsdp=4, expert=2),
}
NUM_LAYERS, BATCH_SIZE = 8, 8


def main() -> None:
    """Times all meshes, prints a table and last one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=5, help="of two timed steps each")
    flags = parser.parse_args()
    if len(jax.devices("cpu")) != NUM_DEVICES:
        count = f"--xla_force_host_platform_device_count={NUM_DEVICES}"
        environment = os.environ | {"XLA_FLAGS": count, "JAX_PLATFORMS": "cpu"}
        os.execve(sys.executable, sys.orig_argv, environment)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:NUM_CORES])
    config = run_config("float32")
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, num_layers=NUM_LAYERS),
        train=dataclasses.replace(
            config.train, global_batch_size=BATCH_SIZE, remat="block"
        ),
    )
    one = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    meshes = {name: sharding.make_mesh(mesh) for name, mesh in MESHES.items()}
    steps = {
        name: timed_step(config, mesh)
        for name, mesh in ({"one device": one} | meshes).items()
    }
    seconds = medians(steps, repeats=flags.turns)
    found = {name: value / seconds["one device"] for name, value in seconds.items()}
    for name, ratio in found.items():
        print(
            f"{name:20}{1e3 * seconds[name]:8.0f} ms  {ratio:5.2f} times one device's"
        )
    del found["one device"]
    print(json.dumps({k: round(v, 3) for k, v in found.items()} | conditions()))


if __name__ == "__main__":
    main()
