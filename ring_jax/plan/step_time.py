# SPDX-License-Identifier: Apache-2.0
"""How long a compiled training step takes, and where the time goes. An estimate.

The schedule is walked (`walk.py`), each operation costed from the compiler's own code
of it (`op_cost.py`) and each collective from the bandwidth of links
(`links.py`). Nothing of it is measured on a TPU: docs/parallelism.md says how far
to trust it.
"""

import collections
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from pallas_kernels.hardware import Tpu
from ring_jax.plan.categories import OURS, Category
from ring_jax.plan.dumps import Dumps
from ring_jax.plan.hlo import parse_module
from ring_jax.plan.links import UNCERTAINTY, PlacedMesh
from ring_jax.plan.op_cost import KernelScalars, OpCosts
from ring_jax.plan.walk import Operation, Pace, Use, Walk

COMPUTE_UNCERTAINTY = 1.25
"""Computation may take this much longer: what the model leaves out all adds time."""


@dataclasses.dataclass(frozen=True)
class StepTime:
    """The estimate of a step, and its parts in seconds a step."""

    seconds: float
    low_seconds: float
    """Collectives twice as fast as estimated."""
    high_seconds: float
    """Collectives at half the speed, computation `COMPUTE_UNCERTAINTY` times longer."""
    breakdown: dict[str, float]
    """Category, or "exposed collectives over AXES" -> seconds; they add up."""
    sources: dict[str, float]
    """How the core's seconds are known: see `op_cost.py`."""
    collectives: tuple[Use, ...]
    operations: tuple[Operation, ...]
    """The longest first."""
    loops: dict[str, int | None]
    """Trip counts; None where the module does not say (`default_trip_count`)."""

    def tokens_per_second_per_chip(
        self, num_tokens: int, *, num_devices: int, tpu: Tpu
    ) -> float:
        """Returns the throughput for the tokens of a step's whole batch."""
        return num_tokens * tpu.devices_per_chip / (num_devices * self.seconds)

    def mfu(self, model_flops: float, *, num_devices: int, tpu: Tpu) -> float:
        """Returns model FLOPs / (seconds * devices * peak), as a share of 1.

        Args:
          model_flops: of a step's whole batch, without recomputation
            (`ring_jax.model.flops.flops_per_token` times tokens).
          num_devices: as jax counts them.
          tpu: their kind.
        """
        return model_flops / (self.seconds * num_devices * tpu.flops_per_second)


def estimate_step(
    hlo: str,
    mesh: PlacedMesh,
    *,
    dump_dir: Path | None,
    kernel_scalars: KernelScalars,
    categories: tuple[Category, ...] = OURS,
    default_trip_count: int = 1,
) -> StepTime:
    """Estimates the time of a compiled step.

    Args:
      hlo: the scheduled module, `compiled.as_text()`.
      mesh: the devices that it was compiled for.
      dump_dir: folder of the final bundles that libtpu dumped; None: rooflines only.
      kernel_scalars: scalar operands of Pallas kernels (`kernel_scalars.our_kernels`).
      categories: lines of the breakdown.
      default_trip_count: of loops whose bounds depend on data.

    Raises:
      ValueError: the text is no scheduled module.
    """
    module = parse_module(hlo)
    dumps = None if dump_dir is None else Dumps(module, dump_dir, mesh.tpu)
    costs = OpCosts(module, mesh.tpu, dumps, kernel_scalars)
    walks = [
        Walk(module, mesh, costs, categories, default_trip_count, pace).run_step()
        for pace in (
            Pace(),
            Pace(links=1 / UNCERTAINTY),
            Pace(core=COMPUTE_UNCERTAINTY, links=UNCERTAINTY),
        )
    ]
    walk, low, high = walks
    return StepTime(
        seconds=walk.now,
        low_seconds=low.now,
        high_seconds=high.now,
        breakdown=_longest_first(walk.breakdown),
        sources=_longest_first(walk.sources),
        collectives=walk.uses(),
        operations=tuple(
            sorted(walk.operations, key=lambda o: o.times * o.seconds, reverse=True)
        ),
        loops=walk.loops,
    )


def axis_seconds(uses: tuple[Use, ...]) -> Mapping[str, float]:
    """Sums the seconds of collectives by the axes that they run over."""
    total: dict[str, float] = collections.defaultdict(float)
    for use in uses:
        total[use.collective.label] += use.seconds
    return total


def _longest_first(seconds: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(seconds.items(), key=lambda item: item[1], reverse=True))
