# SPDX-License-Identifier: Apache-2.0
"""The peer of `benchmarks.pod_step`: MaxText's own training step, compiled for a pod.

It imports nothing of ours and runs in MaxText's own Python (0.2.5, with libtpu 0.0.52).
Usage: `python maxtext_peer.py <accelerator, such as v5p-64> <folder>`; the folder gets
`step.hlo`, the scheduled module, and `step.json`, what the compiler says of it. Dumps
of bundles go where LIBTPU_INIT_ARGS says.

The settings are those that MaxText's documents recommend for deepseek2-16b: dropless
experts by megablox, flash attention, full rematerialisation.
"""

import json
import pathlib
import sys
import time

import jax
from maxtext.trainers.pre_train import (  # pyright: ignore[reportMissingImports]  (the peer's environment has it)
    train_compile,
)

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
TERAFLOPS_PER_DEVICE_STEP = 134.4
"""What MaxText counts, and logs, for this model and these 8,192 tokens a device."""


def main() -> None:
    """Compiles the step and writes what `benchmarks.pod_step` reads."""
    accelerator, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    compile_step, found = train_compile.jit_and_compile, {}

    def compile_and_keep(function, args, kwargs, mesh, *rest):
        start = time.perf_counter()
        compiled = compile_step(function, args, kwargs, mesh, *rest)
        found.update(mesh=mesh, compiled=compiled)
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


def describe(mesh: jax.sharding.Mesh, compiled, compile_seconds: float) -> dict:
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
        "device_ids": [device.id for device in mesh.devices.flat],
        "peak_memory_bytes": memory.peak_memory_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "compile_seconds": compile_seconds,
    }


if __name__ == "__main__":
    main()
