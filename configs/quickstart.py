# SPDX-License-Identifier: Apache-2.0
"""A laptop's Ling: base, reasoning, generalisation, on two cores in ten minutes.

    ring train --config=configs/quickstart.py --workdir=runs/quickstart

Stage `base` learns text, knowledge, instructions, tools and dialogue; `reasoning` learns
to think, and forgets; `generalisation` restores what was forgotten and replays reasoning.
"""

from ring_jax.config import (
    DataConfig,
    EvaluateConfig,
    LossConfig,
    ModelConfig,
    MoeConfig,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TokenizerConfig,
    TrainConfig,
    to_config_dict,
)

# Trained on: what the panel gates. Medium and hard are reported.
REASONING = {
    "chain_sum_easy": SourceConfig(
        kind="reasoning_gym", task="chain_sum", level="easy", num_rows=4000
    ),
    "number_sorting_easy": SourceConfig(
        kind="reasoning_gym", task="number_sorting", level="easy", num_rows=4000
    ),
    "chain_sum_medium": SourceConfig(
        kind="reasoning_gym",
        task="chain_sum",
        level="medium",
        num_rows=2000,
        num_heldout=32,
    ),
    "number_sorting_medium": SourceConfig(
        kind="reasoning_gym",
        task="number_sorting",
        level="medium",
        num_rows=1000,
        num_heldout=32,
    ),
    "chain_sum_hard": SourceConfig(
        kind="reasoning_gym",
        task="chain_sum",
        level="hard",
        num_rows=500,
        num_heldout=32,
    ),
}
GENERAL = {
    "countries": SourceConfig(kind="countries", num_rows=2000),
    "elements": SourceConfig(kind="elements", num_rows=1500),
    "instructions": SourceConfig(kind="instructions", num_rows=4000),
    "tool_calls": SourceConfig(kind="tool_calls", num_rows=3000),
    "dialogue": SourceConfig(kind="dialogue", num_rows=1500),
}
PLAIN = {
    "text": SourceConfig(kind="text", num_rows=3000, num_heldout=32),
    "code": SourceConfig(kind="code", num_rows=1000, num_heldout=32),
}


def get_config():
    return to_config_dict(
        RunConfig(
            model=ModelConfig(
                vocab_size=1024,
                model_dim=128,
                num_layers=4,
                num_heads=4,
                num_kv_heads=2,
                head_dim=32,
                moe=MoeConfig(
                    num_experts=16,
                    num_experts_per_token=4,
                    num_shared_experts=1,
                    expert_dim=64,
                ),
                rope_theta=10000.0,
                max_positions=512,
                init_std=0.02,
                eos_id=1,
                pad_id=1,
            ),
            data=DataConfig(
                tokenizer=TokenizerConfig(vocab_size=1024),
                sources=REASONING | GENERAL | PLAIN,
            ),
            train=TrainConfig(
                global_batch_size=8,
                seq_len=512,
                compute_dtype="float32",
                remat="block",
                optimizer=OptimizerConfig(weight_decay=0.05),
                loss=LossConfig(),
                log_every_steps=10,
                checkpoint_every_steps=100,
            ),
            evaluate=EvaluateConfig(items_per_source=64),
            stages={
                "base": StageConfig(
                    mixture=dict.fromkeys(GENERAL, 1.0) | dict.fromkeys(PLAIN, 0.5),
                    num_steps=400,
                    learning_rate=3e-3,
                    warmup_steps=20,
                    routing_warmup_steps=20,
                ),
                "reasoning": StageConfig(
                    mixture={
                        "chain_sum_easy": 3.0,
                        "number_sorting_easy": 2.0,
                        "chain_sum_medium": 1.0,
                        "number_sorting_medium": 1.0,
                        "chain_sum_hard": 0.5,
                    },
                    num_steps=400,
                    learning_rate=3e-3,
                    warmup_steps=20,
                ),
                "generalisation": StageConfig(
                    mixture=dict.fromkeys(GENERAL, 0.5)
                    | {
                        "chain_sum_easy": 1.5,
                        "number_sorting_easy": 1.0,
                        "chain_sum_medium": 0.5,
                        "number_sorting_medium": 0.5,
                        "chain_sum_hard": 0.25,
                    },
                    num_steps=250,
                    learning_rate=1.5e-3,
                    warmup_steps=10,
                ),
            },
        )
    )
