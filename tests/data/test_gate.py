# SPDX-License-Identifier: Apache-2.0
"""The start gate: each way to train nothing or everything ends in one line."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from ring_jax.data import gate, length_index, prepared
from ring_jax.data.chat import Rendered
from ring_jax.data.long_rows import LengthReport
from ring_jax.data.prepared import PreparedData
from ring_jax.data.schema import Row
from ring_jax.data.sources import SourceRows
from ring_jax.data.tokenizer import train

TOKENIZER = train([], vocab_size=300)


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


ROWS = st.lists(
    st.lists(st.integers(1, 4), min_size=1, max_size=6), min_size=1, max_size=12
)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    rows=ROWS,
    of_class=st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=4, max_size=4),
)
def test_rows_without_a_trained_token_are_found_whatever_the_classes(rows, of_class):
    # Row by row, as the gate must not do it.
    names = map(str, TOKEN_CLASSES[1:])
    class_weights = dict(zip(names, [*of_class, 0.25], strict=True))
    untrained = [
        number
        for number, classes in enumerate(rows)
        if not any(of_class[token_class - 1] for token_class in classes)
    ]
    given_config, given_data = made_of(rows, class_weights)
    if not untrained:
        gate.check(given_config, given_data)
        return
    message = rf"row \d+: stage base .*\({len(untrained)} of {len(rows)} rows"
    with pytest.raises(ConfigError, match=message) as error:
        gate.check(given_config, given_data)
    assert int(str(error.value).split(":")[0].removeprefix("row ")) in untrained


def made_of(
    rows: list[list[int]], class_weights: dict[str, float]
) -> tuple[RunConfig, PreparedData]:
    """Data of rows of these token classes; each has a first token and a stop token."""
    stop = TOKEN_CLASSES.index("stop")
    rendered = [
        Rendered(np.zeros(len(row) + 2, np.int32), np.asarray([1, *row, stop]))
        for row in rows
    ]
    index = length_index.build([(row, 0.0) for row in rendered], seq_len=16)
    named = [
        Row(id=str(i), text="x", source="a", domain="d", licence="MIT", package="p==1")
        for i in range(len(rows))
    ]
    given_config = RunConfig(
        data=DataConfig(
            sources={"a": SourceConfig()},
            class_weights=class_weights,
            packing=PackingConfig(window_rows=8),
        ),
        train=TrainConfig(global_batch_size=4, seq_len=16),
        stages={"base": StageConfig(mixture={"a": 1.0}, train_prompts=False)},
    )
    given_data = PreparedData(
        tokenizer=TOKENIZER,
        sources={"a": SourceRows(named, [])},
        rendered={"a": rendered},
        origins={"a": np.arange(len(rows))},
        lengths={"a": LengthReport(rows=len(rows), tokens=1)},
        indexes={"a": index},
        row_digests={},
        tokenizer_digest="",
        digest="",
    )
    return given_config, given_data


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
