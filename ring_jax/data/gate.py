# SPDX-License-Identifier: Apache-2.0
"""The start gate: what would train nothing, or all of it, ends before the first step.

All but the chat template is judged by length indexes and ledgers, so it costs the same
for a thousand rows and for a billion.
"""

import numpy as np

from ring_jax.config import TOKEN_CLASSES, ConfigError, RunConfig
from ring_jax.data.ledger import Ledger
from ring_jax.data.prepared import PreparedData
from ring_jax.data.stage_ledger import class_weights_table, open_ledger
from ring_jax.data.template_check import check_template
from ring_jax.data.windows import MAX_DELAY, Windows

MAX_LEFT_OUT = 0.01
"""Of the tokens of the windows that are tried, for want of room in them."""
NUM_TRIED = 8
PROMPT = TOKEN_CLASSES.index("prompt") - 1
STOP = TOKEN_CLASSES.index("stop") - 1
"""Columns of a length index, which has none for padding."""


def check(config: RunConfig, data: PreparedData) -> None:
    """Refuses data that a stage cannot learn from.

    Raises:
      ConfigError: the chat template that comes with the tokenizer gives other tokens;
        too much of a source is in rows left out for their length; a stage
        leaves the stop token untrained, has a row without a trained
        token, trains conversations whole without saying so, or has a source of which
        no row ever comes; one line with names, values and what to do.
    """
    check_template(config.data, data.tokenizer)
    for source in dict.fromkeys(s for st in config.stages.values() for s in st.sources):
        _check_loss(config, data, source=source)
    for stage in config.stages:
        weights_U = class_weights_table(config, stage=config.stages[stage])[1:]
        if not weights_U[STOP]:
            raise ConfigError(
                f"stage {stage} does not train the stop token (data.class_weights.stop="
                "0), so the model would never end a turn; raise it above 0."
            )
        for source in config.stages[stage].sources:
            _check_some_trained(data, weights_U, stage=stage, source=source)
            _check_not_all_trained(config, data, weights_U, stage=stage, source=source)
        opened = open_ledger(config, data.indexes, stage=stage)
        _check_reached(config, data, opened, stage=stage)
        if config.data.packing.fill is not None:
            _check_room(config, opened, stage=stage)


def _check_loss(config: RunConfig, data: PreparedData, *, source: str) -> None:
    report = data.lengths[source]
    if report.loss > config.data.long_rows.max_loss:
        raise ConfigError(
            f"data.sources.{source}: {report.rows_left_out} of {report.rows} rows, "
            f"with {100 * report.loss:.3g} % of its tokens, are longer than "
            f"train.seq_len={config.train.seq_len} and left out; raise seq_len, try "
            'data.long_rows.policy="split", or allow it with data.long_rows.max_loss.'
        )


def _check_some_trained(
    data: PreparedData, weights_U: np.ndarray, *, stage: str, source: str
) -> None:
    index = data.indexes[source]
    is_reply_U = (weights_U > 0) & (np.arange(len(weights_U)) != STOP)
    reply_bits = int(is_reply_U @ (1 << np.arange(len(weights_U))))
    has_none = (np.arange(len(index.kinds)) & reply_bits) == 0
    numbers, places = np.asarray(index.kinds[has_none]).T
    if num_empty := int(numbers.sum()):
        number = int(index.rows_C[places[places >= 0]].min())
        row = data.sources[source].train[int(data.origins[source][number])]
        raise ConfigError(
            f"row {row.id}: stage {stage} trains none of its tokens ({num_empty} of "
            f"{index.num_rows} rows of source {source} are so); raise "
            "data.class_weights of its classes or drop the row."
        )


def _check_not_all_trained(
    config: RunConfig,
    data: PreparedData,
    weights_U: np.ndarray,
    *,
    stage: str,
    source: str,
) -> None:
    has_prompts = data.indexes[source].sums_JU[:, PROMPT].any()
    # A prompt that weighs less than the reply is somebody's choice.
    is_all_ones = len(set(weights_U.tolist())) == 1
    if has_prompts and is_all_ones and not config.stages[stage].train_prompts:
        raise ConfigError(
            f"stage {stage} trains every token of source {source}, prompts like "
            f"replies (data.class_weights.prompt={weights_U[PROMPT]:g}); set that to "
            f"0, or stages.{stage}.train_prompts=True if it is meant."
        )


def _check_reached(
    config: RunConfig, data: PreparedData, opened: Ledger, *, stage: str
) -> None:
    settings = config.stages[stage]
    places = opened.places(_num_windows(config, opened, stage=stage))
    for source in settings.sources:
        if not places[source].rows:
            index = data.indexes[source]
            tokens = int(index.sums_JU.sum()) // max(1, index.num_rows)
            raise ConfigError(
                f"stage {stage}: no row of source {source} comes in its "
                f"{settings.num_steps} steps (a row has {tokens} tokens on average, "
                f"the share in stages.{stage} is {_shares(config, stage, source)}); "
                "raise its share or num_steps, begin its change earlier, or leave it "
                "out."
            )


def _check_room(config: RunConfig, opened: Ledger, *, stage: str) -> None:
    """Packs windows here and there; a fill that was measured needs no such trial."""
    windows, left_out, tokens = Windows(opened), 0, 0
    last = _num_windows(config, opened, stage=stage) + MAX_DELAY
    for window in range(MAX_DELAY, last, max(1, last // NUM_TRIED)):
        left_out += int(windows.left_out(window).lengths_C.sum())
        tokens += int(opened.rows(window).lengths_C.sum())
    if left_out > MAX_LEFT_OUT * tokens:
        raise ConfigError(
            f"stage {stage}: with data.packing.fill={config.data.packing.fill}, "
            f"{100 * left_out / tokens:.2g} % of the tokens find no room in "
            f"{MAX_DELAY} windows; lower it, or set it to None to have it measured."
        )


def _num_windows(config: RunConfig, opened: Ledger, *, stage: str) -> int:
    return -(-config.stages[stage].num_steps // opened.geometry.window_steps)


def _shares(config: RunConfig, stage: str, source: str) -> str:
    settings = config.stages[stage]
    mixtures = [
        settings.mixture,
        *(change.mixture for change in settings.mixture_changes.values()),
    ]
    shares = [mixture.get(source, 0) / sum(mixture.values()) for mixture in mixtures]
    return ", then ".join(f"{100 * share:.3g} %" for share in shares)
