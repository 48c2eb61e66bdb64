# SPDX-License-Identifier: Apache-2.0
"""Ling-lite, fully fine-tuned on packed rows of 16,384 tokens: 256 chips of v6e.

ring plan --config=configs/recipes/ling_lite_v6e_256.py --topology=v6e-256

5.8 GiB of HBM a chip (exact, of 31.2); 0.2 hours for a billion tokens (estimate).
"""

import ml_collections

from configs.recipes.ling_lite import fine_tuning
from ring_jax.config import MeshConfig, TrainConfig, to_config_dict

TOPOLOGY = "v6e-256"


def get_config() -> ml_collections.ConfigDict:
    run = fine_tuning(
        mesh=MeshConfig(data=1, fsdp=32, context=2, expert=4),
        train=TrainConfig(global_batch_size=128, seq_len=16384),
    )
    return to_config_dict(run)
