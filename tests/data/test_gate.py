# SPDX-License-Identifier: Apache-2.0
"""The start gate: each way to train nothing or everything ends in one line."""

import dataclasses
import json

import pytest

from ring_jax.config import (
    TOKEN_CLASSES,
    ConfigError,
    DataConfig,
    MixtureChangeConfig,
    ModelConfig,
    PackingConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TokenizerConfig,
    TrainConfig,
)
from ring_jax.data import gate, prepared
from ring_jax.data.prepared import PreparedData


def weights(**changes: float) -> dict[str, float]:
    return dict.fromkeys(TOKEN_CLASSES[1:], 1.0) | {"prompt": 0.0} | changes


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> RunConfig:
    """Two sources: answers with reasoning, and tool calls without a word of answer."""
    folder = tmp_path_factory.mktemp("rows")
    call = {"name": "add", "arguments": {"a": 1}}
    replies = {
        "sums": {"content": "2", "think": "One and one."},
        "calls": {"content": "", "tool_calls": [call]},
    }
    for name, reply in replies.items():
        with (folder / f"{name}.jsonl").open("w") as file:
            for number in range(40):
                turns = [
                    {"role": "user", "content": f"What is {number}?"},
                    {"role": "assistant", **reply},
                ]
                file.write(json.dumps({"id": f"{name}{number}", "messages": turns}))
                file.write("\n")
    return RunConfig(
        model=ModelConfig(vocab_size=512, eos_id=1, pad_id=1),
        data=DataConfig(
            tokenizer=TokenizerConfig(vocab_size=300),
            sources={
                name: SourceConfig(path=str(folder / f"{name}.jsonl"), num_heldout=4)
                for name in replies
            },
        ),
        train=TrainConfig(global_batch_size=4, seq_len=128),
        stages={"base": StageConfig(mixture={"sums": 1.0, "calls": 1.0})},
    )


@pytest.fixture(scope="module")
def data(config) -> PreparedData:
    return prepared.read(config)


def changed(config: RunConfig, *, stage=None, **data) -> RunConfig:
    base = dataclasses.replace(config.stages["base"], **(stage or {}))
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, **data),
        stages={"base": base},
    )


LATE = {"late": MixtureChangeConfig(step=100, mixture={"calls": 1.0})}
REFUSED = {
    "an untrained stop token": (
        {"class_weights": weights(stop=0.0)},
        r"stage base does not train the stop token .*raise it above 0",
    ),
    "rows without a trained token": (
        {"class_weights": weights(tool=0.0)},
        r"row calls\d+: stage base trains none of its tokens \(36 of 36 rows of source",
    ),
    "rows trained whole": (
        {"class_weights": weights(prompt=1.0)},
        r"stage base trains every token of source sums.*stages\.base\.train_prompts",
    ),
    "a share too small for one row": (
        {"stage": {"mixture": {"sums": 1.0, "calls": 1e-7}, "num_steps": 8}},
        r"no row of source calls comes in its 8 steps .*is 1e-05 %",
    ),
    "windows planned too full": (
        {"packing": PackingConfig(fill=1.0, window_rows=8)},
        r"with data\.packing\.fill=1\.0, .* % of the tokens find no room .*lower it",
    ),
    "a change behind the last step": (
        {"stage": {"mixture": {"sums": 1.0}, "mixture_changes": LATE}},
        r"no row of source calls comes in its 100 steps .*is 0 %, then 100 %",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_teaches_nothing_or_everything_is_refused(changes, message, config, data):
    gate.check(config, data)
    with pytest.raises(ConfigError, match=message) as error:
        gate.check(changed(config, **changes), data)
    assert "\n" not in str(error.value)


MEANT = {
    "prompts on request": {
        "class_weights": weights(prompt=1.0),
        "stage": {"train_prompts": True},
    },
    "prompts that weigh less": {"class_weights": weights(prompt=0.1)},
    "reasoning alone": {
        "class_weights": weights(answer=0.0, tool=0.0),
        "stage": {"mixture": {"sums": 1.0}},
    },
    "a change in time": {
        "stage": {"mixture": {"sums": 1.0}, "mixture_changes": LATE, "num_steps": 130}
    },
}


@pytest.mark.parametrize("changes", MEANT.values(), ids=MEANT)
def test_what_a_config_means_passes(changes, config, data):
    gate.check(changed(config, **changes), data)
