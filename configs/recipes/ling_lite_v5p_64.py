# SPDX-License-Identifier: Apache-2.0
"""Ling-lite, fully fine-tuned on packed rows of 16,384 tokens: 32 chips of TPU v5p.

ring plan --config=configs/recipes/ling_lite_v5p_64.py --topology=v5p-64

15.0 GiB of HBM a chip (exact, of 95.7); 0.9 hours for a billion tokens (estimate).
"""

import ml_collections

from configs.recipes.ling_lite import fine_tuning
from ring_jax.config import MeshConfig, TrainConfig, to_config_dict

TOPOLOGY = "v5p-64"


def get_config() -> ml_collections.ConfigDict:
    run = fine_tuning(
        mesh=MeshConfig(data=1, fsdp=8, expert=4),
        train=TrainConfig(global_batch_size=32, seq_len=16384),
    )
    return to_config_dict(run)
