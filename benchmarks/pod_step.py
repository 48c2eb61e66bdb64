# SPDX-License-Identifier: Apache-2.0
"""A training step of Ling-lite on pods that are not there, beside MaxText's of a peer.

    python -m benchmarks.pod_step
    python -m benchmarks.pod_step --maxtext-python=/path/to/its/environment/bin/python

Both steps are compiled by the TPU's own compiler and timed by the same estimator
(`ring_jax.plan`; docs/parallelism.md says how): 8,192 tokens a chip in rows of 4,096,
everything in a layer recomputed. The peer is MaxText's deepseek2-16b, of the same size
and kind, as `maxtext_peer.py` sets it up, in an environment of its own:

    pip install 'maxtext[tpu]==0.2.5' jax==0.12.0.1 libtpu==0.0.52

Nothing is measured on a TPU: seconds and MFU are estimates, HBM is the compiler's. MFU
is model FLOPs / (seconds * chips * peak), each side's FLOPs as its own code counts them
(ours: `ring_jax.model.flops`). Before it judges ours the estimator must give MaxText's
step on v5p-64 within `CALIBRATION_SHARE` of what an independent estimate gave.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks import maxtext_kernels
from benchmarks.conditions import conditions
from pallas_kernels import hardware
from pallas_kernels.schedule.compiler import compiler_environment, dump_flags
from ring_jax.config import (
    DataConfig,
    MeshConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
)
from ring_jax.plan.compile import Overflow, default_cache
from ring_jax.plan.cost import plan_step
from ring_jax.plan.links import PlacedMesh
from ring_jax.plan.step_time import StepTime, axis_seconds, estimate_step
from ring_jax.plan.topology import find_pod

TOPOLOGIES = ("v5p-64", "v6e-64")
"""Accelerators, as both sides name them: 2 x 4 x 4 and 8 x 8 chips."""
MESHES = {
    "v5p-64": MeshConfig(data=1, fsdp=8, expert=4),
    "v6e-64": MeshConfig(data=1, fsdp=16, expert=4),
}
"""Ours; the peer's is fsdp alone, the better of those that were tried for it."""
SEQ_LEN, ROWS_PER_CHIP = 4096, 2
CALIBRATION = ("v5p-64", 1.429)
"""Seconds of MaxText's step by an estimator of other authors (November 2026), in which
all axes of a slice were rings."""
CALIBRATION_SHARE = 0.1
GIB = 2**30
STOPPED_BY_CHECK = 3


@dataclasses.dataclass(frozen=True)
class Side:
    """A step, ours or the peer's, on one pod."""

    time: StepTime
    mfu: float
    hbm_gib: float
    compile_seconds: float

    def summary(self) -> dict[str, Any]:
        """Returns the figures of the JSON line."""
        return {
            "mfu": round(self.mfu, 4),
            "step_seconds": round(self.time.seconds, 4),
            "step_seconds_low": round(self.time.low_seconds, 4),
            "step_seconds_high": round(self.time.high_seconds, 4),
            "hbm_gib": round(self.hbm_gib, 2),
            "compile_seconds": round(self.compile_seconds, 1),
            "breakdown_ms": {
                name: round(1e3 * seconds, 1)
                for name, seconds in self.time.breakdown.items()
            },
        }


def main() -> None:
    """Prints a table for each topology and last one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--topologies", nargs="+", choices=TOPOLOGIES, default=TOPOLOGIES
    )
    parser.add_argument(
        "--maxtext-python", type=pathlib.Path, help="of an environment with MaxText"
    )
    parser.add_argument("--fresh", action="store_true", help="forgets kept answers")
    flags = parser.parse_args()
    found: dict[str, Any] = {}
    for accelerator in flags.topologies:
        peer = None
        if flags.maxtext_python is not None:
            peer = peer_side(accelerator, flags.maxtext_python)
            show(f"MaxText deepseek2-16b on {accelerator}", peer)
            check_calibration(accelerator, peer)
        ours = our_side(accelerator, fresh=flags.fresh)
        show(f"Ling-lite on {accelerator}", ours)
        found[accelerator] = ours.summary()
        if peer is not None:
            ratio = ours.mfu / peer.mfu
            print(f"\n{accelerator}: MFU {ratio:.2f} times MaxText's\n")
            found[accelerator] |= {"maxtext": peer.summary(), "ratio": round(ratio, 2)}
    print(json.dumps(found | conditions()))


def our_side(accelerator: str, *, fresh: bool) -> Side:
    """Compiles and times our step."""
    pod = find_pod(accelerator)
    run = RunConfig(
        model=ModelConfig(),
        mesh=MESHES[accelerator],
        data=DataConfig(sources={"any": SourceConfig(path="any.jsonl")}),
        train=TrainConfig(
            global_batch_size=ROWS_PER_CHIP * pod.num_chips,
            seq_len=SEQ_LEN,
            remat="block",
        ),
        stages={"only": StageConfig(mixture={"any": 1.0}, num_steps=1000)},
    )
    plan = plan_step(run, pod, cache=default_cache(), fresh=fresh)
    if isinstance(plan, Overflow):
        sys.exit(f"{accelerator}: our step lacks {plan.excess / GIB:.2f} GiB of HBM.")
    memory = plan.step.memory
    # The peer's figure is without the program.
    num_bytes = memory.total - memory.categories.get("program", 0)
    return Side(plan.time, plan.mfu, num_bytes / GIB, plan.step.compile_seconds)


def peer_side(accelerator: str, python: pathlib.Path) -> Side:
    """Compiles MaxText's step in its own environment and times it."""
    with tempfile.TemporaryDirectory(prefix="maxtext-") as name:
        folder = pathlib.Path(name)
        dumps = folder / "dumps"
        dumps.mkdir()
        run_peer(accelerator, python, folder, dumps)
        found = json.loads((folder / "step.json").read_text("utf-8"))
        tpu = hardware.TPUS[found["device_kind"]]
        mesh = PlacedMesh(
            found["mesh_shape"], tuple(map(tuple, found["coordinates"])), tpu
        )
        time = estimate_step(
            (folder / "step.hlo").read_text("utf-8"),
            mesh,
            dump_dir=dumps,
            kernel_scalars=maxtext_kernels.kernel_scalars,
            categories=maxtext_kernels.CATEGORIES,
        )
    flops = found["model_flops_per_device"] * mesh.num_devices
    return Side(
        time,
        time.mfu(flops, num_devices=mesh.num_devices, tpu=tpu),
        found["peak_memory_bytes"] / GIB,
        found["compile_seconds"],
    )


def run_peer(
    accelerator: str, python: pathlib.Path, folder: pathlib.Path, dumps: pathlib.Path
) -> None:
    """Runs `maxtext_peer.py`, which fills the folders."""
    environment = compiler_environment(dump_flags(dumps))
    # It imports nothing of ours.
    del environment["PYTHONPATH"]
    script = pathlib.Path(__file__).with_name("maxtext_peer.py")
    try:
        process = subprocess.run(
            [python, script, accelerator, folder],
            cwd=folder,
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
    except OSError as error:
        sys.exit(f"--maxtext-python={python}: {error.strerror}. Name its Python.")
    if process.returncode != 0:
        last = process.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        sys.exit(f"maxtext_peer.py ended with {process.returncode}: {last[0][:300]}")


def check_calibration(accelerator: str, peer: Side) -> None:
    """Ends the benchmark if the estimator has lost what it once agreed with."""
    where, seconds = CALIBRATION
    if accelerator != where:
        return
    off = peer.time.seconds / seconds - 1
    print(f"calibration: {off:+.1%} of the {1e3 * seconds:.0f} ms known for {where}")
    if abs(off) > CALIBRATION_SHARE:
        print("The estimator is off: it judges nothing.", file=sys.stderr)
        sys.exit(STOPPED_BY_CHECK)


def show(title: str, side: Side) -> None:
    """Prints a step's estimate with its parts."""
    time = side.time
    print(
        f"\n{title}: {1e3 * time.seconds:.0f} ms "
        f"({1e3 * time.low_seconds:.0f} to {1e3 * time.high_seconds:.0f}), "
        f"MFU {side.mfu:.1%}; HBM {side.hbm_gib:.2f} GiB (exact), "
        f"compiled in {side.compile_seconds:.0f} s"
    )
    for name, seconds in time.breakdown.items():
        print(f"  {1e3 * seconds:9.1f} ms  {seconds / time.seconds:5.1%}  {name}")
    for axes, seconds in axis_seconds(time.collectives).items():
        print(f"  collectives over {axes}: {1e3 * seconds:.1f} ms, hidden or not")
    known = ", ".join(f"{name} {1e3 * s:.1f}" for name, s in time.sources.items())
    print(f"  the core's time is known from (ms): {known}")


if __name__ == "__main__":
    main()
