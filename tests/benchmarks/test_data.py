# SPDX-License-Identifier: Apache-2.0
"""`benchmarks.data`, as small as it gets: that its figures are of what they say."""

import json

import numpy as np
import pytest

from benchmarks import data, deduplication, prepare_and_feed
from ring_jax.data.tokenizer import load


def test_a_few_rows_go_from_jsonl_to_batches(tmp_path):
    found = prepare_and_feed.measure(tmp_path, num_traces=4)
    tokenizer = load(tmp_path / "tokenizer.json")
    assert tokenizer.vocab_size > 100_000
    messages = [
        json.loads(line)["messages"]
        for name in ("traces", "instructions")
        for line in (tmp_path / f"{name}.jsonl").read_text("utf-8").splitlines()
    ]
    texts = [
        text
        for question, reply in messages
        for text in (question["content"], reply.get("think", ""), reply["content"])
    ]
    plain = sum(len(tokenizer.encode(text)) for text in texts)
    # Beside the texts a row has roles, tags and the stop token.
    assert plain < found["prepare_tokens"] < plain + 20 * len(messages)
    assert min(found.values()) > 0
    manifest = json.loads((tmp_path / "packed" / "manifest.json").read_text())
    num_tokens = manifest["stages"]["base"]["num_tokens"]
    assert found["feed_tokens"] == prepare_and_feed.PASSES * num_tokens


def test_packed_rows_of_a_mixture_are_full():
    assert 0.98 <= data.packing_efficiency() <= 1


def test_a_drawn_index_has_the_lengths_that_were_asked_for():
    index = data.drawn_index(np.random.default_rng(1), 5_000, mean=250, sigma=0.8)
    median = np.median(index.counts_CU.sum(axis=1) + 1)
    assert median == pytest.approx(250, rel=0.05)


def test_both_sides_remove_the_planted_duplicates():
    found = deduplication.measure(100)
    assert found["dedup_removed"] == found["datasketch_removed"] == 10


def test_the_memory_of_a_curation_is_that_of_its_process(tmp_path):
    peak = data.curation_peak_bytes(tmp_path, num_rows=50)
    assert 50e6 < peak < 2e9
    assert json.loads((tmp_path / "curated/manifest.json").read_text())["num_rows"] > 45
