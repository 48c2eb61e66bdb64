# SPDX-License-Identifier: Apache-2.0
"""The definitions in jnp, at E times the useful work: what the tests believe."""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.grouped_matmul.quantization import Quantized, rescale, sum_dtype


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Edges:
    """First row of each group, and the row after its last; i32."""

    begin_E: jax.Array
    end_E: jax.Array


def plan_rows(begin_E: jax.Array, end_E: jax.Array, **_: object) -> Edges:
    """Returns the groups' edges: the definitions need no more."""
    return Edges(begin_E, end_E)


def unsupported(a: jax.Array, b: jax.Array) -> None:
    """Returns None: the definitions take any arrays."""


def grouped_matmul(x_RD: jax.Array, w_EDF: jax.Array, edges: Edges) -> jax.Array:
    """Returns out[r, f] = sum_d x[r, d] w[e(r), d, f]; see the package."""
    return _matmul("ERD,EDF->ERF", x_RD, w_EDF, edges)


def grouped_matmul_transposed(
    x_RF: jax.Array, w_EDF: jax.Array, edges: Edges
) -> jax.Array:
    """Returns out[r, d] = sum_f x[r, f] w[e(r), d, f]; see the package."""
    return _matmul("ERF,EDF->ERD", x_RF, w_EDF, edges)


def grouped_outer(
    x_RD: jax.Array, y_RF: jax.Array, edges: Edges, dtype: jax.typing.DTypeLike
) -> jax.Array:
    """Returns out[e, d, f] = sum over the rows r of e of x[r, d] y[r, f]."""
    owner_ER1 = _owners(edges, num_rows=x_RD.shape[0])
    x_ERD = jnp.where(owner_ER1, x_RD[None], 0)
    y_ERF = jnp.where(owner_ER1, y_RF[None], 0)
    return _einsum("ERD,ERF->EDF", x_ERD, y_ERF).astype(dtype)


def _matmul(
    equation: str,
    x_RD: jax.Array | Quantized,
    w_EDF: jax.Array | Quantized,
    edges: Edges,
) -> jax.Array:
    owner_ER1 = _owners(edges, num_rows=x_RD.shape[0])
    # Masked before and after, as a product with 0 would keep the NaNs of other groups.
    if isinstance(x_RD, Quantized):
        assert isinstance(w_EDF, Quantized)
        sums_ERF = jnp.einsum(
            equation,
            jnp.where(owner_ER1, x_RD.values[None], 0),
            w_EDF.values,
            preferred_element_type=sum_dtype(x_RD.values.dtype),
        )
        scales_1R1, scales_E1F = x_RD.scales[None, :, None], w_EDF.scales[:, None]
        out_ERF = rescale(sums_ERF, scales_1R1, scales_E1F)
    else:
        assert not isinstance(w_EDF, Quantized)
        x_ERD = jnp.where(owner_ER1, x_RD[None], 0)
        out_ERF = _einsum(equation, x_ERD, w_EDF.astype(x_RD.dtype))
    return jnp.sum(jnp.where(owner_ER1, out_ERF, 0), axis=0).astype(x_RD.dtype)


def _einsum(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jnp.einsum(equation, a, b, precision=jax.lax.Precision.HIGHEST)


def _owners(edges: Edges, *, num_rows: int) -> jax.Array:
    """Returns bool[E, R, 1]: whether row r belongs to group e."""
    row_1R = jnp.arange(num_rows)[None]
    owner_ER = (row_1R >= edges.begin_E[:, None]) & (row_1R < edges.end_E[:, None])
    return owner_ER[:, :, None]
