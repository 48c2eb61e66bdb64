# SPDX-License-Identifier: Apache-2.0
"""Ling-plus, 290B parameters, on packed rows of 16,384 tokens: 256 chips of TPU v5p.

ring plan --config=configs/recipes/ling_plus_v5p_512.py --topology=v5p-512

53.7 GiB of HBM a chip (exact, of 95.7); 1.4 hours for a billion tokens (estimate).
"""

import ml_collections

from configs.models import ling_plus
from configs.recipes.ling_lite import fine_tuning
from ring_jax.config import (
    MeshConfig,
    ModelConfig,
    TrainConfig,
    from_config_dict,
    to_config_dict,
)

TOPOLOGY = "v5p-512"


def get_config() -> ml_collections.ConfigDict:
    run = fine_tuning(
        mesh=MeshConfig(data=1, fsdp=64, expert=4),
        train=TrainConfig(global_batch_size=256, seq_len=16384),
        model=from_config_dict(ModelConfig, ling_plus.get_config().to_dict()),
        folder="models/Ling-plus",
    )
    return to_config_dict(run)
