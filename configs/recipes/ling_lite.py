# SPDX-License-Identifier: Apache-2.0
"""What the recipes share: full fine-tuning in two stages.

Files beside this one choose a pod, its mesh and the batch; this is no run by itself.
The sources are JSON lines of conversations, and the model is a folder from the Hub:
name yours with `--config.data.sources.reasoning.path=...`, `--config.init_from=...` and
`--config.data.tokenizer.path=...`. `ring plan` reads none of them.
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


def fine_tuning(
    *,
    mesh: MeshConfig,
    train: TrainConfig,
    model: ModelConfig | None = None,
    folder: str = "models/Ling-lite",
) -> RunConfig:
    """Returns a run of two stages: reasoning, then generalisation with replay.

    Args:
      mesh: of the pod.
      train: batch, row length, remat.
      model: Ling-lite's where none is given.
      folder: of the model on the Hub, with its tokenizer.
    """
    sources = {
        "reasoning": SourceConfig(path="data/reasoning.jsonl", num_rows=400_000),
        "general": SourceConfig(path="data/general.jsonl", num_rows=400_000),
    }
    return RunConfig(
        model=model or ModelConfig(),
        mesh=mesh,
        data=DataConfig(tokenizer=TokenizerConfig(path=folder), sources=sources),
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
        init_from=folder,
    )
