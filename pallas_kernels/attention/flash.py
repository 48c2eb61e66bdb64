# SPDX-License-Identifier: Apache-2.0
"""What the implementations share that hold no square of queries and keys.

The softmax is summed block by block, and formed again for the gradients from the log of
its denominators (FlashAttention, arXiv:2205.14135 and 2307.08691).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

type Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
"""query_BKGTH, scaled, key_BKSH, value_BKSH, starts_BT -> out_BKGTH."""
type Forward = Callable[..., tuple[jax.Array, jax.Array]]
type Backward = Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


def attend_in_blocks(
    attend: Attend,
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    segments_BT: jax.Array,
    *,
    block: int,
) -> jax.Array:
    """Calls `attend` with heads in front of positions, and whole blocks of those.

    Heads in front make every block of a head one matrix; arrays are small here, and on
    a TPU whatever made them writes them so.
    """
    B, T, N, H = query_BTNH.shape
    K, padding = key_BTKH.shape[2], ((0, 0), (0, -T % block))
    query_BTNH, key_BTKH, value_BTKH = (
        jnp.pad(x, (*padding, (0, 0), (0, 0)))
        for x in (query_BTNH * H**-0.5, key_BTKH, value_BTKH)
    )
    query_BTKGH = query_BTNH.reshape(B, -1, K, N // K, H)
    out_BKGTH = attend(
        query_BTKGH.transpose(0, 2, 3, 1, 4),
        key_BTKH.transpose(0, 2, 1, 3),
        value_BTKH.transpose(0, 2, 1, 3),
        document_starts(jnp.pad(segments_BT, padding)),
    )
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, -1, N, H)[:, :T]


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


def with_gradients(forward: Forward, backward: Backward) -> Callable[..., jax.Array]:
    """Makes an implementation's attention differentiable, once, in reverse mode.

    Args:
      forward: query, key, value, starts -> output and the log of the softmax's
        denominators, which with the inputs is all that is kept.
      backward: those six and the output's gradient -> gradients of query, key, value.

    Returns:
      query, key, value, starts -> output.
    """

    @jax.custom_vjp
    def attend(*inputs: jax.Array) -> jax.Array:
        return forward(*inputs)[0]

    def keep(*inputs: jax.Array) -> tuple:
        out, log_total = forward(*inputs)
        return out, (*inputs, out, log_total)

    def pull_back(kept: tuple, grad_out: jax.Array) -> tuple:
        return *backward(*kept, grad_out), None

    attend.defvjp(keep, pull_back)
    return attend
