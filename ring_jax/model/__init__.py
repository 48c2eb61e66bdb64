# SPDX-License-Identifier: Apache-2.0
"""What is computed: BailingMoE v1 on explicit meshes."""

from ring_jax.model.cache import KeyValues as KeyValues
from ring_jax.model.cache import Places as Places
from ring_jax.model.cache import empty_cache as empty_cache
from ring_jax.model.cache import write as write
from ring_jax.model.cache import written as written
from ring_jax.model.decoder import Decoder as Decoder
from ring_jax.model.decoder import make_decoder as make_decoder
from ring_jax.model.flops import abstract_transformer as abstract_transformer
from ring_jax.model.flops import count_parameters as count_parameters
from ring_jax.model.flops import flops_per_token as flops_per_token
from ring_jax.model.router import RoutingNoise as RoutingNoise
from ring_jax.model.transformer import Transformer as Transformer
from ring_jax.model.transformer import init_transformer as init_transformer
