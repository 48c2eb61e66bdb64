# SPDX-License-Identifier: Apache-2.0
"""Grouped products that `tpu_grouped_matmul` compiles: ours, and the peers'.

A contestant is a function that the compiler's process imports, the shapes it takes,
and the values of its kernel's operands in scalar memory, on which its time depends.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.megablox.gmm import (
    gmm,
    make_group_metadata,
    tgmm,
)

from pallas_kernels.expert_mlp.passes import MODELS, passes, plan_scalars
from pallas_kernels.expert_mlp.passes import Pass as LayerPass
from pallas_kernels.grouped_matmul import (
    grouped_matmul,
    grouped_matmul_transposed,
    grouped_outer,
)
from pallas_kernels.schedule import CHIPS, Kernel, Work

Pass = Literal["forward", "dlhs", "drhs"]
PASSES: tuple[Pass, ...] = ("forward", "dlhs", "drhs")
NUM_EXPERTS = 64
LAYER_ORDER: tuple[tuple[str, Pass], ...] = (
    ("gate+up", "forward"),
    ("down", "forward"),
    ("down", "dlhs"),
    ("gate+up", "dlhs"),
    ("down", "drhs"),
    ("gate+up", "drhs"),
)
LAYER: dict[tuple[str, Pass], LayerPass] = dict(
    zip(LAYER_ORDER, passes(MODELS["ling_lite"]), strict=True)
)
"""Ling-lite's expert layer, forward and backward."""

type Scalars = dict[int, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Shape:
    """R rows, and a matrix [width_in, width_out] for each expert."""

    num_rows: int
    width_in: int
    width_out: int
    num_experts: int = NUM_EXPERTS

    def work(self) -> Work:
        """Returns the useful FLOPs, and operands and result once each in bfloat16."""
        matrices = self.num_experts * self.width_in * self.width_out
        rows = self.num_rows * (self.width_in + self.width_out)
        return Work(
            flops=2 * self.num_rows * self.width_in * self.width_out,
            num_bytes=2 * (matrices + rows),
        )

    def arguments(self, pass_: Pass) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Returns x or the result's gradient, matrices or that gradient, sizes."""
        R, E = self.num_rows, self.num_experts
        x_RD = _bfloat16(R, self.width_in)
        y_RF = _bfloat16(R, self.width_out)
        w_EDF = _bfloat16(E, self.width_in, self.width_out)
        sizes_E = jax.ShapeDtypeStruct((E,), jnp.int32)
        return {
            "forward": (x_RD, w_EDF, sizes_E),
            "dlhs": (y_RF, w_EDF, sizes_E),
            "drhs": (x_RD, y_RF, sizes_E),
        }[pass_]


def _bfloat16(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
    """One kernel to compile."""

    family: str
    variant: str = ""
    fn: Callable
    arguments: tuple[jax.ShapeDtypeStruct, ...]
    bind: Callable[[Kernel, np.ndarray], Scalars]
    """(kernel, group sizes) -> its operands in scalar memory."""
    work: Work
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    python: str | None = None
    """Interpreter of the peer's environment; None: this one."""

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.family} {self.variant}".strip()


def ours(shape: Shape, pass_: Pass, chip: str) -> Contestant:
    """Returns our kernel."""
    fn = {
        "forward": functools.partial(grouped_matmul, implementation="tpu"),
        "dlhs": functools.partial(grouped_matmul_transposed, implementation="tpu"),
        "drhs": functools.partial(
            grouped_outer, dtype=jnp.bfloat16, implementation="tpu"
        ),
    }[pass_]
    return Contestant(
        family="ours",
        fn=fn,
        arguments=shape.arguments(pass_),
        bind=functools.partial(_bind_ours, chip, shape.num_rows),
        work=shape.work(),
    )


def ours_in_layer(projection: str, pass_: Pass, chip: str) -> Contestant:
    """Returns the kernel that Ling-lite's expert layer has, with what it does besides.

    That is SwiGLU forward and backward, and the routing weights'; the bound counts what
    that reads and writes.
    """
    kernel = LAYER[projection, pass_]
    return Contestant(
        family="ours",
        fn=kernel.run,
        arguments=kernel.arguments,
        bind=functools.partial(_bind_ours, chip, MODELS["ling_lite"].num_rows),
        work=kernel.work,
    )


def _bind_ours(chip: str, num_rows: int, kernel: Kernel, sizes_E: np.ndarray):
    del kernel
    kind = CHIPS[chip].device_kind
    return plan_scalars(kind, num_rows, tuple(sizes_E.tolist()))


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Megablox's tile of rows, of the contracted width, and of the result's."""

    rows: int
    width_in: int
    width_out: int
    needs_more_vmem: bool = False
    """Without a larger limit the compiler refuses it."""

    @property
    def options(self) -> dict[str, str]:
        """Compiler options that it needs."""
        limit = {"xla_tpu_scoped_vmem_limit_kib": "65536"}
        return limit if self.needs_more_vmem else {}

    def __str__(self) -> str:
        return f"{self.rows}x{self.width_in}x{self.width_out}"

    def astuple(self) -> tuple[int, int, int]:
        """Returns the sizes as megablox takes them."""
        return self.rows, self.width_in, self.width_out


def megablox_product(shape: Shape, pass_: Pass, tiling: Tiling) -> Contestant:
    """Returns jax's megablox with one tiling."""
    fn = {
        "forward": megablox_forward,
        "dlhs": megablox_dlhs,
        "drhs": megablox_drhs,
    }[pass_]
    return Contestant(
        family="megablox",
        variant=str(tiling),
        fn=functools.partial(fn, tiling=tiling.astuple()),
        arguments=shape.arguments(pass_),
        bind=functools.partial(_bind_tiles, tiling.rows, pass_),
        work=shape.work(),
        options=tiling.options,
    )


def megablox_forward(x_RD, w_EDF, sizes_E, *, tiling):
    """The product, in bfloat16."""
    return gmm(x_RD, w_EDF, sizes_E, jnp.bfloat16, tiling)


def megablox_dlhs(y_RF, w_EDF, sizes_E, *, tiling):
    """The transposed product."""
    return gmm(y_RF, w_EDF, sizes_E, jnp.bfloat16, tiling, transpose_rhs=True)


def megablox_drhs(x_RD, y_RF, sizes_E, *, tiling):
    """The outer product, which takes x transposed and turns it back."""
    return tgmm(x_RD.T, y_RF, sizes_E, jnp.bfloat16, tiling)


def _bind_tiles(
    tile_rows: int, pass_: Pass, kernel: Kernel, sizes_E: np.ndarray
) -> Scalars:
    del kernel
    tiles, num_tiles = _metadata(tuple(sizes_E.tolist()), tile_rows, pass_ == "drhs")
    return {0: num_tiles, **tiles, 4: np.zeros(1, np.int32)}


@functools.cache
def _metadata(
    sizes: tuple[int, ...], tile_rows: int, visit_empty_groups: bool
) -> tuple[Scalars, np.ndarray]:
    arrays, num_tiles = make_group_metadata(
        group_sizes=jnp.asarray(sizes, jnp.int32),
        m=sum(sizes),
        tm=tile_rows,
        start_group=jnp.int32(0),
        num_nonzero_groups=len(sizes),
        visit_empty_groups=visit_empty_groups,
    )
    tiles = dict(enumerate(map(np.asarray, arrays), start=1))
    return tiles, np.asarray(num_tiles).reshape(1)


def ragged_dot(shape: Shape, pass_: Pass) -> Contestant:
    """Returns `jax.lax.ragged_dot` or one of its gradients."""
    fn = {"forward": ragged_forward, "dlhs": ragged_dlhs, "drhs": ragged_drhs}[pass_]
    return Contestant(
        family="ragged_dot",
        fn=fn,
        arguments=shape.arguments(pass_),
        bind=functools.partial(_bind_ragged, pass_),
        work=shape.work(),
    )


def ragged_forward(x_RD, w_EDF, sizes_E):
    """The product."""
    return jax.lax.ragged_dot(x_RD, w_EDF, sizes_E)


def ragged_dlhs(y_RF, w_EDF, sizes_E):
    """The gradient with respect to the rows, as jax derives it."""
    x_RD = jax.ShapeDtypeStruct((y_RF.shape[0], w_EDF.shape[1]), y_RF.dtype)
    multiply = functools.partial(_ragged_by_rows, w_EDF, sizes_E)
    return jax.linear_transpose(multiply, x_RD)(y_RF)[0]


def ragged_drhs(x_RD, y_RF, sizes_E):
    """The gradient with respect to the matrices."""
    shape = (sizes_E.shape[0], x_RD.shape[1], y_RF.shape[1])
    multiply = functools.partial(_ragged_by_matrices, x_RD, sizes_E)
    w_EDF = jax.ShapeDtypeStruct(shape, x_RD.dtype)
    return jax.linear_transpose(multiply, w_EDF)(y_RF)[0]


def _ragged_by_rows(w_EDF, sizes_E, x_RD):
    return jax.lax.ragged_dot(x_RD, w_EDF, sizes_E)


def _ragged_by_matrices(x_RD, sizes_E, w_EDF):
    return jax.lax.ragged_dot(x_RD, w_EDF, sizes_E)


def _bind_ragged(pass_: Pass, kernel: Kernel, sizes_E: np.ndarray) -> Scalars:
    """Binds the kernel that XLA makes of it, which is megablox with a tile of its own.

    The tile follows from the number of visits, and the number of tiles is also given
    where megablox has the first group.
    """
    visits = kernel.program.scalar_sizes.get(2, 0)
    num_tiles = visits - len(sizes_E) + 1
    if num_tiles <= 0 or sizes_E.sum() % num_tiles:
        raise ValueError(f"{kernel.name} has no operands like megablox's")
    tile_rows = int(sizes_E.sum()) // num_tiles
    tiles, num_visits = _metadata(tuple(sizes_E.tolist()), tile_rows, pass_ == "drhs")
    return {0: num_visits, **tiles, 4: num_visits}


def tokamax_v1(shape: Shape, pass_: Pass, tiling: Tiling, *, python: str) -> Contestant:
    """Returns tokamax's first version; it takes megablox's operands."""
    fn = functools.partial(
        call, "benchmarks.tokamax_peer", f"{pass_}_v1", tiling=tiling.astuple()
    )
    return Contestant(
        family="tokamax v1",
        variant=str(tiling),
        fn=fn,
        arguments=shape.arguments(pass_),
        bind=functools.partial(_bind_tiles, tiling.rows, pass_),
        work=shape.work(),
        options=tiling.options,
        python=python,
    )


def tokamax_v2(shape: Shape, pass_: Pass, *, python: str) -> Contestant:
    """Returns tokamax's gmm_v2; its kernels work out the tiles themselves."""
    return Contestant(
        family="tokamax gmm_v2",
        fn=functools.partial(call, "benchmarks.tokamax_peer", f"{pass_}_v2"),
        arguments=shape.arguments(pass_),
        bind=_bind_sizes,
        work=shape.work(),
        python=python,
    )


def call(module: str, name: str, *args, **kwargs):
    """Calls a function of a module that only the compiler's process can import."""
    return getattr(importlib.import_module(module), name)(*args, **kwargs)


def _bind_sizes(kernel: Kernel, sizes_E: np.ndarray) -> Scalars:
    del kernel
    return {0: sizes_E.astype(np.int32), 1: np.zeros(1, np.int32)}
