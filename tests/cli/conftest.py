# SPDX-License-Identifier: Apache-2.0
"""A config file of a model that fits anywhere, for the verbs that need one."""

import json
import pathlib

import pytest

TINY = """
from ring_jax.config import (
    DataConfig, ModelConfig, MoeConfig, RunConfig, SourceConfig, StageConfig,
    TokenizerConfig, to_config_dict,
)

def get_config():
    return to_config_dict(RunConfig(
        num_devices=8,  # as many as tests/conftest.py emulates
        model=ModelConfig(
            vocab_size=512, model_dim=16, num_layers=2, num_heads=2, num_kv_heads=1,
            head_dim=8, max_positions=512, eos_id=1, pad_id=0,
            moe=MoeConfig(
                num_experts=4, num_experts_per_token=2, num_shared_experts=1,
                expert_dim=8,
            ),
        ),
        data=DataConfig(
            tokenizer=TokenizerConfig(vocab_size=300),
            sources={"chat": SourceConfig(path="ROWS")},
        ),
        stages={"base": StageConfig(mixture={"chat": 1.0})},
    ))
"""


@pytest.fixture
def tiny_config(tmp_path: pathlib.Path) -> pathlib.Path:
    rows = tmp_path / "rows.jsonl"
    with rows.open("w") as file:
        for number in range(100):
            turns = [
                {"role": "user", "content": f"What follows {number}?"},
                {"role": "assistant", "content": f"{number + 1}", "think": "One more."},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    config = tmp_path / "tiny.py"
    config.write_text(TINY.replace("ROWS", str(rows)))
    return config
