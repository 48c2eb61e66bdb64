# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M, a dense Llama: 134.5M parameters, all of them for each token.

The ids are those of the Instruct model, whose turns end with <|im_end|>.
Source: metadata of the GGUF file of SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0).
"""

import ml_collections

from ring_jax.config import ModelConfig, to_config_dict


def get_config() -> ml_collections.ConfigDict:
    return to_config_dict(
        ModelConfig(
            vocab_size=49152,
            model_dim=576,
            num_layers=30,
            num_heads=9,
            num_kv_heads=3,
            head_dim=64,
            mlp_dim=1536,
            num_dense_layers=30,
            norm_eps=1e-5,
            rope_theta=100000.0,
            max_positions=8192,
            norm_head=False,
            tie_embeddings=True,
            init_std=0.02,
            eos_id=2,
            pad_id=2,
        )
    )
