# SPDX-License-Identifier: Apache-2.0
"""The peer of `benchmarks.pod_step`: MaxText's own training step, compiled for a pod.

It imports nothing of ours and runs in MaxText's own Python (0.2.5, with libtpu 0.0.52).
Usage: `python maxtext_peer.py <accelerator, such as v5p-64> <folder>`; the folder gets
`step.hlo`, the scheduled module, and `step.json`, what the compiler says of it. Dumps
of bundles go where LIBTPU_INIT_ARGS says.

The settings are those that MaxText's documents recommend for deepseek2-16b: dropless
experts by megablox, flash attention, full rematerialisation.
"""

import importlib
import json
import pathlib
import sys
import time
from typing import Any

import jax

SETTINGS = (
    "model_name=deepseek2-16b",
    "per_device_batch_size=2",
    "max_target_length=4096",
    "remat_policy=full",
    "sparse_matmul=True",
    "megablox=True",
    "attention=flash",
    "dataset_type=synthetic",
    "enable_checkpointing=False",
    "run_name=pod_step",
    "compile_topology_num_slices=1",
)


def main() -> None:
    """Compiles the step and writes what `benchmarks.pod_step` reads."""
    accelerator, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    # Not there in the environment in which this file is checked.
    train_compile: Any = importlib.import_module(
        "maxtext.trainers.pre_train.train_compile"
    )
    utils = importlib.import_module("maxtext.utils.maxtext_utils")
    compile_step, found = train_compile.jit_and_compile, {}

    def compile_and_keep(*args):
        start = time.perf_counter()
        compiled = compile_step(*args)
        mesh, config = args[3], args[-2]
        teraflops, *_ = utils.calculate_tflops_training_per_device(config, log=False)
        found.update(mesh=mesh, compiled=compiled, teraflops=float(teraflops))
        found["compile_seconds"] = time.perf_counter() - start
        return compiled

    train_compile.jit_and_compile = compile_and_keep
    train_compile.main(
        [
            "train_compile",
            *SETTINGS,
            f"compile_topology={accelerator}",
            f"base_output_directory={folder}",
        ]
    )
    (folder / "step.hlo").write_text(found["compiled"].as_text())
    (folder / "step.json").write_text(json.dumps(describe(**found)))


def describe(
    mesh: jax.sharding.Mesh,
    compiled: Any,
    teraflops: float,
    compile_seconds: float,
) -> dict:
    """Returns the mesh, where its devices are, and the compiler's figures of memory."""
    memory = compiled.memory_analysis()
    return {
        "mesh_shape": dict(mesh.shape),
        "coordinates": [
            [getattr(device, "slice_index", 0) or 0, *device.coords]
            + [device.core_on_chip]
            for device in mesh.devices.flat
        ],
        "device_kind": mesh.devices.flat[0].device_kind,
        "model_flops_per_device": 1e12 * teraflops,
        "peak_memory_bytes": memory.peak_memory_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "compile_seconds": compile_seconds,
    }


if __name__ == "__main__":
    main()
