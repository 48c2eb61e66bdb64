# SPDX-License-Identifier: Apache-2.0
"""Makes a BailingMoE of a dense Llama that computes the same at first.

Every expert begins as a copy of the layer's feed-forward layer. The weights of a
token's experts sum to 1, so whatever the router chooses, the copies together give the
dense layer's output. Shared experts add 0: their down projections begin as zeros.

Source: arXiv:2212.05055, section 2; normalised weights as in arXiv:2410.07524, 4.2.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from ring_jax.checkpoint.huggingface import parameter_shapes
from ring_jax.config import ConfigError, ModelConfig, MoeConfig, UpcycleConfig


def upcycle(
    config: ModelConfig, params: Mapping[str, np.ndarray], settings: UpcycleConfig
) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """Returns the settings and the parameters, by path, of the routed model.

    Without noise its outputs are the dense model's, up to float32 rounding. With noise,
    copies differ from the start, and so learn different things sooner.

    Args:
      config: of a dense model.
      params: f32, by path.
      settings: how many experts, and how they begin.

    Raises:
      ConfigError: the model is routed already, or keeps too many dense layers.
    """
    if not config.is_dense:
        raise ConfigError(
            f"upcycle: num_dense_layers={config.num_dense_layers} of "
            f"num_layers={config.num_layers}: the model is routed already; import it "
            "without --config."
        )
    num_dense = settings.num_dense_layers
    if num_dense >= config.num_layers:
        raise ConfigError(
            f"upcycle: num_dense_layers={num_dense} leaves no layer of "
            f"num_layers={config.num_layers} to route; lower it."
        )
    routed = dataclasses.replace(
        config, num_dense_layers=num_dense, moe=_moe_config(config, settings)
    )
    random = np.random.default_rng(settings.seed)
    made = {}
    for path, shape in parameter_shapes(routed).items():
        made[path] = _begin(path, shape, params, num_dense)
        if path.endswith("router_DE"):
            bound = config.model_dim**-0.5
            made[path] = random.uniform(-bound, bound, shape).astype(np.float32)
        elif path.endswith(("moe.gate_up_ED2F", "moe.down_EFD")):
            _add_noise(made[path], random, relative_std=settings.noise_std)
    return routed, made


def _moe_config(config: ModelConfig, settings: UpcycleConfig) -> MoeConfig:
    return MoeConfig(
        num_experts=settings.num_experts,
        num_experts_per_token=settings.num_experts_per_token,
        num_shared_experts=settings.num_shared_experts,
        expert_dim=config.mlp_dim,
        renormalize_weights=True,
    )


def _begin(
    path: str,
    shape: tuple[int, ...],
    params: Mapping[str, np.ndarray],
    num_dense: int,
) -> np.ndarray:
    """Returns a parameter's first value, from that of the dense model."""
    if path.startswith("dense_layers."):
        return params[path][:num_dense]
    if not path.startswith("moe_layers."):
        return params[path]
    if path.endswith(("router_DE", "shared.down_FD")):
        return np.zeros(shape, np.float32)
    own = path.replace("moe_layers.", "dense_layers.")
    if path.endswith("shared.gate_up_D2F"):
        dense = params["dense_layers.mlp.gate_up_D2F"][num_dense:]
        return np.tile(dense, shape[-1] // dense.shape[-1])
    if ".moe." in path:
        own = own.replace(".moe.", ".mlp.").replace("_ED2F", "_D2F")
        own = own.replace("_EFD", "_FD")
        return np.repeat(params[own][num_dense:, None], shape[1], axis=1)
    return params[own][num_dense:]


def _add_noise(
    experts: np.ndarray, random: np.random.Generator, *, relative_std: float
) -> None:
    """Adds to each layer's experts a share of the standard deviation of their weights.

    Layer by layer: the noise of all of them would be as large as the model.
    """
    if not relative_std:
        return
    for layer in experts:
        draw = random.standard_normal(layer.shape, np.float32)
        layer += relative_std * layer.std() * draw
