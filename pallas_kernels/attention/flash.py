# SPDX-License-Identifier: Apache-2.0
"""What the implementations share that hold no square of queries and keys.

The softmax is summed block by block, and formed again for the gradients from the log of
its denominators (FlashAttention, arXiv:2205.14135 and 2307.08691).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.attention.context import Context, Positions

type Attend = Callable[..., jax.Array]
"""context, block, query_BKGTH, scaled, key_BKTH, value_BKTH, starts_BT -> out_BKGTH."""
type Forward = Callable[..., tuple[jax.Array, jax.Array]]
type Backward = Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


def attend_in_blocks(
    attend: Attend,
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    segments_BT: jax.Array,
    *,
    context: Context,
    block: int,
) -> jax.Array:
    """Calls `attend` with heads in front of positions, and whole blocks of those.

    Heads in front make every block of a head one matrix; arrays are small here, and on
    a TPU whatever made them writes them so.
    """
    B, T, N, H = query_BTNH.shape
    # Chunks of a split row are whole blocks (`block_of`), and nothing is padded.
    K, padding = key_BTKH.shape[2], ((0, 0), (0, -T % block))
    query_BTNH, key_BTKH, value_BTKH = (
        jnp.pad(x, (*padding, (0, 0), (0, 0)))
        for x in (query_BTNH * H**-0.5, key_BTKH, value_BTKH)
    )
    query_BTKGH = query_BTNH.reshape(B, -1, K, N // K, H)
    segments_BS = context.row(jnp.pad(segments_BT, padding))
    out_BKGTH = attend(
        context,
        block,
        query_BTKGH.transpose(0, 2, 3, 1, 4),
        key_BTKH.transpose(0, 2, 1, 3),
        value_BTKH.transpose(0, 2, 1, 3),
        context.own(document_starts(segments_BS)),
    )
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, -1, N, H)[:, :T]


def block_of(num_positions: int, num_keys: int, *, largest: int, unit: int = 1) -> int:
    """Returns the positions of a block, of queries and of keys.

    Args:
      num_positions: T, of queries. More keys than those mean that rows are split, and
        that the queries are two chunks: blocks do not reach from one into the other.
      num_keys: S.
      largest: a multiple of `unit`.
      unit: what blocks are multiples of; chunks must be, too.
    """
    if num_keys == num_positions:
        return min(largest, -(-num_positions // unit) * unit)
    chunk = num_positions // 2
    return max(size for size in range(unit, largest + 1, unit) if chunk % size == 0)


def document_starts(segments_BT: jax.Array) -> jax.Array:
    """Returns i32[B, T], where the document of each position begins.

    So position t sees the keys from its start to itself, and all blocks of keys that a
    block of queries needs are neighbours. A position of padding (segment 0) is a
    document of its own: it sees one key, and costs no block but its own.
    """
    B, T = segments_BT.shape
    is_new_BT = jnp.diff(segments_BT, axis=1, prepend=-1) != 0
    is_new_BT |= segments_BT == 0
    position_BT = jax.lax.broadcasted_iota(jnp.int32, (B, T), 1)
    # No position lies before 0, which starts a document whatever its segment.
    return jax.lax.cummax(jnp.where(is_new_BT, position_BT, 0), axis=1)


@dataclasses.dataclass(frozen=True)
class Spans:
    """Which positions of its row each query sees: from a start to its own."""

    start_BT: jax.Array
    query_J: Positions
    """i32, where in its row each block of queries begins; rising."""
    key_J: np.ndarray
    """i32, where each block of keys begins, in the order in which parts have them."""

    @property
    def block(self) -> int:
        """Positions of a block."""
        return self.start_BT.shape[1] // len(self.query_J)


def with_gradients(forward: Forward, backward: Backward) -> Attend:
    """Makes an implementation's attention differentiable, once, in reverse mode.

    Keys and values of whole rows are gathered in each pass: kept are a device's own.
    What is kept of the results is named "attention" for policies of `jax.checkpoint`.

    Args:
      forward: query, key_JBKSH and value_JBKSH of all J parts of the rows, `Spans` ->
        output and the log of the softmax's denominators, which with the inputs is all
        that is kept.
      backward: those four, both results and the output's gradient -> gradients of
        query, key and value.

    Returns:
      What `attend_in_blocks` calls.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
    def attend(context: Context, block: int, *inputs: jax.Array) -> jax.Array:
        return keep(context, block, *inputs)[0]

    def keep(context: Context, block: int, *inputs: jax.Array) -> tuple:
        results = forward(*_of_rows(context, block, *inputs))
        out, log_total = (checkpoint_name(result, "attention") for result in results)
        return out, (*inputs, out, log_total)

    def pull_back(context: Context, block: int, kept: tuple, grad: jax.Array) -> tuple:
        *inputs, out, log_total = kept
        grad_query, *grad_parts = backward(
            *_of_rows(context, block, *inputs), out, log_total, grad
        )
        return grad_query, *map(context.own_sum, grad_parts), None

    attend.defvjp(keep, pull_back)
    return attend


def _of_rows(
    context: Context,
    block: int,
    query_BKGTH: jax.Array,
    key_BKTH: jax.Array,
    value_BKTH: jax.Array,
    start_BT: jax.Array,
) -> tuple:
    """Returns what `forward` takes of a device's own inputs."""
    T = start_BT.shape[1]
    spans = Spans(
        start_BT,
        context.own_positions(T, every=block),
        context.positions(T)[::block],
    )
    return query_BKGTH, context.parts(key_BKTH), context.parts(value_BKTH), spans
