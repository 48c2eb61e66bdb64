# SPDX-License-Identifier: Apache-2.0
"""Parameter counts of the published releases, from shapes alone."""

import dataclasses

import pytest

from ring_jax.config import ModelConfig, MoeConfig
from ring_jax.model import count_parameters, flops_per_token

LING_PLUS = ModelConfig(
    model_dim=5376,
    num_layers=88,
    num_heads=42,
    num_kv_heads=6,
    moe=MoeConfig(num_experts_per_token=4, num_shared_experts=1, expert_dim=3072),
)


@pytest.mark.parametrize(
    ("config", "total", "activated"),
    [
        (ModelConfig(), 16_801_974_272, 2_753_153_024),
        (LING_PLUS, 290_602_910_976, 29_004_170_496),
        (
            dataclasses.replace(LING_PLUS, num_heads=56, num_kv_heads=8),
            292_540_679_424,
            30_941_938_944,
        ),
    ],
    ids=["ling_lite", "ling_plus_early", "ling_plus"],
)
def test_counts_are_those_of_the_released_checkpoints(config, total, activated):
    count = count_parameters(config)
    assert (count.total, count.activated) == (total, activated)


def test_a_training_token_costs_six_flops_a_weight_and_twelve_a_score():
    config = ModelConfig(
        vocab_size=64,
        model_dim=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_dim=16,
        eos_id=0,
        pad_id=0,
    )
    weights = count_parameters(config).activated - 64 * 32
    assert flops_per_token(config, mean_context=0.0) == 6.0 * weights
    # Per layer and head, q k and p v are 2 * context * H multiply-adds forward; the
    # backward pass doubles each.
    scores = 3 * 2 * (2 * 8.0 * 16) * 2 * 2
    assert flops_per_token(config, mean_context=8.0) == 6.0 * weights + scores
