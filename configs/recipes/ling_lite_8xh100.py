# SPDX-License-Identifier: Apache-2.0
"""Ling-lite, fully fine-tuned on packed rows of 8,192 tokens: one node of eight H100.

`ring plan` compiles for TPUs; here layouts are checked on an abstract mesh, and that
the step lowers for a GPU (tests/configs/test_recipes.py). Weights and moments are 23.5
GiB of HBM a GPU by these layouts (of 80 GB), gradients 7.8; a row's activations come on
top. 2.1 hours for a billion tokens if 30 % of 989 TFLOP/s are reached: an assumption.
"""

import ml_collections

from configs.recipes.ling_lite import fine_tuning
from ring_jax.config import MeshConfig, TrainConfig, to_config_dict


def get_config() -> ml_collections.ConfigDict:
    run = fine_tuning(
        mesh=MeshConfig(data=1, fsdp=8),
        train=TrainConfig(global_batch_size=64, seq_len=8192, num_microbatches=8),
    )
    return to_config_dict(run)
