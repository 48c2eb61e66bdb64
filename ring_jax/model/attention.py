# SPDX-License-Identifier: Apache-2.0
"""Grouped-query attention over packed rows; decoding also reads a cache."""

import dataclasses
import functools

import jax
from flax import nnx

from pallas_kernels.attention import context_attention, packed_attention
from ring_jax import sharding
from ring_jax.config import ModelConfig
from ring_jax.model.cache import KeyValues, Places, attend, write
from ring_jax.model.layers import filled, normal
from ring_jax.model.rope import rotate
from ring_jax.weight_gather import einsum


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """What attention must know of the tokens at hand, shared by all layers."""

    segments_BT: jax.Array
    """i32, documents of a packed row; 0 is padding."""
    cos_BTh: jax.Array
    sin_BTh: jax.Array


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
        places: Places,
        *,
        layer: int,
    ) -> tuple[jax.Array, KeyValues]:
        """Attends to what the rows' slots hold, and to the tokens at hand.

        Args:
          x_BTD: the tokens at hand.
          rows: their segments and rotary tables.
          cache: of all layers.
          places: of the tokens at hand.
          layer: which layer this is.

        Returns:
          The layer's output, and the cache with the tokens' keys and values.
        """
        query_BTNH, key_BTKH, value_BTKH = self._project(x_BTD, rows)
        key_1BKTH, value_1BKTH = (
            x.astype(cache.key_LBKSH.dtype).transpose(0, 2, 1, 3)[None]
            for x in (key_BTKH, value_BTKH)
        )
        new = KeyValues(key_1BKTH, value_1BKTH)
        cache = write(cache, new, places, first_layer=layer)
        return self._output(attend(query_BTNH, cache, places, layer=layer)), cache

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


def _add_bias(x: jax.Array, bias: nnx.Param | None) -> jax.Array:
    if bias is None:
        return x
    return x + bias[...].astype(x.dtype)[None, None]
