# SPDX-License-Identifier: Apache-2.0
"""The process of one compilation of a step, started by `compile.py` with its flags.

libtpu takes its flags when it is loaded, so each compilation has a process. The request
comes on standard input as JSON; what was found goes into the folder named there.
"""

import dataclasses
import gzip
import json
import pathlib
import resource
import sys
import tempfile
import time
from typing import Any

import jax
from jax.sharding import Mesh

from pallas_kernels.schedule.compiler import end_with_parent
from ring_jax import sharding
from ring_jax.config import ConfigError, RunConfig, run_config_from_json
from ring_jax.plan.abstract import abstract_batch, abstract_state
from ring_jax.plan.memory import Memory, read_memory, undonated
from ring_jax.plan.topology import Pod, pod_devices, position
from ring_jax.train import check_run
from ring_jax.train.optimizer import make_optimizer
from ring_jax.train.step import make_train_step

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


def main() -> None:
    """Compiles what the request names; a user's mistake is a reply, too."""
    request = json.load(sys.stdin)
    folder = pathlib.Path(request["folder"])
    try:
        reply = _compile(
            run_config_from_json(request["config"]), Pod(**request["pod"]), folder
        )
    except ConfigError as error:
        reply = {"kind": "mistake", "message": str(error)}
    (folder / "reply.json").write_text(json.dumps(reply), "utf-8")


def _compile(config: RunConfig, pod: Pod, folder: pathlib.Path) -> dict[str, Any]:
    mesh = sharding.make_mesh(config.mesh, pod_devices(pod))
    with tempfile.TemporaryDirectory() as empty:
        check_run(config, pathlib.Path(empty), mesh)
    reply = {
        "mesh_shape": dict(mesh.shape),
        "positions": [_position(device) for device in mesh.devices.flat],
    }
    limit = pod.tpu.hbm_bytes
    with tempfile.TemporaryDirectory(dir=folder) as name:
        dumps = pathlib.Path(name)
        start = time.perf_counter()
        try:
            compiled = _compile_step(config, mesh, dumps)
        except jax.errors.JaxRuntimeError as error:
            if not str(error).startswith(OUT_OF_MEMORY):
                raise
            overflow = _overflow(str(error).partition("\n")[0], dumps, limit)
            return reply | overflow
        reply["compile_seconds"] = time.perf_counter() - start
        hlo, sizes = compiled.as_text(), compiled.memory_analysis()
        assert hlo is not None and sizes is not None, "libtpu tells both"
        program_bytes = sizes.generated_code_size_in_bytes
        memory = _read_memory(hlo, dumps, program_bytes, limit)
    with gzip.open(folder / "step.hlo.gz", "wt", encoding="utf-8") as file:
        file.write(hlo)
    return reply | {
        "kind": "step",
        "memory": dataclasses.asdict(memory),
        "undonated": undonated(hlo),
        "offloaded_bytes": sizes.host_temp_size_in_bytes,
        "compiler_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _position(device: Any) -> tuple[int, ...]:
    return dataclasses.astuple(position(device))


def _compile_step(
    config: RunConfig, mesh: Mesh, dumps: pathlib.Path
) -> jax.stages.Compiled:
    """Compiles the step that training runs; the compiler reports on memory in `dumps`.

    A stage's routing warm-up, which its first steps add, is left out.
    """
    options = {
        "xla_dump_to": str(dumps),
        "xla_dump_hlo_as_text": True,
        "xla_dump_hlo_module_re": "jit_train_step",
    }
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(config.train.optimizer, config.stages)
        step: Any = make_train_step(config, optimizer)
        lowered = step.lower(abstract_state(config), abstract_batch(config, mesh))
        return lowered.compile(options)


def _read_memory(
    hlo: str, dumps: pathlib.Path, program_bytes: int, limit: int
) -> Memory:
    return read_memory(
        hlo,
        _dump(dumps, "after_optimizations-buffer-assignment.txt"),
        _dump(dumps, "after_optimizations-live-range.txt"),
        program_bytes=program_bytes,
        limit=limit,
    )


def _overflow(line: str, dumps: pathlib.Path, limit: int) -> dict[str, Any]:
    """Returns what the compiler assigned before it found that it does not fit."""
    hlo = _dump(dumps, "after_optimizations.txt")
    if not hlo:
        # Some overflows are found before anything is assigned.
        return {"kind": "overflow", "message": line, "memory": None}
    memory = _read_memory(hlo, dumps, 0, limit)
    return {
        "kind": "overflow",
        "message": line,
        "memory": dataclasses.asdict(memory),
    }


def _dump(dumps: pathlib.Path, suffix: str) -> str:
    """Reads the largest dump of a kind: small modules are helpers of the step's."""
    found = sorted(dumps.glob(f"*.{suffix}"), key=_num_bytes)
    return found[-1].read_text("utf-8") if found else ""


def _num_bytes(path: pathlib.Path) -> int:
    return path.stat().st_size


if __name__ == "__main__":
    end_with_parent()
    main()
