# SPDX-License-Identifier: Apache-2.0
"""Attention inside documents in plain XLA, for CPUs and GPUs; memory linear in T.

For each block of queries a loop runs over the blocks of keys that exist for it: from
the earliest start of its documents, over the rows of the batch, to its own end. Its
trip count is data, which reverse mode cannot follow: the gradients are another loop.

    queries i      keys [first(i), i + 1)        all rows of the batch at once

Few blocks are unrolled, and each is one step over all keys up to its own end: what a
loop skips in short rows is less than what its slices cost.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.context import Context
from pallas_kernels.attention.flash import (
    Spans,
    attend_in_blocks,
    block_of,
    with_gradients,
)

BLOCK = 128
MAX_UNROLLED = 4
"""Blocks of queries that are unrolled; more are looped over."""
MASKED = -1e30
"""Score of an unseen key; finite, as a query's first block may hold only such keys."""


def unsupported(query_BTNH: jax.Array, key_BTKH: jax.Array) -> str | None:
    """Returns why the operands cannot run here: only float32 and bfloat16 can."""
    if query_BTNH.dtype not in (jnp.float32, jnp.bfloat16):
        return f"it accumulates in float32, and an operand is {query_BTNH.dtype}"
    return None


def packed_attention(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    segments_BT: jax.Array,
    context: Context,
) -> jax.Array:
    """Returns softmax(q k / sqrt(H)) v over the document up to each query."""
    T = query_BTNH.shape[1]
    block = block_of(T, T * context.num_shards, largest=BLOCK)
    return attend_in_blocks(
        _attend,
        query_BTNH,
        key_BTKH,
        value_BTKH,
        segments_BT,
        context=context,
        block=block,
    )


@dataclasses.dataclass(frozen=True)
class _Queries:
    """A block of queries and, for gradients, what belongs to them."""

    first: np.int32 | jax.Array
    """Position in the row of the first one."""
    start_BT: jax.Array
    query_BKGTH: jax.Array
    grad_BKGTH: jax.Array | None = None
    """Of the output."""
    log_total_BKGT1: jax.Array | None = None
    shift_BKGT1: jax.Array | None = None
    """What the normalisation takes from the gradient of each weight."""

    def scores(self, key_BKSH: jax.Array, first_key: int | jax.Array) -> jax.Array:
        """Returns f32[B, K, G, T, S]; `MASKED` where a key is not seen."""
        scores_BKGTS = _dot("BKGTH,BKSH->BKGTS", self.query_BKGTH, key_BKSH)
        T, S = scores_BKGTS.shape[3:]
        key_1S = first_key + jnp.arange(S)[None]
        causal_TS = key_1S <= self.first + jnp.arange(T)[:, None]
        visible_BTS = causal_TS[None] & (key_1S[None] >= self.start_BT[:, :, None])
        return jnp.where(visible_BTS[:, None, None], scores_BKGTS, MASKED)


def _forward(query_BKGTH, key_JBKSH, value_JBKSH, spans):
    """Returns the output and the log of its denominators, f32[B, K, G, T, 1]."""
    key_BKSH, value_BKSH = map(_join, (key_JBKSH, value_JBKSH))
    results = (
        _zeros(query_BKGTH, query_BKGTH.dtype),
        _zeros(query_BKGTH[..., :1], jnp.float32),
    )

    def attend(here, first, results):
        query = _slice(query_BKGTH, here, spans.block)
        start_BT = _slice(spans.start_BT, here, spans.block, axis=1)
        queries = _Queries(first, start_BT, query)
        add = functools.partial(_add_keys, queries, key_BKSH, value_BKSH)
        row = _zeros(query[..., :1], jnp.float32)
        sums = (row + MASKED, row, _zeros(query, jnp.float32))
        parts = _normalise(*_over_keys(add, queries, spans, sums))
        return tuple(map(functools.partial(_put, here), results, parts))

    return _over_queries(attend, spans, results)


def _add_keys(queries, key_BKSH, value_BKSH, here, first, num, sums):
    """Adds keys to the queries' maxima, totals and outputs.

    Those are `num` keys, here from `here` on, in the row from `first` on.
    """
    peak_BKGT1, total_BKGT1, mixed_BKGTH = sums
    key_BKSH, value_BKSH = (
        _slice(x, here, num, axis=2) for x in (key_BKSH, value_BKSH)
    )
    scores_BKGTS = queries.scores(key_BKSH, first)
    new_BKGT1 = jnp.max(scores_BKGTS, axis=4, keepdims=True)
    new_BKGT1 = jnp.maximum(peak_BKGT1, new_BKGT1)
    keep_BKGT1 = jnp.exp(peak_BKGT1 - new_BKGT1)
    raised_BKGTS = jnp.exp(scores_BKGTS - new_BKGT1)
    total_BKGT1 *= keep_BKGT1
    total_BKGT1 += jnp.sum(raised_BKGTS, axis=4, keepdims=True)
    raised_BKGTS = raised_BKGTS.astype(value_BKSH.dtype)
    mixed_BKGTH *= keep_BKGT1
    mixed_BKGTH += _dot("BKGTS,BKSH->BKGTH", raised_BKGTS, value_BKSH)
    return new_BKGT1, total_BKGT1, mixed_BKGTH


def _normalise(peak_BKGT1, total_BKGT1, mixed_BKGTH):
    # A query sees itself, so that no total is 0.
    return mixed_BKGTH / total_BKGT1, peak_BKGT1 + jnp.log(total_BKGT1)


def _backward(query_BKGTH, key_JBKSH, value_JBKSH, spans, out, log_total, grad):
    """Returns the gradients of query, key and value, in one pass over the blocks."""
    key_BKSH, value_BKSH = map(_join, (key_JBKSH, value_JBKSH))
    grad_keys = _zeros(key_BKSH, jnp.float32)
    grads = (_zeros(query_BKGTH, query_BKGTH.dtype), grad_keys, grad_keys)

    def pull_back(here, first, grads):
        grad_query_BKGTH, *grad_keys = grads
        query, out_BKGTH, log_total_BKGT1, grad_BKGTH = (
            _slice(x, here, spans.block) for x in (query_BKGTH, out, log_total, grad)
        )
        queries = _Queries(
            first,
            _slice(spans.start_BT, here, spans.block, axis=1),
            query,
            grad_BKGTH,
            log_total_BKGT1,
            _dot("BKGTH,BKGTH->BKGT", out_BKGTH, grad_BKGTH)[..., None],
        )
        add = functools.partial(_add_gradients, queries, key_BKSH, value_BKSH)
        sums = (_zeros(query, jnp.float32), *grad_keys)
        part_BKGTH, *grad_keys = _over_keys(add, queries, spans, sums)
        return _put(here, grad_query_BKGTH, part_BKGTH), *grad_keys

    grad_query_BKGTH, *grad_keys = _over_queries(pull_back, spans, grads)
    split = functools.partial(_split, num_parts=len(key_JBKSH))
    grad_key, grad_value = (split(x.astype(key_BKSH.dtype)) for x in grad_keys)
    return grad_query_BKGTH, grad_key, grad_value


def _add_gradients(queries, key_BKSH, value_BKSH, here, first, num, sums):
    """Adds to the gradients what the keys of `_add_keys` and the queries give."""
    grad_query_BKGTH, grad_key_BKSH, grad_value_BKSH = sums
    key_BKSH, value_BKSH = (
        _slice(x, here, num, axis=2) for x in (key_BKSH, value_BKSH)
    )
    dtype = key_BKSH.dtype
    scores_BKGTS = queries.scores(key_BKSH, first)
    weights_BKGTS = jnp.exp(scores_BKGTS - queries.log_total_BKGT1)
    grad_BKGTS = _dot("BKGTH,BKSH->BKGTS", queries.grad_BKGTH, value_BKSH)
    grad_BKGTS = (weights_BKGTS * (grad_BKGTS - queries.shift_BKGT1)).astype(dtype)
    weights_BKGTS = weights_BKGTS.astype(dtype)
    grad_query_BKGTH += _dot("BKGTS,BKSH->BKGTH", grad_BKGTS, key_BKSH)
    part_BKSH = _dot("BKGTS,BKGTH->BKSH", grad_BKGTS, queries.query_BKGTH)
    grad_key_BKSH = _add_at(here, grad_key_BKSH, part_BKSH)
    part_BKSH = _dot("BKGTS,BKGTH->BKSH", weights_BKGTS, queries.grad_BKGTH)
    grad_value_BKSH = _add_at(here, grad_value_BKSH, part_BKSH)
    return grad_query_BKGTH, grad_key_BKSH, grad_value_BKSH


def _over_queries(run: Callable, spans: Spans, results: tuple) -> tuple:
    """Calls `run(position here, position in the row, results)` a block of queries."""
    num_blocks, block = len(spans.query_J), spans.block
    if num_blocks <= MAX_UNROLLED:
        for i in range(num_blocks):
            results = run(i * block, spans.query_J[i], results)
        return results
    first_J = jnp.asarray(spans.query_J)
    return jax.lax.fori_loop(
        0, num_blocks, lambda i, x: run(i * block, first_J[i], x), results
    )


def _over_keys(add: Callable, queries: _Queries, spans: Spans, sums: tuple) -> tuple:
    """Calls `add(key here, key in the row, number of keys, sums)` for what is seen."""
    block = spans.block
    if not isinstance(queries.first, jax.Array):
        return add(0, 0, int(queries.first) + block, sums)
    first_block = first_key_block(queries.start_BT)
    last_block = queries.first // block
    here_J = jnp.asarray(np.argsort(spans.key_J) * block)
    return jax.lax.fori_loop(
        first_block,
        last_block + 1,
        lambda c, x: add(here_J[c], c * block, block, x),
        sums,
    )


def first_key_block(start_BT: jax.Array) -> jax.Array:
    """Returns i32[], where the keys of a block of queries begin, in blocks.

    Starts never fall along a row: the first query's is the earliest.
    """
    return jnp.min(start_BT[:, 0]) // start_BT.shape[1]


def _join(x_JBKSH: jax.Array) -> jax.Array:
    """Returns the parts of each row one behind the other, [B, K, S, H]."""
    return jnp.concatenate(x_JBKSH, axis=2)


def _split(x_BKSH: jax.Array, num_parts: int) -> jax.Array:
    return jnp.stack(jnp.split(x_BKSH, num_parts, axis=2))


def _slice(x: jax.Array, first: int | jax.Array, num: int, axis: int = 3) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, first, num, axis)


def _put(first: int | jax.Array, whole: jax.Array, part: jax.Array) -> jax.Array:
    part = part.astype(whole.dtype)
    return jax.lax.dynamic_update_slice_in_dim(whole, part, first, axis=3)


def _add_at(first: int | jax.Array, sum_BKSH: jax.Array, part_BKSH: jax.Array):
    part_BKSH += _slice(sum_BKSH, first, part_BKSH.shape[2], axis=2)
    return jax.lax.dynamic_update_slice_in_dim(sum_BKSH, part_BKSH, first, axis=2)


def _zeros(like: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Returns zeros that vary over the mesh axes that `like` varies over."""
    zeros = jnp.zeros(like.shape, dtype)
    varying = jax.typeof(like).manual_axis_type.varying
    return jax.lax.pcast(zeros, tuple(varying), to="varying") if varying else zeros


def _dot(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


_attend = with_gradients(_forward, _backward)
