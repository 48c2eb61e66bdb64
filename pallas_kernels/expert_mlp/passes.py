# SPDX-License-Identifier: Apache-2.0
"""The six kernels of an expert layer, each alone: to compile, to tune, to time.

They run in this order: gate and up, down; then backward the gradient of the hidden
rows, of the rows, and of both matrices. All of them are as in a training step that
keeps gate and up.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import hardware
from pallas_kernels.expert_mlp.epilogues import SWIGLU_AND_INPUTS, SWIGLU_BACKWARD
from pallas_kernels.grouped_matmul import (
    fused_matmul,
    grouped_matmul,
    grouped_matmul_transposed,
    grouped_outer,
    plan_rows,
    tpu,
)
from pallas_kernels.grouped_matmul.tiling import (
    OuterShape,
    ProductShape,
    Tiles,
    use_tiles,
)
from pallas_kernels.schedule import Work


@dataclasses.dataclass(frozen=True)
class Experts:
    """The routed experts of a layer, and the rows that a device sends to them."""

    num_experts: int
    model_dim: int
    expert_dim: int
    num_rows: int


# With 8,192 tokens a device. DeepSeek-V2-lite's experts are as Ling-lite's.
MODELS = {
    "ling_lite": Experts(64, 2048, 1408, 6 * 8192),
    "ling_mini_2": Experts(256, 2048, 512, 8 * 8192),
    "qwen3_30b_a3b": Experts(128, 2048, 768, 8 * 8192),
    "deepseek_v2_lite": Experts(64, 2048, 1408, 6 * 8192),
}


@dataclasses.dataclass(frozen=True)
class Pass:
    """One of the six, in bfloat16."""

    name: str
    run: Callable
    """(rows, matrices or other rows, sizes of the groups, *more) -> results; what
    another process can import by name."""
    arguments: tuple[jax.ShapeDtypeStruct, ...]
    shape: ProductShape | OuterShape
    work: Work


def passes(experts: Experts) -> Iterator[Pass]:
    """Yields the six kernels of a layer."""
    E, D, F = experts.num_experts, experts.model_dim, experts.expert_dim
    R = experts.num_rows
    weights_R = _of(R, dtype=jnp.float32)
    yield _product(
        "gate and up",
        gate_up,
        (_of(R, D), _of(E, D, 2 * F), weights_R),
        ProductShape(
            kernel=SWIGLU_AND_INPUTS.name,
            num_groups=E,
            width_in=D,
            width=F,
            product_slices=2,
            slices_written=3,
        ),
    )
    yield _product(
        "down",
        down,
        (_of(R, F), _of(E, F, D)),
        ProductShape(kernel="grouped_matmul", num_groups=E, width_in=F, width=D),
    )
    yield _product(
        "gradient of hidden rows",
        hidden_gradient,
        (_of(R, D), _of(E, F, D), _of(R, 2 * F), weights_R),
        ProductShape(
            kernel=f"{SWIGLU_BACKWARD.name}_transposed",
            num_groups=E,
            width_in=D,
            width=F,
            slices_read=2,
            slices_written=3,
        ),
    )
    yield _product(
        "gradient of rows",
        row_gradient,
        (_of(R, 2 * F), _of(E, D, 2 * F)),
        ProductShape(
            kernel="grouped_matmul_transposed", num_groups=E, width_in=2 * F, width=D
        ),
    )
    for name, width_in, width in (
        ("gradient of down", F, D),
        ("gradient of gate and up", D, 2 * F),
    ):
        shape = OuterShape(num_groups=E, width_in=width_in, width=width)
        yield Pass(
            name,
            outer,
            (_of(R, width_in), _of(R, width), _of(E, dtype=jnp.int32)),
            shape,
            Work(
                flops=2 * R * width_in * width,
                num_bytes=2 * (R * (width_in + width) + E * width_in * width),
            ),
        )


@functools.cache
def plan_scalars(
    device_kind: str, num_rows: int, sizes: tuple[int, ...]
) -> dict[int, np.ndarray]:
    """Returns the leaves of the plan of group sizes: a kernel's first operands."""
    sizes_E = jnp.asarray(sizes, jnp.int32)
    end_E = jnp.cumsum(sizes_E)
    with hardware.pretend(device_kind):
        plan = tpu.plan_rows(end_E - sizes_E, end_E, num_rows=num_rows)
    return dict(enumerate(map(np.asarray, jax.tree.leaves(plan))))


def run_with_tiles(tiles: Tiles, run: Callable, *arguments: jax.Array):
    """Runs one of the six with these tiles instead of those of its shape."""
    with use_tiles(tiles):
        return run(*arguments)


def gate_up(x_RD, gate_up_EDF, sizes_E, weights_R):
    """Returns the weighted hidden rows, and gate and up as they were."""
    return fused_matmul(
        x_RD,
        gate_up_EDF,
        plan_rows(sizes_E, num_rows=x_RD.shape[0], implementation="tpu"),
        SWIGLU_AND_INPUTS,
        row_weights_R=weights_R,
    )


def down(weighted_RF, down_EFD, sizes_E):
    """Returns the layer's rows."""
    return grouped_matmul(weighted_RF, down_EFD, sizes_E, implementation="tpu")


def hidden_gradient(grad_RD, down_EFD, sizes_E, inputs_RF, weights_R):
    """Returns gradients of gate and up, weighted hidden rows, weights' gradients."""
    return fused_matmul(
        grad_RD,
        down_EFD,
        plan_rows(sizes_E, num_rows=grad_RD.shape[0], implementation="tpu"),
        SWIGLU_BACKWARD,
        operands=[inputs_RF],
        row_weights_R=weights_R,
        is_transposed=True,
    )


def row_gradient(grad_RF, gate_up_EDF, sizes_E):
    """Returns the gradient of the layer's input."""
    return grouped_matmul_transposed(
        grad_RF, gate_up_EDF, sizes_E, implementation="tpu"
    )


def outer(x_RD, y_RF, sizes_E):
    """Returns the gradient of a projection's matrices."""
    return grouped_outer(x_RD, y_RF, sizes_E, dtype=jnp.bfloat16, implementation="tpu")


def _product(
    name: str,
    run: Callable,
    operands: tuple[jax.ShapeDtypeStruct, ...],
    shape: ProductShape,
) -> Pass:
    x_RD, w_EDF, *more = operands
    R, sizes_E = x_RD.shape[0], _of(shape.num_groups, dtype=jnp.int32)
    streamed = R * shape.width * (shape.slices_read + shape.slices_written)
    work = Work(
        flops=2 * R * shape.width_in * shape.width * shape.product_slices,
        num_bytes=2 * (x_RD.size + w_EDF.size + streamed),
    )
    return Pass(name, run, (x_RD, w_EDF, sizes_E, *more), shape, work)


def _of(*shape: int, dtype: jax.typing.DTypeLike = jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype)
