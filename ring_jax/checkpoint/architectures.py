# SPDX-License-Identifier: Apache-2.0
"""The names that Hugging Face gives to our models: their tensors and their config.json.

One table of each for an architecture, read in both directions. No other file knows
these names. Sources: `modeling_bailing_moe.py`, `configuration_bailing_moe.py` of
inclusionAI/Ling; `modeling_llama.py`, `configuration_llama.py` of transformers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ring_jax.checkpoint.weights import Weight
from ring_jax.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a folder of one architecture looks like."""

    name: str
    """Of `architectures` in config.json."""
    model_type: str
    weights: tuple[Weight, ...]
    fields: tuple[tuple[str, str, Any], ...]
    """Our setting, their key, and what their class takes when it is absent or null."""
    fixed: Mapping[str, Any]
    """Keys with one value that is computed here. Absent or null is that value."""
    written: Mapping[str, Any]
    """Keys that we have no setting for, and that a reader would default."""


def architecture_of(config: ModelConfig) -> Architecture:
    """Returns the architecture as which a model is stored."""
    return LLAMA if config.is_dense else BAILING_MOE


_BAILING_WEIGHTS = (
    Weight(("embed_VD",), "model.word_embeddings.weight", "VD"),
    Weight(
        ("layers.attention_norm_D",), "model.layers.{L}.input_layernorm.weight", "D"
    ),
    Weight(
        (
            "layers.attention.query_DNH",
            "layers.attention.key_DKH",
            "layers.attention.value_DKH",
        ),
        "model.layers.{L}.attention.query_key_value.weight",
        "(NH)D + (KH)D + (KH)D",
    ),
    Weight(
        (
            "layers.attention.query_bias_NH",
            "layers.attention.key_bias_KH",
            "layers.attention.value_bias_KH",
        ),
        "model.layers.{L}.attention.query_key_value.bias",
        "(NH) + (KH) + (KH)",
    ),
    Weight(
        ("layers.attention.out_NHD",),
        "model.layers.{L}.attention.dense.weight",
        "D(NH)",
    ),
    Weight(
        ("layers.attention.out_bias_D",), "model.layers.{L}.attention.dense.bias", "D"
    ),
    Weight(
        ("layers.mlp_norm_D",),
        "model.layers.{L}.post_attention_layernorm.weight",
        "D",
    ),
    Weight(
        ("dense_layers.mlp.gate_up_D2F",),
        "model.layers.{L}.mlp.gate_proj.weight",
        "FD",
        half=0,
    ),
    Weight(
        ("dense_layers.mlp.gate_up_D2F",),
        "model.layers.{L}.mlp.up_proj.weight",
        "FD",
        half=1,
    ),
    Weight(
        ("dense_layers.mlp.down_FD",), "model.layers.{L}.mlp.down_proj.weight", "DF"
    ),
    Weight(("moe_layers.moe.router_DE",), "model.layers.{L}.mlp.gate.weight", "ED"),
    Weight(
        ("moe_layers.moe.gate_up_ED2F",),
        "model.layers.{L}.mlp.experts.{E}.gate_proj.weight",
        "FD",
        half=0,
    ),
    Weight(
        ("moe_layers.moe.gate_up_ED2F",),
        "model.layers.{L}.mlp.experts.{E}.up_proj.weight",
        "FD",
        half=1,
    ),
    Weight(
        ("moe_layers.moe.down_EFD",),
        "model.layers.{L}.mlp.experts.{E}.down_proj.weight",
        "DF",
    ),
    Weight(
        ("moe_layers.moe.shared.gate_up_D2F",),
        "model.layers.{L}.mlp.shared_experts.gate_proj.weight",
        "FD",
        half=0,
    ),
    Weight(
        ("moe_layers.moe.shared.gate_up_D2F",),
        "model.layers.{L}.mlp.shared_experts.up_proj.weight",
        "FD",
        half=1,
    ),
    Weight(
        ("moe_layers.moe.shared.down_FD",),
        "model.layers.{L}.mlp.shared_experts.down_proj.weight",
        "DF",
    ),
    Weight(("final_norm_D",), "model.norm.weight", "D"),
    Weight(("head_DV",), "lm_head.weight", "VD"),
)

_BAILING_FIELDS = (
    ("vocab_size", "vocab_size", 30592),
    ("model_dim", "hidden_size", 1024),
    ("num_layers", "num_hidden_layers", 24),
    ("num_heads", "num_attention_heads", 16),
    ("num_kv_heads", "num_key_value_heads", 0),
    ("head_dim", "head_dim", 0),
    ("mlp_dim", "intermediate_size", 0),
    ("num_dense_layers", "first_k_dense_replace", 0),
    ("moe.num_experts", "num_experts", 16),
    ("moe.num_experts_per_token", "num_experts_per_tok", 2),
    ("moe.num_shared_experts", "num_shared_experts", 0),
    ("moe.expert_dim", "moe_intermediate_size", 0),
    ("moe.renormalize_weights", "norm_topk_prob", True),
    ("norm_eps", "rms_norm_eps", 1e-5),
    ("rope_theta", "rope_theta", 10000.0),
    ("max_positions", "max_position_embeddings", 16384),
    ("norm_head", "norm_head", False),
    ("tie_embeddings", "tie_word_embeddings", False),
    ("has_output_bias", "use_bias", True),
    ("has_qkv_bias", "use_qkv_bias", False),
    ("init_std", "initializer_range", 0.02),
    ("eos_id", "eos_token_id", 126081),
    ("pad_id", "pad_token_id", 126081),
)

_BAILING_FIXED = {
    "hidden_act": "silu",
    "norm_softmax": False,
    "use_qk_norm": False,
    "use_sliding_window": False,
    "multi_gate": False,
    "score_function": "softmax",
    "moe_router_enable_expert_bias": False,
    "moe_router_enable_shared_expert": True,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}

BAILING_MOE = Architecture(
    name="BailingMoeForCausalLM",
    model_type="bailing_moe",
    weights=_BAILING_WEIGHTS,
    fields=_BAILING_FIELDS,
    fixed=_BAILING_FIXED,
    written={
        "hidden_act": "silu",
        "norm_softmax": False,
        "attention_dropout": 0.0,
        "embedding_dropout": 0.0,
        "output_dropout": 0.0,
        "output_router_logits": False,
        "use_cache": True,
    },
)

_LLAMA_WEIGHTS = (
    Weight(("embed_VD",), "model.embed_tokens.weight", "VD"),
    Weight(
        ("dense_layers.attention_norm_D",),
        "model.layers.{L}.input_layernorm.weight",
        "D",
    ),
    Weight(
        ("dense_layers.attention.query_DNH",),
        "model.layers.{L}.self_attn.q_proj.weight",
        "(NH)D",
    ),
    Weight(
        ("dense_layers.attention.query_bias_NH",),
        "model.layers.{L}.self_attn.q_proj.bias",
        "(NH)",
    ),
    Weight(
        ("dense_layers.attention.key_DKH",),
        "model.layers.{L}.self_attn.k_proj.weight",
        "(KH)D",
    ),
    Weight(
        ("dense_layers.attention.key_bias_KH",),
        "model.layers.{L}.self_attn.k_proj.bias",
        "(KH)",
    ),
    Weight(
        ("dense_layers.attention.value_DKH",),
        "model.layers.{L}.self_attn.v_proj.weight",
        "(KH)D",
    ),
    Weight(
        ("dense_layers.attention.value_bias_KH",),
        "model.layers.{L}.self_attn.v_proj.bias",
        "(KH)",
    ),
    Weight(
        ("dense_layers.attention.out_NHD",),
        "model.layers.{L}.self_attn.o_proj.weight",
        "D(NH)",
    ),
    Weight(
        ("dense_layers.attention.out_bias_D",),
        "model.layers.{L}.self_attn.o_proj.bias",
        "D",
    ),
    Weight(
        ("dense_layers.mlp_norm_D",),
        "model.layers.{L}.post_attention_layernorm.weight",
        "D",
    ),
    Weight(
        ("dense_layers.mlp.gate_up_D2F",),
        "model.layers.{L}.mlp.gate_proj.weight",
        "FD",
        half=0,
    ),
    Weight(
        ("dense_layers.mlp.gate_up_D2F",),
        "model.layers.{L}.mlp.up_proj.weight",
        "FD",
        half=1,
    ),
    Weight(
        ("dense_layers.mlp.down_FD",), "model.layers.{L}.mlp.down_proj.weight", "DF"
    ),
    Weight(("final_norm_D",), "model.norm.weight", "D"),
    Weight(("head_DV",), "lm_head.weight", "VD"),
)

_LLAMA_FIELDS = (
    ("vocab_size", "vocab_size", 32000),
    ("model_dim", "hidden_size", 4096),
    ("num_layers", "num_hidden_layers", 32),
    ("num_heads", "num_attention_heads", 32),
    ("num_kv_heads", "num_key_value_heads", 0),
    ("head_dim", "head_dim", 0),
    ("mlp_dim", "intermediate_size", 11008),
    ("norm_eps", "rms_norm_eps", 1e-6),
    ("rope_theta", "rope_theta", 10000.0),
    ("max_positions", "max_position_embeddings", 2048),
    ("tie_embeddings", "tie_word_embeddings", False),
    ("has_output_bias", "attention_bias", False),
    ("has_qkv_bias", "attention_bias", False),
    ("init_std", "initializer_range", 0.02),
    ("eos_id", "eos_token_id", 2),
    ("pad_id", "pad_token_id", -1),
)

LLAMA = Architecture(
    name="LlamaForCausalLM",
    model_type="llama",
    weights=_LLAMA_WEIGHTS,
    fields=_LLAMA_FIELDS,
    fixed={
        "hidden_act": "silu",
        "mlp_bias": False,
        "pretraining_tp": 1,
        "quantization_config": None,
        "sliding_window": None,
        "partial_rotary_factor": 1.0,
    },
    written={
        "hidden_act": "silu",
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "use_cache": True,
    },
)

ARCHITECTURES = {kind.name: kind for kind in (BAILING_MOE, LLAMA)}
"""By the name in config.json."""
