# SPDX-License-Identifier: Apache-2.0
"""Keys and values of a row's tokens, and attention to the part of them in use.

Every row of a batch that is decoded has a slot, S places for its tokens in order. A
slot holds as many tokens as it holds, whatever the others do: attention goes over
blocks of places, as many as the longest slot fills, and sums in the order of an online
softmax (arXiv:2112.05682, algorithm 1). A block in which a row has nothing multiplies
its sums by one and adds zero to them: to the bit, a row does not notice its neighbours.

A layer writes its tokens, and then attends to what is written. So what is read always
comes after what is written, and XLA has no reason to copy a cache.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ring_jax import sharding
from ring_jax.config import ModelConfig

MASKED = -1e30
"""Score of an unseen key; finite, so that differences of scores are not NaN."""

BLOCK_PLACES = 128


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """Keys and values of all layers; of a cache, or of tokens that enter it."""

    key_LBKSH: jax.Array
    value_LBKSH: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Places:
    """Where the tokens at hand stand: on each device, in slots that follow another."""

    first_slot_J: jax.Array
    """i32, among the device's own slots that of its first row."""
    lengths_B: jax.Array
    """i32, tokens in the row's slot before those at hand, which come behind them."""
    num_tokens_B: jax.Array
    """i32, tokens at hand; 0 for a row that leaves its slot as it is."""


def empty_cache(
    config: ModelConfig, num_slots: int, num_places: int, *, dtype: DTypeLike
) -> KeyValues:
    """Returns an empty cache, its slots laid out like the rows of a batch."""
    K, H = config.num_kv_heads, config.head_dim
    shape = (config.num_layers, num_slots, K, num_places, H)
    layout = sharding.activation("LBKSH")
    return KeyValues(
        jnp.zeros(shape, dtype, out_sharding=layout),
        jnp.zeros(shape, dtype, out_sharding=layout),
    )


def attend(
    query_BTNH: jax.Array, cache: KeyValues, places: Places, *, layer: int
) -> jax.Array:
    """Returns softmax(q k / sqrt(H)) v over what is written of a row's slot.

    Args:
      query_BTNH: of the tokens at hand; they see those that are not later.
      cache: of at least as many slots as rows; has the tokens at hand.
      places: of the tokens at hand.
      layer: which layer's part of the cache.

    Returns:
      [B, T, N, H] in the dtype of the queries; sums are float32.
    """
    heads = sharding.activation("BTNH")
    run = sharding.per_device(
        functools.partial(_attend_on_device, layer=layer),
        in_specs=(heads, *_layouts()),
        out_specs=heads,
    )
    return run(query_BTNH, cache, places)


def write(
    cache: KeyValues, new: KeyValues, places: Places, *, first_layer: int = 0
) -> KeyValues:
    """Puts tokens behind those of their slots.

    Args:
      cache: is written in place, where the caller gives it away.
      new: [L, B, K, T, H], T tokens a row, of some layers. All T are written, in every
        row that has any: what is behind a slot's length is never read.
      places: of those tokens.
      first_layer: of `new`.
    """
    layouts, _ = _layouts()
    run = sharding.per_device(
        functools.partial(_write_on_device, first_layer=first_layer),
        in_specs=(*_layouts(), layouts),
        out_specs=layouts,
    )
    return run(cache, places, new)


def written(cache: KeyValues, places: Places, *, num_tokens: int) -> KeyValues:
    """Returns the tokens at hand, [L, B, K, T, H] of all layers.

    Args:
      cache: has them.
      places: theirs, of one row a device.
      num_tokens: T.
    """
    layouts, _ = _layouts()
    run = sharding.per_device(
        functools.partial(_written_on_device, num_tokens=num_tokens),
        in_specs=_layouts(),
        out_specs=layouts,
    )
    return run(cache, places)


def _layouts() -> tuple[KeyValues, Places]:
    """Returns layouts in the place of arrays."""
    layers: Any = sharding.activation("LBKSH")
    rows: Any = sharding.activation("B")
    devices: Any = sharding.activation("J")
    return KeyValues(layers, layers), Places(devices, rows, rows)


def _attend_on_device(
    query_BTNH: jax.Array, cache: KeyValues, places: Places, *, layer: int
) -> jax.Array:
    B, T, N, H = query_BTNH.shape
    K, S = cache.key_LBKSH.shape[2:4]
    C = min(BLOCK_PLACES, S)
    lengths_B = sharding.vary(places.lengths_B, sharding.TENSOR_AXIS)
    first_slot = places.first_slot_J[0]
    query_BKQH = _by_head(query_BTNH * H**-0.5, K)
    # Queries are ordered by group, then by token.
    token_Q = jnp.arange(query_BKQH.shape[2]) % T
    place_BKQ1 = (lengths_B[:, None] + token_Q[None])[:, None, :, None]

    def block(number: jax.typing.ArrayLike) -> tuple[jax.Array, jax.Array, jax.Array]:
        # A last block that would be longer than the slot begins earlier.
        first_place = jnp.minimum(number * C, S - C)
        start = (layer, first_slot, 0, first_place, 0)
        key_BKCH, value_BKCH = (
            jax.lax.dynamic_slice(stack, start, (1, B, K, C, H))[0]
            for stack in (cache.key_LBKSH, cache.value_LBKSH)
        )
        place_111C = (first_place + jnp.arange(C))[None, None, None]
        is_seen_BKQC = (place_111C >= number * C) & (place_111C <= place_BKQ1)
        return key_BKCH, value_BKCH, is_seen_BKQC

    def add_block(number: jax.Array, sums: tuple) -> tuple:
        return _add(sums, query_BKQH, *block(number))

    sums = _start(query_BKQH, *block(0))
    num_blocks = -(-(jnp.max(lengths_B) + T) // C)
    _, total_BKQ1, mixed_BKQH = jax.lax.fori_loop(1, num_blocks, add_block, sums)
    mixed_BKGTH = (mixed_BKQH / total_BKQ1).reshape(B, K, N // K, T, H)
    mixed_BTNH = mixed_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
    return mixed_BTNH.astype(query_BTNH.dtype)


def _by_head(query_BTNH: jax.Array, num_kv_heads: int) -> jax.Array:
    """Brings together the queries that meet one key/value head."""
    B, T, N, H = query_BTNH.shape
    K = num_kv_heads
    query_BTKGH = query_BTNH.reshape(B, T, K, N // K, H)
    return query_BTKGH.transpose(0, 2, 3, 1, 4).reshape(B, K, N // K * T, H)


def _start(query, key, value, is_seen) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the softmax's peak, total and mixture over a first block.

    Every query sees a key of it: that of the first place.
    """
    scores = jnp.where(is_seen, _scores(query, key), MASKED)
    peak = jnp.max(scores, axis=-1, keepdims=True)
    raised = jnp.exp(scores - peak)
    return peak, jnp.sum(raised, axis=-1, keepdims=True), _mix(raised, value)


def _add(sums: tuple, query, key, value, is_seen) -> tuple:
    peak, total, mixed = sums
    scores = jnp.where(is_seen, _scores(query, key), MASKED)
    new_peak = jnp.maximum(peak, jnp.max(scores, axis=-1, keepdims=True))
    raised, kept = jnp.exp(scores - new_peak), jnp.exp(peak - new_peak)
    total = total * kept + jnp.sum(raised, axis=-1, keepdims=True)
    return new_peak, total, mixed * kept + _mix(raised, value)


def _scores(query_BKQH: jax.Array, key_BKCH: jax.Array) -> jax.Array:
    return jnp.einsum(
        "BKQH,BKCH->BKQC", query_BKQH, key_BKCH, preferred_element_type=jnp.float32
    )


def _mix(raised_BKQC: jax.Array, value_BKCH: jax.Array) -> jax.Array:
    return jnp.einsum(
        "BKQC,BKCH->BKQH",
        raised_BKQC.astype(value_BKCH.dtype),
        value_BKCH,
        preferred_element_type=jnp.float32,
    )


def _write_on_device(
    cache: KeyValues, places: Places, new: KeyValues, *, first_layer: int
) -> KeyValues:
    has_tokens_B = places.num_tokens_B > 0
    # Those with tokens first. A row that is written without a look at what was there
    # leaves XLA nothing to fuse with the row before, for which it would copy the cache.
    row_B = jnp.argsort(~has_tokens_B)

    def put_row(number: jax.Array, cache: KeyValues) -> KeyValues:
        row = row_B[number]
        slot = places.first_slot_J[0] + row
        place = (first_layer, slot, 0, places.lengths_B[row], 0)

        def put(stack_LBKSH: jax.Array, new_LBKTH: jax.Array) -> jax.Array:
            new_L1KTH = jax.lax.dynamic_slice_in_dim(new_LBKTH, row, 1, axis=1)
            return jax.lax.dynamic_update_slice(stack_LBKSH, new_L1KTH, place)

        return jax.tree.map(put, cache, new)

    return jax.lax.fori_loop(0, jnp.sum(has_tokens_B), put_row, cache)


def _written_on_device(
    cache: KeyValues, places: Places, *, num_tokens: int
) -> KeyValues:
    place = (0, places.first_slot_J[0], 0, places.lengths_B[0], 0)

    def take(stack_LBKSH: jax.Array) -> jax.Array:
        L, _, K, _, H = stack_LBKSH.shape
        return jax.lax.dynamic_slice(stack_LBKSH, place, (L, 1, K, num_tokens, H))

    return jax.tree.map(take, cache)
