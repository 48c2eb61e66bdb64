# SPDX-License-Identifier: Apache-2.0
"""Grouped-query attention over packed rows, with an optional key/value cache."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from ring_jax import sharding
from ring_jax.config import ModelConfig
from ring_jax.model.layers import filled, normal
from ring_jax.model.rope import rotate
from ring_jax.sharding import einsum

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
class LayerCache:
    """Keys and values of earlier tokens of one layer, each [B, S, K, H]."""

    key_BSKH: jax.Array
    value_BSKH: jax.Array


class Attention(nnx.Module):
    """Grouped-query attention (arXiv:2305.13245) with rotary positions.

    Query head n reads kv head n // G. Softmax in float32, scale H**-0.5.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D, N = config.model_dim, config.num_heads
        K, H, std = config.num_kv_heads, config.head_dim, config.init_std
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
        T = x_BTD.shape[1]
        visible_BTS = _visible(rows.segments_BT, rows.segments_BT, first_slot=0)
        assert visible_BTS.shape[1:] == (T, T)
        mixed_BTNH = attend(query_BTNH, key_BTKH, value_BTKH, visible_BTS)
        return self._output(mixed_BTNH)

    def decode(
        self,
        x_BTD: jax.Array,
        rows: Rows,
        cache: LayerCache,
        *,
        segments_BS: jax.Array,
        first_slot: jax.Array,
    ) -> tuple[jax.Array, LayerCache]:
        """Attends to the cache and to the tokens at hand, which enter the cache.

        Args:
          x_BTD: the tokens of slots `first_slot` to `first_slot + T - 1`.
          rows: their segments and rotary tables.
          cache: S slots of earlier tokens.
          segments_BS: segments of all slots, those at hand included.
          first_slot: i32[], the same for all rows of the batch.

        Returns:
          The layer's output, and the cache with the new tokens in it.
        """
        query_BTNH, key_BTKH, value_BTKH = self._project(x_BTD, rows)
        start = (0, first_slot, 0, 0)
        cache = LayerCache(
            jax.lax.dynamic_update_slice(cache.key_BSKH, key_BTKH, start),
            jax.lax.dynamic_update_slice(cache.value_BSKH, value_BTKH, start),
        )
        visible_BTS = _visible(rows.segments_BT, segments_BS, first_slot=first_slot)
        mixed = attend(query_BTNH, cache.key_BSKH, cache.value_BSKH, visible_BTS)
        return self._output(mixed), cache

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


def attend(
    query_BTNH: jax.Array,
    key_BSKH: jax.Array,
    value_BSKH: jax.Array,
    visible_BTS: jax.Array,
) -> jax.Array:
    """Returns softmax(q k / sqrt(H)) v over the visible keys; [B, T, N, H]."""
    B, T, N, H = query_BTNH.shape
    K = key_BSKH.shape[2]
    query_BTKGH = query_BTNH.reshape(B, T, K, N // K, H) * H**-0.5
    scores_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", query_BTKGH, key_BSKH)
    scores_BKGTS = jnp.where(
        visible_BTS[:, None, None], scores_BKGTS.astype(jnp.float32), MASKED
    )
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(query_BTNH.dtype)
    mixed_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS, value_BSKH)
    return mixed_BTKGH.reshape(B, T, N, H)


def _visible(
    segments_BT: jax.Array, segments_BS: jax.Array, *, first_slot: jax.Array | int
) -> jax.Array:
    slots_T = first_slot + jnp.arange(segments_BT.shape[1])
    causal_TS = jnp.arange(segments_BS.shape[1])[None] <= slots_T[:, None]
    return (segments_BT[:, :, None] == segments_BS[:, None, :]) & causal_TS[None]


def _add_bias(x: jax.Array, bias: nnx.Param | None) -> jax.Array:
    if bias is None:
        return x
    bias_whole = sharding.replicated(bias[...].astype(x.dtype))
    return x + bias_whole[None, None]
