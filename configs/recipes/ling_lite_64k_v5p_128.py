# SPDX-License-Identifier: Apache-2.0
"""Ling-lite on packed rows of 65,536 tokens, extended by YaRN: 64 chips of TPU v5p.

ring plan --config=configs/recipes/ling_lite_64k_v5p_128.py --topology=v5p-128

15.8 GiB of HBM a chip (exact, of 95.7); 0.9 hours for a billion tokens (estimate).
"""

import ml_collections

from configs.recipes.ling_lite import fine_tuning
from ring_jax.config import (
    MeshConfig,
    ModelConfig,
    TrainConfig,
    YarnConfig,
    to_config_dict,
)

TOPOLOGY = "v5p-128"


def get_config() -> ml_collections.ConfigDict:
    run = fine_tuning(
        mesh=MeshConfig(data=1, fsdp=8, context=8),
        train=TrainConfig(global_batch_size=16, seq_len=65536),
        model=ModelConfig(
            max_positions=65536,
            rope_scaling=YarnConfig(factor=4.0, original_max_positions=16384),
        ),
    )
    return to_config_dict(run)
