# SPDX-License-Identifier: Apache-2.0
"""What the recipes for Ling-lite share: full fine-tuning of all 16.8B parameters.

Files beside this one choose a pod, its mesh and the batch; this is no run by itself.
The sources are JSON lines of conversations, and the model a folder from the Hub: name
yours with `--config.data.sources.reasoning.path=...` and `--config.init_from=...`.
"""

from ring_jax.config import (
    DataConfig,
    MeshConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TokenizerConfig,
    TrainConfig,
)

MODEL_FOLDER = "models/Ling-lite"


def fine_tuning(
    *, mesh: MeshConfig, train: TrainConfig, model: ModelConfig | None = None
) -> RunConfig:
    """Returns two stages: reasoning, then generalisation with reasoning replayed."""
    sources = {
        "reasoning": SourceConfig(path="data/reasoning.jsonl", num_rows=400_000),
        "general": SourceConfig(path="data/general.jsonl", num_rows=400_000),
    }
    return RunConfig(
        model=model or ModelConfig(),
        mesh=mesh,
        data=DataConfig(tokenizer=TokenizerConfig(path=MODEL_FOLDER), sources=sources),
        train=train,
        stages={
            "reasoning": StageConfig(
                mixture={"reasoning": 0.9, "general": 0.1},
                num_steps=2000,
                learning_rate=2e-5,
                warmup_steps=60,
            ),
            "generalisation": StageConfig(
                mixture={"general": 0.7, "reasoning": 0.3},
                num_steps=1000,
                learning_rate=1e-5,
                warmup_steps=30,
            ),
        },
        init_from=MODEL_FOLDER,
    )
