# SPDX-License-Identifier: Apache-2.0
"""What a run will train on: rows as the model meets them, shares, and what is left out.

Everything is counted over all rows by the code that training uses, so that the figures
are those of the run, not of a sample.
"""

import dataclasses
import itertools
import operator
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ring_jax.config import TOKEN_CLASSES, ConfigError, RunConfig, StageConfig
from ring_jax.data import gate, prepared
from ring_jax.data.chat import Rendered
from ring_jax.data.prepared import PreparedData
from ring_jax.data.schema import Row
from ring_jax.data.stage_ledger import class_weights_table, open_ledger
from ring_jax.data.template_check import template_report

CLASSES: tuple[str, ...] = TOKEN_CLASSES[1:]


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring tokens of one class."""

    text: str
    token_class: str
    weight: float


@dataclasses.dataclass(frozen=True, slots=True)
class ShownRow:
    """One row, or a part of a long one, as it is trained."""

    source: str
    description: str
    spans: tuple[Span, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class DataView:
    """What there is to see; plain values, for pages and scripts."""

    gate: str
    """What the start gate refuses, in its own words; empty where it lets all pass."""
    settings: Mapping[str, Any]
    """`seq_len`, `template`, `chat_template` (how the one that comes with the tokenizer
    compares with it), `long_rows` and `tokenizer_entries`."""
    weights: Mapping[str, Mapping[str, float]]
    """Stage -> class -> loss weight."""
    sources: Mapping[str, Mapping[str, Any]]
    """Source -> rows and tokens, read, left out and split; tokens by class."""
    stages: Mapping[str, Mapping[str, Mapping[str, float]]]
    """Stage -> source -> what of it the whole stage trains on; a stage whose ledger is
    refused is not in it."""
    rows: tuple[ShownRow, ...]


def view_data(
    config: RunConfig, workdir: pathlib.Path | None, *, num_rows: int
) -> DataView:
    """Reads a run's data as training does.

    Args:
      config: of the run.
      workdir: a run folder, whose tokenizer is used if it has one.
      num_rows: rows of each source to show.

    Raises:
      ConfigError: `num_rows` is below 1, or the data cannot be read; what only the
        start gate refuses is part of the view.
    """
    if num_rows < 1:
        raise ConfigError(f"--data={num_rows} must be at least 1.")
    config = _with_tokenizer(config, workdir)
    data = prepared.read(config, workdir)
    weights = {name: _weights(config, stage) for name, stage in config.stages.items()}
    return DataView(
        gate=_refusal(config, data),
        settings={
            "seq_len": config.train.seq_len,
            "template": config.data.template,
            "chat_template": _chat_template(config, data),
            "long_rows": config.data.long_rows.policy,
            "tokenizer_entries": data.tokenizer.vocab_size,
        },
        weights=weights,
        sources={name: _source(data, name) for name in data.sources},
        stages=dict(_stages(config, data)),
        rows=tuple(
            row
            for name in data.sources
            for row in _rows(config, data, weights, name, num_rows=num_rows)
        ),
    )


def _with_tokenizer(config: RunConfig, workdir: pathlib.Path | None) -> RunConfig:
    if workdir is None or not (workdir / "tokenizer/tokenizer.json").is_file():
        return config
    tokenizer = dataclasses.replace(
        config.data.tokenizer, path=str(workdir / "tokenizer")
    )
    data = dataclasses.replace(config.data, tokenizer=tokenizer)
    return dataclasses.replace(config, data=data)


def _weights(config: RunConfig, stage: StageConfig) -> dict[str, float]:
    weights_U = class_weights_table(config, stage=stage)[1:]
    return dict(zip(CLASSES, weights_U.tolist(), strict=True))


def _refusal(config: RunConfig, data: PreparedData) -> str:
    try:
        gate.check(config, data)
    except ConfigError as error:
        return str(error)
    return ""


def _chat_template(config: RunConfig, data: PreparedData) -> str:
    try:
        return template_report(config.data, data.tokenizer).summary()
    except ConfigError:
        return "cannot be rendered"  # the gate has said why


def _source(data: PreparedData, name: str) -> dict[str, Any]:
    index = data.indexes[name]
    by_class = index.sums_JU.sum(axis=0).tolist()
    return {
        **dataclasses.asdict(data.lengths[name]),
        "held_out": len(data.sources[name].heldout),
        "trainable_rows": index.num_rows,
        "tokens_by_class": dict(zip(CLASSES, by_class, strict=True)),
    }


def _stages(
    config: RunConfig, data: PreparedData
) -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
    for name, stage in config.stages.items():
        try:
            opened = open_ledger(config, data.indexes, stage=name)
        except ConfigError:
            continue  # the gate has said why
        places = opened.places(-(-stage.num_steps // opened.geometry.window_steps))
        total = max(1, sum(place.trained for place in places.values()))
        planned = opened.shares(0)
        yield (
            name,
            {
                source: {
                    "planned_share": planned.get(source, 0.0),
                    "share": places[source].trained / total,
                    "trained_tokens": places[source].trained,
                    "trained_part": places[source].trained
                    / max(1, places[source].packed),
                    "rows": places[source].rows,
                    "epochs": places[source].rows / data.indexes[source].num_rows,
                }
                for source in stage.sources
            },
        )


def _rows(
    config: RunConfig,
    data: PreparedData,
    weights: Mapping[str, Mapping[str, float]],
    name: str,
    *,
    num_rows: int,
) -> Iterator[ShownRow]:
    readers = [s for s, stage in config.stages.items() if name in stage.sources]
    of_class = weights[(readers or list(weights))[0]]
    for number, tokens in enumerate(data.rendered[name][:num_rows]):
        origins_C = data.origins[name]
        origin = int(origins_C[number])
        first, last = np.searchsorted(origins_C, [origin, origin + 1]).tolist()
        part = (
            f"part {number - first + 1} of {last - first}" if last - first > 1 else ""
        )
        row = data.sources[name].train[origin]
        described = _description(row, part=part, num_tokens=len(tokens.ids))
        yield ShownRow(name, described, tuple(_spans(data, tokens, of_class)))


def _spans(
    data: PreparedData, tokens: Rendered, weights: Mapping[str, float]
) -> Iterator[Span]:
    pairs = zip(tokens.classes.tolist(), tokens.ids.tolist(), strict=True)
    # Neighbours are decoded together: one character may be several tokens.
    for token_class, group in itertools.groupby(pairs, operator.itemgetter(0)):
        text = data.tokenizer.decode([token for _, token in group])
        label = TOKEN_CLASSES[token_class]
        yield Span(text, label, weights[label])


def _description(row: Row, *, part: str, num_tokens: int) -> str:
    parts = [row.source, row.domain, row.task, row.level, row.package, row.licence]
    if row.verifier:
        parts.append(f"{row.verifier} expects {row.answer!r}")
    parts += [part, f"{num_tokens} tokens"]
    return " | ".join(filter(None, parts))
