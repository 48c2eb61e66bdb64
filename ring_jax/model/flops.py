# SPDX-License-Identifier: Apache-2.0
"""How many parameters a model has, and how many FLOPs a token costs."""

import dataclasses
import math

import jax

from ring_jax import sharding
from ring_jax.config import ModelConfig
from ring_jax.model.transformer import Transformer, init_transformer


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model; `activated` counts those that one token uses."""

    total: int
    activated: int


def abstract_transformer(config: ModelConfig) -> Transformer:
    """Returns the model's shapes without allocating any of it."""
    in_force = jax.sharding.get_abstract_mesh()
    mesh = sharding.abstract_mesh() if in_force.empty else in_force
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.eval_shape(lambda: init_transformer(config, jax.random.key(0)))


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Counts from the model's own shapes; embedding and head count as activated."""
    model = abstract_transformer(config)
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model))
    if model.moe_layers is None:
        return ParameterCount(total=total, activated=total)
    assert model.moe_layers.moe is not None
    experts = (model.moe_layers.moe.gate_up_ED2F, model.moe_layers.moe.down_EFD)
    routed = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(experts))
    moe = config.moe
    idle = routed * (moe.num_experts - moe.num_experts_per_token) // moe.num_experts
    return ParameterCount(total=total, activated=total - idle)


def flops_per_token(config: ModelConfig, *, mean_context: float) -> float:
    """Returns the FLOPs of one training step per token: 6 per activated weight.

    The embedding is a gather and costs nothing. Attention scores and their mixing cost
    12 * L * N * H * mean_context (forward 4, backward 8), with `mean_context` the mean
    number of keys that a token sees; recomputation is not counted, as MFU has it
    (arXiv:2204.02311, appendix B).
    """
    activated = count_parameters(config).activated
    if not config.tie_embeddings:
        activated -= config.vocab_size * config.model_dim
    scores = config.num_layers * config.num_heads * config.head_dim * mean_context
    return 6.0 * activated + 12.0 * scores
