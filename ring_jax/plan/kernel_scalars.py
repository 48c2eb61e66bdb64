# SPDX-License-Identifier: Apache-2.0
"""What our kernels would find in scalar memory in a typical step.

A kernel's grid depends on data: how many rows each expert has, where documents start.
Estimates take expert sizes as skewed as a trained router's (`zipf_sizes`), equally many
rows of each token, and one document a row: plain causal attention, the most work that a
row can be.
"""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.context import Context
from pallas_kernels.attention.flash import Spans, block_of
from pallas_kernels.attention.tpu import BLOCK, LANES, plan_visits
from pallas_kernels.expert_mlp.passes import plan_scalars
from pallas_kernels.hardware import TPUS
from pallas_kernels.schedule import zipf_sizes
from pallas_kernels.segment_sum.tpu import TILE, chunk_rows, plan_tiles
from ring_jax.plan.hlo import Computation, Instruction
from ring_jax.plan.op_cost import KernelScalars

_ATTENTION = "packed_attention_"
_SEGMENT_SUM = "segment_sum"
_EXPERTS = re.compile(r"(?:expert_|grouped_)\w+")


def our_kernels(
    device_kind: str, *, num_routed_rows: int | None = None
) -> KernelScalars:
    """Returns the scalar operands of kernels of `pallas_kernels` on a chip.

    Args:
      device_kind: a key of `hardware.TPUS`.
      num_routed_rows: that a device's experts get on the average, where their buffers
        have room for more; None: all rows are used.
    """

    def scalars(
        kernel: Instruction, computation: Computation
    ) -> Mapping[int, np.ndarray] | None:
        if kernel.name.startswith(_ATTENTION):
            return _attention_scalars(kernel, computation)
        if _EXPERTS.match(kernel.name):
            return _expert_scalars(kernel, computation, device_kind, num_routed_rows)
        if kernel.name.startswith(_SEGMENT_SUM):
            return _segment_scalars(kernel, computation, device_kind, num_routed_rows)
        return None

    return scalars


def _attention_scalars(
    kernel: Instruction, computation: Computation
) -> dict[int, np.ndarray]:
    """The number of visits, which the grid depends on, and the visits."""
    operands = (
        shape.dims
        for name in kernel.operands
        for shape in computation.by_name[name].shapes
        if len(shape.dims) == 5
    )
    (B, _, _, T, _), (J, _, _, _, _) = next(operands), next(operands)
    block = block_of(T, J * T, largest=BLOCK, unit=LANES)
    # The first device's part of the row; zigzag order gives all equally many visits.
    positions = Context(num_shards=J).positions(T)[::block]
    owner = "key" if "keyvalue" in kernel.name else "query"
    with jax.default_device(jax.devices("cpu")[0]):
        spans = Spans(jnp.zeros((B, T), jnp.int32), positions[: T // block], positions)
        visits, num_visits = plan_visits(spans, owned_by=owner)
    leaves = [num_visits, *jax.tree.leaves(visits)]
    return dict(enumerate(np.asarray(leaf).reshape(-1) for leaf in leaves))


def _expert_scalars(
    kernel: Instruction,
    computation: Computation,
    device_kind: str,
    num_routed_rows: int | None,
) -> dict[int, np.ndarray]:
    """The leaves of the plan of the rows: the kernel's first operands."""
    operands = [computation.by_name[name] for name in kernel.operands]
    shapes = [shape for i in (*operands, kernel) for shape in i.shapes]
    num_groups = next(shape.dims[0] for shape in shapes if len(shape.dims) == 3)
    num_rows = max(shape.dims[0] for shape in shapes if len(shape.dims) == 2)
    num_used = min(num_rows, num_routed_rows or num_rows)
    sizes = tuple(zipf_sizes(num_used, num_groups).tolist())
    return plan_scalars(device_kind, num_rows, sizes)


def _segment_scalars(
    kernel: Instruction,
    computation: Computation,
    device_kind: str,
    num_routed_rows: int | None,
) -> dict[int, np.ndarray]:
    """Where the rows of each tile of tokens begin, and how many chunks they are."""
    (rows,) = computation.by_name[kernel.operands[-1]].shapes
    num_rows, num_segments = rows.dims[0], kernel.shapes[0].dims[0]
    num_used = min(num_rows, num_routed_rows or num_rows)
    ends_M = np.arange(1, num_segments + 1) * num_used // num_segments
    with jax.default_device(jax.devices("cpu")[0]):
        plan, _, _ = plan_tiles(
            jnp.asarray(ends_M, jnp.int32),
            chunk=chunk_rows(num_rows, num_tiles=num_segments // TILE),
            num_cores=TPUS[device_kind].num_cores,
        )
    return dict(enumerate(map(np.asarray, jax.tree.leaves(plan))))
