# SPDX-License-Identifier: Apache-2.0
"""Ling-lite, the chat model of February 2025: 16.8B parameters, 2.75B per token.

Source: `inference/mindie/lite/model_chat_config.json` of inclusionAI/Ling. These are
the defaults of `ModelConfig`.
"""

import ml_collections

from ring_jax.config import ModelConfig, to_config_dict


def get_config() -> ml_collections.ConfigDict:
    return to_config_dict(ModelConfig())
