# SPDX-License-Identifier: Apache-2.0
"""Settings of a model, and which of them make it this model."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from ring_jax.config.errors import (
    ConfigError,
    require_above,
    require_at_least,
)
from ring_jax.config.tree import flatten_settings


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class YarnConfig:
    """Context extension by YaRN (arXiv:2309.00071), parametrised as on the Hub."""

    factor: float = 4.0
    original_max_positions: int = 32768
    """Positions that the model was trained on before extension."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0

    def __post_init__(self):
        require_at_least(self, 1, "original_max_positions")
        require_above(self, 0, "beta_fast", "beta_slow")
        if not self.factor >= 1.0:
            raise ConfigError(f"factor={self.factor} is below 1; YaRN only extends.")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MoeConfig:
    """Routed layers with ungated shared experts (arXiv:2503.05139, 2.1)."""

    num_experts: int = 64
    num_experts_per_token: int = 6
    num_shared_experts: int = 2
    """Shared experts run as one SwiGLU of this many expert widths; 0 means none."""
    expert_dim: int = 1408
    """Width of one expert's hidden layer."""
    renormalize_weights: bool = True
    """Divides the chosen probabilities by their sum; top-1 is never renormalised."""
    implementation: Literal["auto", "tpu", "xla", "reference"] = "auto"
    """Which `pallas_kernels.grouped_matmul` runs; `auto` takes the best that can."""
    transport: Literal["auto", "fsdp", "ring", "ragged_all_to_all"] = "auto"
    """What moves where devices share the experts (`mesh.expert`): weights, tokens, or
    routed rows; `auto` takes the least traffic, and logs it."""
    quantization: Literal["none", "int8", "float8_e4m3fn"] = "none"
    """Type in which the forward pass multiplies rows and experts' matrices, rounded to
    the nearest; gradients and weights stay as they are. int8 is for TPU v5e, v5p and
    v6e, float8 for tpu7x; others than TPUs emulate both."""

    def __post_init__(self):
        require_at_least(self, 0, "num_shared_experts")
        require_at_least(self, 1, "expert_dim")
        if not 1 <= self.num_experts_per_token <= self.num_experts:
            raise ConfigError(
                f"num_experts_per_token={self.num_experts_per_token} must be from 1 to "
                f"num_experts={self.num_experts}; a token cannot visit an expert twice."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """BailingMoE v1 (`BailingMoeForCausalLM`); defaults are those of Ling-lite.

    With all layers dense it is a Llama (`LlamaForCausalLM`), and `moe` is unused.
    """

    vocab_size: int = 126464
    """Rows of the embedding; rows without a token are padding and are never sampled."""
    model_dim: int = 2048
    num_layers: int = 28
    num_heads: int = 16
    num_kv_heads: int = 4
    head_dim: int = 128
    attention_implementation: Literal["auto", "tpu", "xla", "reference"] = "auto"
    """Which `pallas_kernels.attention` runs; `auto` takes the best that can."""
    mlp_dim: int = 5632
    """Width of the feed-forward layer in dense layers; unused when there are none."""
    num_dense_layers: int = 0
    """How many of the first layers are dense (`first_k_dense_replace`)."""
    moe: MoeConfig = dataclasses.field(default_factory=MoeConfig)
    norm_eps: float = 1e-6
    rope_theta: float = 600000.0
    rope_scaling: YarnConfig | None = None
    max_positions: int = 16384
    norm_head: bool = True
    """Divides each channel of the head by its L2 norm over the vocabulary."""
    tie_embeddings: bool = False
    has_output_bias: bool = False
    """A bias on the attention's output projection (`use_bias`)."""
    has_qkv_bias: bool = False
    init_std: float = 0.006
    eos_id: int = 126081
    pad_id: int = 126081

    def __post_init__(self):
        sizes = ("vocab_size", "model_dim", "num_layers", "max_positions")
        require_at_least(self, 1, *sizes, "num_heads", "num_kv_heads", "head_dim")
        require_above(self, 0, "norm_eps", "rope_theta", "init_std")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads={self.num_heads} is not a multiple of "
                f"num_kv_heads={self.num_kv_heads}; each kv head serves equally many."
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim={self.head_dim} is odd; rotary pairs halves.")
        if not 0 <= self.num_dense_layers <= self.num_layers:
            raise ConfigError(
                f"num_dense_layers={self.num_dense_layers} must be from 0 to "
                f"num_layers={self.num_layers}."
            )
        if self.is_dense and self.norm_head:
            raise ConfigError(
                f"norm_head=True, but all {self.num_layers} layers are dense: that is "
                "a Llama, whose head is not normed. Set norm_head=False."
            )
        if self.is_dense and self.has_qkv_bias != self.has_output_bias:
            raise ConfigError(
                f"has_qkv_bias={self.has_qkv_bias} and has_output_bias="
                f"{self.has_output_bias}, but all {self.num_layers} layers are dense: "
                "that is a Llama, whose attention has all biases or none."
            )
        for name in ("eos_id", "pad_id"):
            if not 0 <= getattr(self, name) < self.vocab_size:
                raise ConfigError(
                    f"{name}={getattr(self, name)} is not an id below "
                    f"vocab_size={self.vocab_size}."
                )

    @property
    def is_dense(self) -> bool:
        """Whether no layer is routed."""
        return self.num_dense_layers == self.num_layers


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class UpcycleConfig:
    """How `ring import` makes a BailingMoE of a dense Llama (arXiv:2212.05055)."""

    num_experts: int = 8
    """Copies of each feed-forward layer."""
    num_experts_per_token: int = 2
    num_shared_experts: int = 0
    """Experts for all tokens, each as wide as a routed one; they begin by adding 0."""
    num_dense_layers: int = 0
    """How many of the first layers stay as they are."""
    noise_std: float = 0.0
    """Noise on the experts' weights, in standard deviations of a layer's weights. 0
    keeps the dense model's outputs; copies then differ by what is routed to them."""
    seed: int = 0
    """Of routers and noise."""

    def __post_init__(self):
        if not 2 <= self.num_experts_per_token <= self.num_experts:
            raise ConfigError(
                f"num_experts_per_token={self.num_experts_per_token} must be from 2 to "
                f"num_experts={self.num_experts}: the weight of a single expert is not "
                "normalised, and would scale what the dense layer computes."
            )
        if min(self.num_shared_experts, self.num_dense_layers, self.seed) < 0:
            raise ConfigError(
                f"num_shared_experts={self.num_shared_experts}, num_dense_layers="
                f"{self.num_dense_layers} and seed={self.seed} must be at least 0."
            )
        if not 0 <= self.noise_std < math.inf:
            raise ConfigError(
                f"noise_std={self.noise_std} must be finite and at least 0."
            )


# Settings of a model that do not change what a trained one computes, or only how
# exactly.
_HOW = (
    "init_std",
    "attention_implementation",
    "moe.implementation",
    "moe.transport",
    "moe.quantization",
)


def model_identity(model: ModelConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that make it this model, by dotted name."""
    tree = dataclasses.asdict(model) if isinstance(model, ModelConfig) else model
    return {k: v for k, v in flatten_settings(tree).items() if k not in _HOW}
