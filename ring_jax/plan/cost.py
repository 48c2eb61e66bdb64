# SPDX-License-Identifier: Apache-2.0
"""A step compiled for a pod, how long it is estimated to take, and what that costs.

    plan = plan_step(config, pod, cache=default_cache())

Memory, collectives and sizes are the compiler's and exact; seconds are estimated from
its schedule (`step_time.py`), and so is everything that is divided by them.
"""

import dataclasses
import json
import math
import pathlib
import shutil

import jax

from ring_jax import sharding
from ring_jax.config import RunConfig
from ring_jax.model.flops import flops_per_token
from ring_jax.plan.abstract import abstract_state
from ring_jax.plan.collectives import Collective
from ring_jax.plan.compile import CompiledStep, Overflow, compile_step
from ring_jax.plan.kernel_scalars import our_kernels
from ring_jax.plan.links import PlacedMesh
from ring_jax.plan.step_time import Operation, StepTime, Use, estimate_step
from ring_jax.plan.topology import Pod

CHIPS_PER_HOST = 4
BYTES_PER_SECOND_PER_HOST = 1e9
"""To storage, where the user names no other: a stated assumption, not a measurement."""
_KEPT = "step_time.json"


@dataclasses.dataclass(frozen=True)
class Plan:
    """A step that fits, and its estimated time."""

    config: RunConfig
    pod: Pod
    step: CompiledStep
    time: StepTime

    @property
    def tokens_per_second_per_chip(self) -> float:
        """Estimate; of all tokens, with rows full."""
        return self.time.tokens_per_second_per_chip(
            self.step.num_tokens, num_devices=self.pod.num_devices, tpu=self.pod.tpu
        )

    @property
    def model_flops(self) -> float:
        """Of a step: `flops_per_token`, each row one document, nothing recomputed."""
        mean_context = (self.config.train.seq_len + 1) / 2
        per_token = flops_per_token(self.config.model, mean_context=mean_context)
        return per_token * self.step.num_tokens

    @property
    def mfu(self) -> float:
        """Estimate: model FLOPs / (seconds * devices * peak)."""
        return self.time.mfu(
            self.model_flops, num_devices=self.pod.num_devices, tpu=self.pod.tpu
        )

    @property
    def checkpoint_bytes(self) -> int:
        """Of the state, each array once; exact but for the files' own headers."""
        return checkpoint_bytes(self.config)

    def save_seconds(self, bytes_per_second_per_host: float) -> float:
        """Returns how long a save takes when all hosts write at that pace; estimate."""
        num_hosts = max(1, self.pod.num_chips // CHIPS_PER_HOST)
        return self.checkpoint_bytes / (num_hosts * bytes_per_second_per_host)

    @property
    def chip_hours_per_billion_tokens(self) -> float:
        """Estimate."""
        return 1e9 / self.tokens_per_second_per_chip / 3600


def plan_step(
    config: RunConfig, pod: Pod, *, cache: pathlib.Path, fresh: bool = False
) -> Plan | Overflow:
    """Compiles a run's step for a pod and estimates its time, or keeps what it found.

    Raises:
      ConfigError: libtpu is missing or knows no such pod, or the mesh does not fit.
      CompileError: the compiler refused the step.
    """
    step = compile_step(config, pod, cache=cache, fresh=fresh, with_bundles=True)
    if isinstance(step, Overflow):
        return step
    kept = step.folder / _KEPT
    if kept.exists():
        time = _read_time(kept)
    else:
        time = _estimate(config, step, pod)
        kept.write_text(json.dumps(dataclasses.asdict(time)), "utf-8")
    if step.dump_dir is not None:
        # Gigabytes for a whole model, and read only once.
        shutil.rmtree(step.dump_dir)
    return Plan(config, pod, step, time)


def checkpoint_bytes(config: RunConfig) -> int:
    """Returns the bytes of the state, whatever mesh it is on."""
    with jax.sharding.use_abstract_mesh(sharding.abstract_mesh()):
        leaves = jax.tree.leaves(abstract_state(config))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def _estimate(config: RunConfig, step: CompiledStep, pod: Pod) -> StepTime:
    placed = PlacedMesh(
        mesh_shape=step.mesh_shape,
        coordinates=tuple(dataclasses.astuple(place) for place in step.positions),
        tpu=pod.tpu,
    )
    return estimate_step(
        step.hlo,
        placed,
        dump_dir=step.dump_dir,
        kernel_scalars=our_kernels(
            pod.tpu.name, num_routed_rows=_routed_rows(config, pod)
        ),
        # Such loops are the further passes of a device that more tokens want than it
        # takes at once (`model/expert_parallel.py`).
        default_trip_count=0,
    )


def _routed_rows(config: RunConfig, pod: Pod) -> int:
    """Returns the rows that a device's experts get on the average of a microbatch."""
    train = config.train
    num_tokens = train.global_batch_size * train.seq_len // train.num_microbatches
    num_owners = pod.num_devices // config.mesh.tensor
    return num_tokens * config.model.moe.num_experts_per_token // num_owners


def _read_time(path: pathlib.Path) -> StepTime:
    tree = json.loads(path.read_text("utf-8"))
    uses = []
    for use in tree["collectives"]:
        inner = use["collective"]
        lists = {name: tuple(inner[name]) for name in ("axes", "links")}
        collective = Collective(**(inner | lists))
        uses.append(Use(**(use | {"collective": collective})))
    operations = tuple(Operation(**operation) for operation in tree["operations"])
    return StepTime(**(tree | {"collectives": tuple(uses), "operations": operations}))
