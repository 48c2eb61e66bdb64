# SPDX-License-Identifier: Apache-2.0
"""A laptop's Ling: base, reasoning, generalisation, on two cores in ten minutes.

    ring train --config=configs/quickstart.py --workdir=runs/quickstart

Stage `base` learns text, knowledge, instructions, tools and dialogue; `reasoning`
learns to think, and forgets; `generalisation` restores what was forgotten, and replays
reasoning.
"""

from ring_jax.config import (
    DataConfig,
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

# Easy levels are what the run is about; medium and hard ones show where it ends.
REASONING = {
    "chain_sum_easy": (6000, 64),
    "number_sorting_easy": (4000, 64),
    "chain_sum_medium": (2000, 32),
    "number_sorting_medium": (2000, 32),
    "chain_sum_hard": (500, 32),
}
"""Source, `<task>_<level>` -> training and held-out rows."""

# Few facts, often: 100 of countries and 50 of elements, each in four wordings.
GENERAL = {
    "countries": SourceConfig(kind="countries", num_rows=400),
    "elements": SourceConfig(kind="elements", num_rows=200),
    "instructions": SourceConfig(kind="instructions", num_rows=4000),
    "tool_calls": SourceConfig(kind="tool_calls", num_rows=4000),
    "dialogue": SourceConfig(kind="dialogue", task="unseen", num_rows=300),
}
PLAIN = {
    "text": SourceConfig(kind="text", num_rows=1500, num_heldout=32),
    "code": SourceConfig(kind="code", num_rows=500, num_heldout=32),
}

# Shares of trained tokens. A fact's answer has 4 of them and a paragraph 80, so that
# half the rows of `base` are facts.
GENERAL_SHARES = {
    "countries": 7.5,
    "elements": 3.5,
    "instructions": 15.0,
    "tool_calls": 22.0,
    "dialogue": 7.5,
}
PLAIN_SHARES = {"text": 12.0, "code": 11.0}
REASONING_SHARES = {
    "chain_sum_easy": 65.0,
    "number_sorting_easy": 80.0,
    "chain_sum_medium": 12.0,
    "number_sorting_medium": 25.0,
    "chain_sum_hard": 12.5,
}


def get_config():
    run = RunConfig(
        model=_model(),
        data=DataConfig(tokenizer=TokenizerConfig(vocab_size=1024), sources=_sources()),
        train=TrainConfig(
            global_batch_size=8,
            seq_len=256,
            compute_dtype="float32",
            optimizer=OptimizerConfig(weight_decay=0.05),
            log_every_steps=10,
            checkpoint_every_steps=100,
        ),
        stages=_stages(),
    )
    return to_config_dict(run)


def _model() -> ModelConfig:
    # norm_head is off as in Ling-lite-1.5: with it, the logits' scale is the final
    # norm's alone, which a run this short has no time to grow.
    return ModelConfig(
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
        norm_head=False,
        init_std=0.02,
        eos_id=1,
        pad_id=1,
    )


def _sources() -> dict[str, SourceConfig]:
    reasoning = {}
    for name, (num_rows, num_heldout) in REASONING.items():
        task, level = name.rsplit("_", 1)
        reasoning[name] = SourceConfig(
            kind="reasoning_gym",
            task=task,
            level=level,  # pyright: ignore[reportArgumentType]  # the schema checks it
            num_rows=num_rows,
            num_heldout=num_heldout,
        )
    return reasoning | GENERAL | PLAIN


def _stages() -> dict[str, StageConfig]:
    replay = {name: 0.5 * share for name, share in REASONING_SHARES.items()}
    return {
        "base": StageConfig(
            mixture=GENERAL_SHARES | PLAIN_SHARES,
            num_steps=1000,
            learning_rate=3e-3,
            warmup_steps=30,
            routing_warmup_steps=30,
        ),
        "reasoning": StageConfig(
            mixture=REASONING_SHARES,
            num_steps=1200,
            learning_rate=3e-3,
            warmup_steps=30,
        ),
        "generalisation": StageConfig(
            mixture=GENERAL_SHARES | replay,
            num_steps=800,
            learning_rate=1.5e-3,
            warmup_steps=20,
        ),
    }
