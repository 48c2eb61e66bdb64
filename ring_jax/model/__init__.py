# SPDX-License-Identifier: Apache-2.0
"""What is computed: BailingMoE v1 on explicit meshes."""

from ring_jax.model.flops import abstract_transformer as abstract_transformer
from ring_jax.model.flops import count_parameters as count_parameters
from ring_jax.model.flops import flops_per_token as flops_per_token
from ring_jax.model.router import RoutingNoise as RoutingNoise
from ring_jax.model.transformer import Cache as Cache
from ring_jax.model.transformer import Transformer as Transformer
from ring_jax.model.transformer import init_transformer as init_transformer
