# SPDX-License-Identifier: Apache-2.0
"""Rows and matrices as 8-bit numbers times a float32 scale.

A row of x has one scale, and so has a column of each matrix, so that a scale is outside
the sum:

    sum_d x[r, d] w[e, d, f] ~ s[r] t[e, f] sum_d a[r, d] b[e, d, f]

where a = round(x / s), s = max_d |x[r, d]| / m, and m is the largest number of the
8-bit type: 127, 448 (e4m3) or 57344 (e5m2). Sums of int8 products are exact in int32;
those of float8 products are rounded as float32 sums are.

All implementations of the products take the same operands from here.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

EightBitType = Literal["int8", "float8_e4m3fn", "float8_e5m2"]
Rounding = Literal["nearest", "stochastic"]
EIGHT_BIT_TYPES: tuple[EightBitType, ...] = ("int8", "float8_e4m3fn", "float8_e5m2")
ROUNDINGS: tuple[Rounding, ...] = ("nearest", "stochastic")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantization:
    """How the operands of grouped products are quantised; a field of a `RowPlan`.

    Gradients are straight-through: those of the products of the operands as they were
    before, which is what is kept for the backward pass. `grouped_outer`, the gradient
    of the weights, is never quantised.
    """

    dtype: EightBitType = dataclasses.field(default="int8", metadata={"static": True})
    """Of both operands of `grouped_matmul`."""
    gradient_dtype: EightBitType | None = dataclasses.field(
        default=None, metadata={"static": True}
    )
    """Of both operands of `grouped_matmul_transposed`, which is the gradient of rows;
    None: it is not quantised."""
    rounding: Rounding = dataclasses.field(default="nearest", metadata={"static": True})
    """To the nearest, ties to even; or up as often as the number is near the upper
    neighbour, which is right on average."""
    key: jax.Array | None = None
    """PRNG key of stochastic rounding. Products of equal shapes over one plan draw the
    same numbers, so that a product computed again is the same."""

    @property
    def dtypes(self) -> tuple[EightBitType, ...]:
        """All types that products are computed in."""
        return (self.dtype, *([self.gradient_dtype] if self.gradient_dtype else []))

    def operands(
        self, x_RD: jax.Array, w_EDF: jax.Array, *, contracted: int
    ) -> "tuple[jax.Array, jax.Array] | tuple[Quantized, Quantized]":
        """Quantises what a product multiplies, over dimension `contracted` of w."""
        dtype = self.gradient_dtype if contracted == 2 else self.dtype
        if dtype is None:
            return x_RD, w_EDF
        keys = [None, None]
        if self.rounding == "stochastic":
            assert self.key is not None, "`plan_rows` asks for one"
            key = self.key
            # Draws of one product must not be those of the next.
            for number in (contracted, *w_EDF.shape[1:]):
                key = jax.random.fold_in(key, number)
            keys = jax.random.split(key)
        return (
            quantize(x_RD, dtype, dimension=1, key=keys[0]),
            quantize(w_EDF, dtype, dimension=contracted, key=keys[1]),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """An array as 8-bit values times scales."""

    values: jax.Array
    scales: jax.Array
    """f32, the shape of the values without the dimension that shares a scale."""
    dtype: jnp.dtype = dataclasses.field(metadata={"static": True})
    """Of the array that it stands for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.values.shape


def quantize(
    array: jax.Array,
    dtype: EightBitType,
    *,
    dimension: int,
    key: jax.Array | None = None,
) -> Quantized:
    """Writes an array as 8-bit values times one scale for each line of a dimension.

    What rounding errs by, of a line whose largest number is a: to the nearest int8 at
    most a / 254; to the nearest e4m3 at most 1 / 16 of the number itself, or
    a / 458752 if that is more. Stochastic rounding errs by at most twice as much, and
    by 0 on average. A line with a NaN or an infinity is all NaN. A scale is at least
    the smallest normal float32, which the numbers of a line below 1e-33 may err by.

    Args:
      array: float, of any shape.
      dtype: of the values.
      dimension: along which all numbers have the same scale.
      key: of stochastic rounding; None: to the nearest, ties to even.
    """
    array_f32 = array.astype(jnp.float32)
    info = jnp.iinfo(dtype) if dtype == "int8" else jnp.finfo(dtype)
    largest = float(info.max)
    absmax = jnp.max(jnp.abs(array_f32), axis=dimension, keepdims=True, initial=0.0)
    # No line divides by 0, nor by what a chip flushes to 0.
    scales = jnp.maximum(absmax / largest, jnp.finfo(jnp.float32).tiny)
    # int8 has no NaN, and XLA's maximum on a CPU misses some (jax 0.12.0.1).
    is_finite = jnp.all(jnp.isfinite(array_f32), axis=dimension, keepdims=True)
    scales = jnp.where(is_finite, scales, jnp.nan)
    values = jnp.clip(array_f32 / scales, -largest, largest)
    values = _round(values, _spacing(values, dtype), key)
    return Quantized(values.astype(dtype), jnp.squeeze(scales, dimension), array.dtype)


def dot(
    x_CD: jax.Array | Quantized, w_DF: jax.Array | Quantized, *, contracted: int
) -> jax.Array:
    """Multiplies some rows by one matrix, over its dimension `contracted`; f32."""
    dimensions = (((1,), (contracted,)), ((), ()))
    if isinstance(x_CD, Quantized):
        assert isinstance(w_DF, Quantized)
        sums_CF = jax.lax.dot_general(
            x_CD.values,
            w_DF.values,
            dimensions,
            preferred_element_type=sum_dtype(x_CD.values.dtype),
        )
        return rescale(sums_CF, x_CD.scales[:, None], w_DF.scales[None])
    assert not isinstance(w_DF, Quantized)
    return jax.lax.dot_general(
        x_CD, w_DF, dimensions, preferred_element_type=jnp.float32
    )


def sum_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """Returns the type of a sum of products: int32 of int8, else float32."""
    return jnp.dtype(jnp.int32 if dtype == jnp.int8 else jnp.float32)


def rescale(
    sums: jax.Array, row_scales: jax.Array, column_scales: jax.Array
) -> jax.Array:
    """Returns what a product of 8-bit values stands for; everywhere in this order."""
    return sums.astype(jnp.float32) * row_scales * column_scales


def _spacing(values: jax.Array, dtype: EightBitType) -> jax.Array | float:
    """Returns the distance from each value to its neighbours in a type, away from 0."""
    if dtype == "int8":
        return 1.0
    info = jnp.finfo(dtype)
    # The exponent's bits alone are a power of two: the largest that is not above.
    bits = jax.lax.bitcast_convert_type(values, jnp.int32) & 0x7F800000
    power = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.maximum(power, 2.0**info.minexp) * 2.0**-info.nmant


def _round(
    values: jax.Array, spacing: jax.Array | float, key: jax.Array | None
) -> jax.Array:
    # Spacings are powers of two: the quotient is exact, and so is what is left of it.
    steps = values / spacing
    if key is None:
        return jnp.round(steps) * spacing
    below = jnp.floor(steps)
    is_up = jax.random.uniform(key, steps.shape) < steps - below
    return (below + is_up) * spacing
