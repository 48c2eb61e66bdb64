# SPDX-License-Identifier: Apache-2.0
"""Ling-lite-base, what Ling-lite was tuned from: 16.8B parameters, 2.75B per token.

Source: `inference/mindie/lite/model_base_config.json` of inclusionAI/Ling. Its dropout
of 0.1 on embeddings and outputs belongs to pretraining and is not used.
"""

import ml_collections

from ring_jax.config import ModelConfig, to_config_dict


def get_config() -> ml_collections.ConfigDict:
    return to_config_dict(
        ModelConfig(
            norm_eps=1e-5,
        )
    )
