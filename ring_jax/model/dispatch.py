# SPDX-License-Identifier: Apache-2.0
"""From tokens to rows sorted by expert, and back.

Nothing scatters into an array of rows, forward or backward: a scatter-add would
serialise. What moves rows is a gather, and so is its gradient; what sums a token's rows
gathers them first, those of a window on TPUs into the order of tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.segment_sum import default_implementation, segment_sum


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Routes:
    """Where each routed row goes: row r of the sorted order is pair `order_R[r]`."""

    order_R: jax.Array
    """i32, flattened (token, slot) pair of each sorted row."""
    row_MA: jax.Array
    """i32, sorted row of each pair; outside the rows for a pair that has none."""
    group_sizes_E: jax.Array
    """i32, rows of each expert; the rows after them have none."""
    by_token: "TokenOrder | None" = None
    """Of a window, where some pairs may have no row."""

    @property
    def num_slots(self) -> int:
        """A, experts of a token."""
        return self.row_MA.shape[1]

    @property
    def is_window(self) -> bool:
        """Whether some pairs may have no row."""
        return self.by_token is not None

    def window(self, first: jax.Array, size: int) -> "Routes":
        """Returns the routes of `size` rows from row `first` on, alone."""
        padded = jnp.pad(self.order_R, (0, size))
        ends_E = jnp.cumsum(self.group_sizes_E)
        starts_E = ends_E - self.group_sizes_E
        inside = (jnp.clip(edge - first, 0, size) for edge in (ends_E, starts_E))
        ends_E, starts_E = inside
        order_R = jax.lax.dynamic_slice_in_dim(padded, first, size)
        row_MA, sizes_E = self.row_MA - first, ends_E - starts_E
        by_token = _order_by_token(order_R, row_MA, jnp.sum(sizes_E))
        return Routes(order_R, row_MA, sizes_E, by_token)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenOrder:
    """Where each token's rows are, if rows are put into the order of tokens."""

    row_R: jax.Array
    """i32, the sorted row that comes here; those of no expert come last."""
    ends_M: jax.Array
    """i32, the place after each token's last row."""


def plan_routes(expert_ids_MA: jax.Array, *, num_experts: int) -> Routes:
    """Sorts pairs by expert.

    Args:
      expert_ids_MA: i32[M, A]; `num_experts` for a pair that visits none.
      num_experts: E.
    """
    (M, A), R = expert_ids_MA.shape, expert_ids_MA.size
    expert_ids_R = _by_slot(expert_ids_MA)
    pair_R = (jnp.arange(A)[:, None] + A * jnp.arange(M)[None]).reshape(R)
    # One packed integer sorts faster than a pair, and ties keep token order.
    assert (num_experts + 1) * R < 2**31, "routed rows per device overflow the sort key"
    order_R = jnp.sort(expert_ids_R * R + pair_R) % R
    row_MA = jnp.argsort(_place_by_slot(order_R, (M, A))).reshape(A, M).T
    is_expert_RE = expert_ids_R[:, None] == jnp.arange(num_experts)[None]
    return Routes(order_R, row_MA, jnp.sum(is_expert_RE, axis=0, dtype=jnp.int32))


def _by_slot(values_MA: jax.Array) -> jax.Array:
    """Flattens values of pairs, those of the first slots first.

    A TPU lays out [M, A] with tokens in lanes. Flattened in the other order, six slots
    of 65,536 tokens are 4.2 MB of code, which compile 30 times as long.
    """
    return values_MA.T.reshape(-1)


def _place_by_slot(pair_R: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns where `_by_slot` puts pairs, of all those of [M, A]."""
    M, A = shape
    return pair_R % A * M + pair_R // A


def _order_by_token(
    order_R: jax.Array, row_MA: jax.Array, num_rows: jax.Array
) -> TokenOrder:
    """Orders the first `num_rows` of the sorted rows by pair, and so by token."""
    is_row_R = jnp.arange(order_R.size) < num_rows
    # An unstable sort is the quicker one, and no two rows are of one pair.
    row_R = jnp.argsort(jnp.where(is_row_R, order_R, row_MA.size), stable=False)
    is_here_MA = (row_MA >= 0) & (row_MA < num_rows)
    num_rows_M = jnp.sum(is_here_MA, axis=1, dtype=jnp.int32)
    return TokenOrder(row_R, jnp.cumsum(num_rows_M))


@jax.custom_vjp
def dispatch(x_MD: jax.Array, routes: Routes) -> jax.Array:
    """Copies each token's row to the sorted rows of its experts; [R, D]."""
    return x_MD[routes.order_R // routes.num_slots]


def _dispatch_forward(x_MD: jax.Array, routes: Routes) -> tuple[jax.Array, Routes]:
    return dispatch(x_MD, routes), routes


def _dispatch_backward(routes: Routes, grad_RD: jax.Array) -> tuple:
    return _sum_slots(grad_RD, routes, out_dtype=grad_RD.dtype), None


dispatch.defvjp(_dispatch_forward, _dispatch_backward)


@jax.custom_vjp
def combine(y_RD: jax.Array, routes: Routes) -> jax.Array:
    """Sums each token's A rows in float32; [M, D]. The transpose of `dispatch`."""
    return _sum_slots(y_RD, routes, out_dtype=jnp.float32)


def _combine_forward(y_RD: jax.Array, routes: Routes) -> tuple[jax.Array, tuple]:
    return combine(y_RD, routes), (routes, y_RD[:0])


def _combine_backward(residuals: tuple, grad_MD: jax.Array) -> tuple:
    routes, empty_0D = residuals
    return dispatch(grad_MD.astype(empty_0D.dtype), routes), None


combine.defvjp(_combine_forward, _combine_backward)


def _sum_slots(
    y_RD: jax.Array, routes: Routes, *, out_dtype: jax.typing.DTypeLike
) -> jax.Array:
    """Sums each token's rows in float32.

    Of a window most pairs have no row: on TPUs only the rows that there are move.
    """
    if routes.by_token is not None and default_implementation(y_RD) == "tpu":
        by_token = routes.by_token
        sorted_RD = y_RD.at[by_token.row_R].get(mode="promise_in_bounds")
        return segment_sum(sorted_RD, by_token.ends_M, out_dtype=out_dtype)
    y_MAD = _of_pairs(y_RD, routes)
    return jnp.sum(y_MAD.astype(jnp.float32), axis=1).astype(out_dtype)


def _of_pairs(values_R: jax.Array, routes: Routes) -> jax.Array:
    if routes.is_window:
        return gather_rows(values_R, routes.row_MA)
    return values_R[routes.row_MA]


def gather_rows(values_R: jax.Array, row: jax.Array) -> jax.Array:
    """Returns the rows of the given numbers, 0 for a number outside of them."""
    found = values_R.at[row].get(mode="clip")
    is_inside = (row >= 0) & (row < values_R.shape[0])
    return jnp.where(
        is_inside.reshape(row.shape + (1,) * (values_R.ndim - 1)), found, 0
    )


@jax.custom_vjp
def sort_pairs(values_MA: jax.Array, routes: Routes) -> jax.Array:
    """Puts one value a pair into the order of the sorted rows; [R]."""
    return _by_slot(values_MA)[_place_by_slot(routes.order_R, values_MA.shape)]


def _sort_pairs_forward(values_MA: jax.Array, routes: Routes):
    return sort_pairs(values_MA, routes), routes


def _sort_pairs_backward(routes: Routes, grad_R: jax.Array) -> tuple:
    return _of_pairs(grad_R, routes), None


sort_pairs.defvjp(_sort_pairs_forward, _sort_pairs_backward)
