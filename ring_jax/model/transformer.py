# SPDX-License-Identifier: Apache-2.0
"""BailingMoE v1: a pre-norm decoder whose layers are routed feed-forward layers.

With all layers dense, the same decoder is a Llama.

Source: `modeling_bailing_moe.py` of inclusionAI/Ling; arXiv:2503.05139, section 2.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ring_jax import sharding
from ring_jax.config import ModelConfig
from ring_jax.model.attention import Attention, Rows
from ring_jax.model.cache import KeyValues, Places
from ring_jax.model.layer_stack import (
    Arriving,
    LayerStack,
    Remat,
    arrive_backward,
    arrive_forward,
)
from ring_jax.model.layers import GatedMlp, filled, normal, rms_norm
from ring_jax.model.moe import Moe
from ring_jax.model.rope import rotary_tables
from ring_jax.model.router import (
    RouterStats,
    RouterSums,
    RoutingNoise,
    router_stats,
)
from ring_jax.weight_gather import einsum, gather_block

NORM_HEAD_EPS = 1e-7


class Layer(nnx.Module):
    """One pre-norm block: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ModelConfig, *, is_dense: bool, rngs: nnx.Rngs):
        D, std = config.model_dim, config.init_std
        self.eps = config.norm_eps
        self.attention_norm_D = filled("D", (D,), 1.0)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm_D = filled("D", (D,), 1.0)
        # Flax fixes an attribute's kind (static or data) at its first assignment.
        mlp_dim = config.mlp_dim
        self.mlp = GatedMlp(D, mlp_dim, std=std, rngs=rngs) if is_dense else None
        self.moe = None if is_dense else Moe(config, rngs=rngs)

    def __call__(
        self,
        x_BTD: jax.Array,
        rows: Rows,
        noise: RoutingNoise | None,
        arriving: Arriving,
    ) -> tuple[jax.Array, RouterSums | None, Arriving]:
        """Runs the layer while the weights of others arrive, if any do.

        Returns:
          The new residual stream, what a routed layer's routing sums up, and what
          arrived.
        """
        with jax.named_scope("attention"):
            normed = rms_norm(x_BTD, self.attention_norm_D[...], eps=self.eps)
            x_BTD += self.attention(normed, rows)
        second = self.mlp if self.moe is None else self.moe
        x_BTD, second, arriving = arrive_backward(x_BTD, second, arriving)
        x_BTD, sums, weights = self._feed_forward(
            second, x_BTD, rows, noise, arriving.weights
        )
        return x_BTD, sums, dataclasses.replace(arriving, weights=weights)

    def decode(
        self,
        x_BTD: jax.Array,
        rows: Rows,
        cache: KeyValues,
        places: Places,
        *,
        layer: int,
    ) -> tuple[jax.Array, KeyValues]:
        """As `__call__`, attending to the cache as well; see `Attention.decode`."""
        normed = rms_norm(x_BTD, self.attention_norm_D[...], eps=self.eps)
        attended, cache = self.attention.decode(
            normed, rows, cache, places, layer=layer
        )
        second = self.mlp if self.moe is None else self.moe
        out_BTD, *_ = self._feed_forward(second, x_BTD + attended, rows, None, None)
        return out_BTD, cache

    def _feed_forward[Tree](
        self,
        second: GatedMlp | Moe | None,
        x_BTD: jax.Array,
        rows: Rows,
        noise: RoutingNoise | None,
        arriving: Tree,
    ) -> tuple[jax.Array, RouterSums | None, Tree]:
        normed = rms_norm(x_BTD, self.mlp_norm_D[...], eps=self.eps)
        if isinstance(second, GatedMlp):
            with jax.named_scope("mlp"):
                out_BTD, arriving = arrive_forward(second(normed), arriving)
            return x_BTD + out_BTD, None, arriving
        assert second is not None
        with jax.named_scope("moe"):
            is_token_BT = rows.segments_BT > 0
            out_BTD, sums, arriving = second(normed, is_token_BT, noise, arriving)
            return x_BTD + out_BTD, sums, arriving


class Transformer(nnx.Module):
    """The whole model. Layers of a kind are stacked over a first dimension L."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        V, D, std = config.vocab_size, config.model_dim, config.init_std
        self.config = config
        self.embed_VD = normal("VD", (V, D), std, rngs)
        num_dense = config.num_dense_layers
        self.dense_layers = (
            _stack(config, num_dense, is_dense=True, rngs=rngs) if num_dense else None
        )
        num_moe = config.num_layers - num_dense
        self.moe_layers = (
            _stack(config, num_moe, is_dense=False, rngs=rngs) if num_moe else None
        )
        self.final_norm_D = filled("D", (D,), 1.0)
        tied = config.tie_embeddings
        self.head_DV = None if tied else normal("DV", (D, V), std, rngs)

    def __call__(
        self,
        ids_BT: jax.Array,
        *,
        segments_BT: jax.Array,
        positions_BT: jax.Array,
        dtype: DTypeLike = jnp.float32,
        remat: Remat = "none",
        noise: RoutingNoise | None = None,
    ) -> tuple[jax.Array, RouterStats | None]:
        """Runs packed rows through all layers.

        Args:
          ids_BT: i32[B, T].
          segments_BT: i32[B, T], documents 1, 2, ...; 0 is padding.
          positions_BT: i32[B, T], position inside the document.
          dtype: compute type of the layers; parameters stay float32.
          remat: what the backward pass recomputes.
          noise: routing warm-up with a leading L, or None.

        Returns:
          The normed hidden states [B, T, D] that the head reads, and the routed layers'
          statistics with a leading L; None where no layer is routed.
        """
        rows = rows_of(self.config, segments_BT, positions_BT)
        x_BTD = embed(ids_BT, self.embed_VD[...], dtype)

        stack = LayerStack(_run_layer, remat, dtype)
        if self.dense_layers is not None:
            x_BTD, _ = stack(x_BTD, self.dense_layers, rows, None)
        if self.moe_layers is None:
            return self._final_norm(x_BTD), None
        x_BTD, sums = stack(x_BTD, self.moe_layers, rows, noise)
        return self._final_norm(x_BTD), router_stats(sums)

    def head_weight(self) -> jax.Array:
        """Returns f32[D, V]: the head, or the transposed embedding when tied."""
        return self.embed_VD[...].T if self.head_DV is None else self.head_DV[...]

    def head_scale(self) -> jax.Array:
        """Returns f32[D], what each channel of the hidden state is scaled by.

        norm_head divides channel d of the head by its L2 norm over the vocabulary, plus
        1e-7; the norm has no gradient. Scaling the hidden state instead is the same
        product, and leaves the weight untouched.
        """
        if not self.config.norm_head:
            return jnp.ones((self.config.model_dim,), jnp.float32)
        head_DV = jax.lax.stop_gradient(self.head_weight())
        norm_D = jnp.sqrt(jnp.sum(jnp.square(head_DV), axis=1))
        return sharding.replicated(1.0 / (norm_D + NORM_HEAD_EPS))

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Returns f32[B, T, V]; for decoding and tests, where tokens are few."""
        scaled_BTD = hidden_BTD.astype(jnp.float32) * self.head_scale()[None, None]
        scaled_BTD = scaled_BTD.astype(hidden_BTD.dtype)
        return einsum("BTD,DV->BTV", scaled_BTD, self.head_weight()).astype(jnp.float32)

    def _final_norm(self, x_BTD: jax.Array) -> jax.Array:
        return rms_norm(x_BTD, self.final_norm_D[...], eps=self.config.norm_eps)


def rows_of(
    config: ModelConfig, segments_BT: jax.Array, positions_BT: jax.Array
) -> Rows:
    """Returns what the layers must know of tokens."""
    cos_BTh, sin_BTh = rotary_tables(config, positions_BT)
    return Rows(segments_BT, cos_BTh, sin_BTh)


def embed(ids_BT: jax.Array, embed_VD: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Looks up tokens in an embedding that devices store in parts."""
    run = sharding.per_device(
        functools.partial(_embed_block, dtype=dtype),
        in_specs=(sharding.activation("BT"), sharding.weight("VD")),
        out_specs=sharding.activation("BTD"),
    )
    return run(ids_BT, embed_VD)


def _run_layer(
    x_BTD: jax.Array,
    layer: Layer,
    rows: Rows,
    noise: RoutingNoise | None,
    arriving: Arriving,
) -> tuple[jax.Array, RouterSums | None, Arriving]:
    return layer(x_BTD, rows, noise, arriving)


def _embed_block(
    ids_BT: jax.Array, embed_VD: jax.Array, *, dtype: DTypeLike
) -> jax.Array:
    """Looks up tokens in this device's part of the vocabulary, and joins the parts."""
    embed_VD = gather_block(embed_VD, "VD", dtype=dtype)
    if jax.lax.axis_size(sharding.TENSOR_AXIS) == 1:
        x_BTD = embed_VD[ids_BT]
    else:
        V = embed_VD.shape[0]
        ids_BT = ids_BT - V * jax.lax.axis_index(sharding.TENSOR_AXIS)
        is_here_BT = (ids_BT >= 0) & (ids_BT < V)
        x_BTD = embed_VD[jnp.where(is_here_BT, ids_BT, 0)]
        x_BTD = jnp.where(is_here_BT[..., None], x_BTD, 0)
    return sharding.sum_over(x_BTD, sharding.TENSOR_AXIS)


def _stack(
    config: ModelConfig, num_layers: int, *, is_dense: bool, rngs: nnx.Rngs
) -> Layer:
    def create(key: jax.Array) -> Layer:
        return Layer(config, is_dense=is_dense, rngs=nnx.Rngs(key))

    return jax.vmap(create)(jax.random.split(rngs.params(), num_layers))


def init_transformer(config: ModelConfig, key: jax.Array) -> Transformer:
    """Creates the model on the mesh in force, every parameter in its own layout."""
    return Transformer(config, rngs=nnx.Rngs(key))
