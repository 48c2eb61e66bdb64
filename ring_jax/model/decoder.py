# SPDX-License-Identifier: Apache-2.0
"""The model as it is read token by token: weights laid out once, keys and values kept.

Training stacks the weights of layers over L and loops. A loop would copy each layer's
weights out of the stack before it reads them, and to decode is to read weights. So a
decoder has a copy of them, each layer's apart, in the compute dtype.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ring_jax import sharding
from ring_jax.config import ModelConfig
from ring_jax.model.cache import KeyValues, Places
from ring_jax.model.layers import rms_norm
from ring_jax.model.transformer import Layer, Transformer, embed, rows_of
from ring_jax.weight_gather import einsum


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoder:
    """A model's weights for decoding, and how they are used."""

    embed_VD: jax.Array
    layers: tuple[Layer, ...]
    """In order; each without L in front."""
    final_norm_D: jax.Array
    head_DV: jax.Array
    head_scale_D: jax.Array
    config: ModelConfig = dataclasses.field(metadata={"static": True})

    def __call__(
        self, ids_BT: jax.Array, cache: KeyValues, places: Places
    ) -> tuple[jax.Array, KeyValues]:
        """Runs T more tokens a row after those in its slot.

        Args:
          ids_BT: i32[B, T]; those after a row's number of tokens are padding.
          cache: is written in place, where the caller gives it away.
          places: of the tokens.

        Returns:
          The normed hidden states [B, T, D], and the cache with the tokens.
        """
        T = ids_BT.shape[1]
        segments_BT = jnp.arange(T)[None] < places.num_tokens_B[:, None]
        positions_BT = places.lengths_B[:, None] + jnp.arange(T)[None]
        rows = rows_of(self.config, segments_BT.astype(jnp.int32), positions_BT)
        x_BTD = embed(ids_BT, self.embed_VD, self.final_norm_D.dtype)
        for number, layer in enumerate(self.layers):
            x_BTD, cache = layer.decode(x_BTD, rows, cache, places, layer=number)
        hidden_BTD = rms_norm(x_BTD, self.final_norm_D, eps=self.config.norm_eps)
        return hidden_BTD, cache

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Returns f32[B, T, V], as `Transformer.logits`."""
        scaled_BTD = hidden_BTD.astype(jnp.float32) * self.head_scale_D[None, None]
        scaled_BTD = scaled_BTD.astype(hidden_BTD.dtype)
        logits_BTV = einsum("BTD,DV->BTV", scaled_BTD, self.head_DV)
        return logits_BTV.astype(jnp.float32)


@functools.partial(jax.jit, static_argnames="dtype")
def make_decoder(model: Transformer, *, dtype: DTypeLike) -> Decoder:
    """Lays out a model's weights for decoding; a mesh must be in force.

    The copy takes as much memory as the model, in `dtype`.
    """
    stacks = [s for s in (model.dense_layers, model.moe_layers) if s is not None]
    head_DV = jax.reshard(model.head_weight(), sharding.weight("DV"))
    return Decoder(
        embed_VD=model.embed_VD[...].astype(dtype),
        layers=tuple(layer for stack in stacks for layer in _apart(stack, dtype)),
        final_norm_D=model.final_norm_D[...].astype(dtype),
        head_DV=head_DV.astype(dtype),
        head_scale_D=model.head_scale(),
        config=model.config,
    )


def _apart(stack: Layer, dtype: DTypeLike) -> list[Layer]:
    num_layers = jax.tree.leaves(stack)[0].shape[0]
    return [
        jax.tree.map(lambda x_L, number=number: x_L[number].astype(dtype), stack)
        for number in range(num_layers)
    ]
