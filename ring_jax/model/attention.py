# SPDX-License-Identifier: Apache-2.0
"""Grouped-query attention over packed rows, with an optional key/value cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.attention import context_attention, packed_attention
from ring_jax import sharding
from ring_jax.config import ModelConfig
from ring_jax.model.layers import filled, normal
from ring_jax.model.rope import rotate
from ring_jax.sharding import einsum, reshape

MASKED = -1e30
"""Score of an unseen key; finite, so that a row that sees nothing is not NaN."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """What attention must know of the tokens at hand, shared by all layers."""

    segments_BT: jax.Array
    """i32, documents of a packed row; 0 is padding."""
    cos_BTh: jax.Array
    sin_BTh: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """Keys and values of earlier tokens of stacked layers."""

    key_LBSKH: jax.Array
    value_LBSKH: jax.Array


class Attention(nnx.Module):
    """Grouped-query attention (arXiv:2305.13245) with rotary positions.

    Query head n reads kv head n // G. Softmax in float32, scale H**-0.5.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D, N = config.model_dim, config.num_heads
        K, H, std = config.num_kv_heads, config.head_dim, config.init_std
        chosen = config.attention_implementation
        self.implementation = None if chosen == "auto" else chosen
        self.query_DNH = normal("DNH", (D, N, H), std, rngs)
        self.key_DKH = normal("DKH", (D, K, H), std, rngs)
        self.value_DKH = normal("DKH", (D, K, H), std, rngs)
        self.out_NHD = normal("NHD", (N, H, D), std, rngs)
        qkv = config.has_qkv_bias
        self.query_bias_NH = filled("NH", (N, H), 0.0) if qkv else None
        self.key_bias_KH = filled("KH", (K, H), 0.0) if qkv else None
        self.value_bias_KH = filled("KH", (K, H), 0.0) if qkv else None
        self.out_bias_D = filled("D", (D,), 0.0) if config.has_output_bias else None

    def __call__(self, x_BTD: jax.Array, rows: Rows) -> jax.Array:
        """Attends among the tokens at hand: training and scoring."""
        query_BTNH, key_BTKH, value_BTKH = self._project(x_BTD, rows)
        heads, row = sharding.activation("BTNH"), sharding.activation("BT")
        keys = sharding.activation("BTKH")
        run = sharding.per_device(
            functools.partial(_attend_block, implementation=self.implementation),
            in_specs=(heads, keys, keys, row),
            out_specs=heads,
        )
        segments_BT = jax.reshard(rows.segments_BT, row)
        return self._output(run(query_BTNH, key_BTKH, value_BTKH, segments_BT))

    def decode(
        self,
        x_BTD: jax.Array,
        rows: Rows,
        cache: KeyValues,
        *,
        layer: jax.Array,
        segments_BS: jax.Array,
        first_slot: jax.Array,
    ) -> tuple[jax.Array, KeyValues]:
        """Attends to the cache and to the tokens at hand, which enter the cache.

        Args:
          x_BTD: the tokens of slots `first_slot` to `first_slot + T - 1`.
          rows: their segments and rotary tables.
          cache: S slots of earlier tokens, of all layers of the stack: written in
            place, where one layer's alone would be copied out and back.
          layer: i32[], which of them this is.
          segments_BS: segments of all slots, those at hand included.
          first_slot: i32[], the same for all rows of the batch.

        Returns:
          The layer's output, and the cache with the new tokens in it.
        """
        query_BTNH, key_BTKH, value_BTKH = self._project(x_BTD, rows)
        start = (layer, 0, first_slot, 0, 0)
        cache = KeyValues(
            jax.lax.dynamic_update_slice(cache.key_LBSKH, key_BTKH[None], start),
            jax.lax.dynamic_update_slice(cache.value_LBSKH, value_BTKH[None], start),
        )
        visible_BTS = _visible(rows.segments_BT, segments_BS, first_slot=first_slot)
        key_BSKH, value_BSKH = (
            jax.lax.dynamic_index_in_dim(stack, layer, keepdims=False)
            for stack in (cache.key_LBSKH, cache.value_LBSKH)
        )
        mixed_BTNH = attend(query_BTNH, key_BSKH, value_BSKH, visible_BTS)
        return self._output(mixed_BTNH), cache

    def _project(
        self, x_BTD: jax.Array, rows: Rows
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        query_BTNH = einsum("BTD,DNH->BTNH", x_BTD, self.query_DNH[...])
        key_BTKH = einsum("BTD,DKH->BTKH", x_BTD, self.key_DKH[...])
        value_BTKH = einsum("BTD,DKH->BTKH", x_BTD, self.value_DKH[...])
        query_BTNH = _add_bias(query_BTNH, self.query_bias_NH)
        key_BTKH = _add_bias(key_BTKH, self.key_bias_KH)
        value_BTKH = _add_bias(value_BTKH, self.value_bias_KH)
        query_BTNH = rotate(query_BTNH, rows.cos_BTh, rows.sin_BTh)
        return query_BTNH, rotate(key_BTKH, rows.cos_BTh, rows.sin_BTh), value_BTKH

    def _output(self, mixed_BTNH: jax.Array) -> jax.Array:
        out_BTD = einsum("BTNH,NHD->BTD", mixed_BTNH, self.out_NHD[...])
        return _add_bias(out_BTD, self.out_bias_D)


def _attend_block(
    query_BTNH: jax.Array,
    key_BTKH: jax.Array,
    value_BTKH: jax.Array,
    segments_BT: jax.Array,
    *,
    implementation: str | None,
) -> jax.Array:
    segments_BT = sharding.vary(segments_BT, sharding.TENSOR_AXIS)
    arrays = query_BTNH, key_BTKH, value_BTKH, segments_BT
    if (axis := sharding.if_split(sharding.CONTEXT_AXIS)) is None:
        return packed_attention(*arrays, implementation=implementation)
    return context_attention(*arrays, axis_name=axis, implementation=implementation)


def attend(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    visible_BTS: jax.Array,
) -> jax.Array:
    """Returns softmax(q k / sqrt(H)) v over the visible keys; [B, T, N, H]."""
    B, T, N, H = query_BTNH.shape
    S, K = key_BSKH.shape[1:3]
    G = N // K
    # Heads move in front of positions while arrays are small; the [T, S] squares then
    # need no transposition, which on CPU costs more than the products themselves.
    query_BTKGH = reshape(query_BTNH * H**-0.5, "BTKGH", (B, T, K, G, H))
    query_BKGTH = query_BTKGH.transpose(0, 2, 3, 1, 4)
    query_BKQH = reshape(query_BKGTH, "BKQH", (B, K, G * T, H))
    key_BKSH = key_BSKH.transpose(0, 2, 1, 3)
    value_BKSH = value_BSKH.transpose(0, 2, 1, 3)
    scores_BKQS = jnp.einsum(
        "BKQH,BKSH->BKQS", query_BKQH, key_BKSH, preferred_element_type=jnp.float32
    )
    scores_BKGTS = reshape(scores_BKQS, "BKGTS", (B, K, G, T, S))
    scores_BKGTS = jnp.where(visible_BTS[:, None, None], scores_BKGTS, MASKED)
    peak_BKGT1 = jax.lax.stop_gradient(jnp.max(scores_BKGTS, axis=-1, keepdims=True))
    raised_BKGTS = jnp.exp(scores_BKGTS - peak_BKGT1)
    total_BKGT1 = jnp.sum(raised_BKGTS, axis=-1, keepdims=True)
    raised_BKQS = reshape(raised_BKGTS, "BKQS", (B, K, G * T, S)).astype(key_BSKH.dtype)
    mixed_BKQH = jnp.einsum("BKQS,BKSH->BKQH", raised_BKQS, value_BKSH)
    # Dividing after the product touches H numbers a row instead of S.
    mixed_BKGTH = reshape(mixed_BKQH, "BKGTH", (B, K, G, T, H)) / total_BKGT1
    mixed_BTKGH = mixed_BKGTH.astype(query_BTNH.dtype).transpose(0, 3, 1, 2, 4)
    return reshape(mixed_BTKGH, "BTNH", (B, T, N, H))


def _visible(
    segments_BT: jax.Array, segments_BS: jax.Array, *, first_slot: jax.Array | int
) -> jax.Array:
    slots_T = first_slot + jnp.arange(segments_BT.shape[1])
    causal_TS = jnp.arange(segments_BS.shape[1])[None] <= slots_T[:, None]
    return (segments_BT[:, :, None] == segments_BS[:, None, :]) & causal_TS[None]


def _add_bias(x: jax.Array, bias: nnx.Param | None) -> jax.Array:
    if bias is None:
        return x
    return x + bias[...].astype(x.dtype)[None, None]
