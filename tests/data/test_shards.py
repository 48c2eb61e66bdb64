# SPDX-License-Identifier: Apache-2.0
"""From `ring curate` to batches: rows stay in their files, and are what they were."""

import contextlib
import dataclasses
import json
import pathlib

import numpy as np
import pytest

from ring_jax.batch import Batch
from ring_jax.config import (
    ConfigError,
    CurateConfig,
    DataConfig,
    LongRowsConfig,
    ModelConfig,
    RawSourceConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TokenizerConfig,
    TrainConfig,
)
from ring_jax.curate import curate
from ring_jax.data import pipeline, prepared
from ring_jax.data.sources.split import prompt_of

NUM_ROWS = 90


@pytest.fixture(scope="module")
def curated(tmp_path_factory) -> pathlib.Path:
    """Three shards of thirty rows, one in three prompts asked twice."""
    folder = tmp_path_factory.mktemp("data")
    with (folder / "sums.jsonl").open("w") as file:
        for number in range(NUM_ROWS):
            asked = number - number % 3 if number % 3 == 1 else number
            steps = " ".join(f"Add {i} to {number}." for i in range(number % 20))
            turns = [
                {"role": "user", "content": f"What follows {asked}?"},
                {"role": "assistant", "content": str(number), "think": steps or "So."},
            ]
            file.write(json.dumps({"id": str(number), "messages": turns}) + "\n")
    config = CurateConfig(
        sources={"sums": RawSourceConfig(path=f"{folder}/sums.jsonl", licence="MIT")},
        shard_rows=30,
    )
    off = dataclasses.replace(config.duplicates, near="keep")
    manifest = curate(dataclasses.replace(config, duplicates=off), folder / "out")
    assert manifest["num_rows"] == NUM_ROWS
    return folder / "out"


def run_config(path, *, kind="array_record", **changes) -> RunConfig:
    data = {
        "tokenizer": TokenizerConfig(vocab_size=300),
        "sources": {"sums": SourceConfig(kind=kind, path=str(path), num_heldout=0)},
        "long_rows": LongRowsConfig(max_loss=1.0),
    }
    return RunConfig(
        model=ModelConfig(vocab_size=512, eos_id=1, pad_id=1),
        data=DataConfig(**(data | changes)),
        train=TrainConfig(global_batch_size=2, seq_len=128),
        stages={"base": StageConfig(mixture={"sums": 1.0})},
    )


def batches_of(config, data, count: int) -> list[Batch]:
    opened = pipeline.TrainBatches(config, data, stage="base")
    with contextlib.closing(opened):
        return [next(opened) for _ in range(count)]


@pytest.mark.parametrize(
    "long_rows",
    [LongRowsConfig(max_loss=1.0), LongRowsConfig(policy="split", carried_tokens=9)],
    ids=["drop", "split"],
)
def test_shards_train_as_the_same_rows_in_memory(long_rows, curated, tmp_path):
    settings = {"long_rows": long_rows}
    lazy = run_config(curated / "sums-*.array_record", **settings)
    rows = tmp_path / "rows.jsonl"
    data = pipeline.prepare(lazy, tmp_path / "lazy")
    with rows.open("w") as file:
        for row in data.sources["sums"].train:
            turns = [dataclasses.asdict(turn) for turn in row.messages]
            fields = {"id": row.id, "messages": turns, "difficulty": row.difficulty}
            file.write(json.dumps(fields) + "\n")
    eager = run_config(rows, kind="jsonl", **settings)
    other = pipeline.prepare(eager, tmp_path / "eager")
    assert data.indexes["sums"].digest == other.indexes["sums"].digest
    assert data.lengths == other.lengths
    assert data.lengths["sums"].rows_left_out + data.lengths["sums"].rows_split > 5
    left, right = batches_of(lazy, data, 20), batches_of(eager, other, 20)
    for one, another in zip(left, right, strict=True):
        for field in dataclasses.fields(Batch):
            np.testing.assert_array_equal(
                getattr(one, field.name), getattr(another, field.name)
            )


def test_worker_processes_open_the_files_themselves(curated, tmp_path):
    config = run_config(curated)
    data = pipeline.prepare(config, tmp_path)
    # Files are open here before the workers get what reads them.
    assert data.rendered["sums"][3].ids.size
    workers = run_config(curated, num_workers=2)
    for one, another in zip(
        batches_of(config, data, 3), batches_of(workers, data, 3), strict=True
    ):
        np.testing.assert_array_equal(one.ids_BT, another.ids_BT)


def test_a_second_start_reads_no_row_and_damage_is_told_by_who_reads_it(
    curated, tmp_path
):
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in curated.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    # The tokenizer is not trained on the rows, so that nothing else reads them.
    first = pipeline.prepare(run_config(folder), tmp_path / "first")
    tokenizer = TokenizerConfig(path=str(tmp_path / "first" / "tokenizer"))
    config = run_config(folder, tokenizer=tokenizer)
    before = pipeline.prepare(config, tmp_path / "run")
    shard = folder / "sums-00001-of-00003.array_record"
    damaged = bytearray(shard.read_bytes())
    damaged[2000:2100] = bytes(100)  # some row of the first ones
    shard.write_bytes(damaged)
    again = prepared.read(config, tmp_path / "run")
    assert again.digest == before.digest
    assert again.indexes["sums"].digest == first.indexes["sums"].digest
    np.testing.assert_array_equal(again.origins["sums"], before.origins["sums"])
    assert again.lengths == before.lengths
    with pytest.raises(OSError, match=r"sums-00001-of-00003.*curate again"):
        list(again.sources["sums"].train)


def test_moved_rows_are_trained_by_a_longer_run_and_no_row_is_lost(curated, tmp_path):
    move = LongRowsConfig(policy="move", max_loss=0.0)
    source = SourceConfig(kind="array_record", path=str(curated), num_heldout=9)
    settings = {"long_rows": move, "sources": {"sums": source}}
    data = pipeline.prepare(run_config(curated, **settings), tmp_path / "short")
    report = data.lengths["sums"]
    assert report.rows_moved > 5
    assert report.rows_left_out == 0
    path = prepared.longer_path(tmp_path / "short", "sums")
    tokenizer = TokenizerConfig(path=str(tmp_path / "short" / "tokenizer"))
    longer = run_config(path, long_rows=move, tokenizer=tokenizer)
    longer = dataclasses.replace(longer, train=TrainConfig(seq_len=512))
    moved = prepared.read(longer)
    assert moved.lengths["sums"].tokens == report.tokens_moved
    here = [data.sources["sums"].train[i] for i in data.origins["sums"].tolist()]
    ids = {row.id for row in here}
    there = {row.id for row in moved.sources["sums"].train}
    assert len(there) == report.rows_moved == len(moved.rendered["sums"])
    assert not ids & there
    # A start that reads no row leaves the file, one without it writes it again.
    written = path.read_bytes()
    path.unlink()
    pipeline.prepare(run_config(curated, **settings), tmp_path / "short")
    assert path.read_bytes() == written


def test_prompts_that_are_held_out_are_never_trained(curated, tmp_path):
    source = SourceConfig(kind="array_record", path=str(curated), num_heldout=20)
    data = pipeline.prepare(run_config(curated, sources={"sums": source}), tmp_path)
    rows = data.sources["sums"]
    apart = {prompt_of(row) for row in rows.heldout}
    assert len(rows.heldout) == len(apart) == 20
    trained = {prompt_of(rows.train[i]) for i in data.origins["sums"].tolist()}
    assert not trained & apart
    assert apart <= {prompt_of(row) for row in rows.train}
    # Each prompt of a pair goes with the other: more rows than prompts are left out.
    dropped = data.lengths["sums"].rows_left_out
    assert len(data.origins["sums"]) < NUM_ROWS - 20 - dropped


def test_other_shards_are_another_data_set(curated, tmp_path):
    config = run_config(curated)
    data = pipeline.prepare(config, tmp_path / "all")
    opened = pipeline.TrainBatches(config, data, stage="base")
    state = opened.get_state()
    fewer = run_config(curated / "sums-00000-of-00003.array_record")
    other = pipeline.prepare(fewer, tmp_path / "one")
    assert len(other.sources["sums"].train) == 30
    with pytest.raises(ConfigError, match=r"sources\.sums\.tokens: .* -> "):
        pipeline.TrainBatches(fewer, other, stage="base").set_state(state)


def cut(folder: pathlib.Path) -> None:
    path = folder / "sums-00002-of-00003.array_record"
    path.write_bytes(path.read_bytes()[:-100])


def strange(folder: pathlib.Path) -> None:
    shard = folder / "sums-00002-of-00003.array_record"
    shard.rename(folder / "other.array_record")
    for path in folder.glob("sums-*"):
        path.unlink()


def no_manifest(folder: pathlib.Path) -> None:
    (folder / "manifest.json").unlink()
    cut(folder)


BROKEN = {
    "missing": (
        lambda folder: (folder / "sums-00001-of-00003.array_record").unlink(),
        "2 of the 3 shards of sums are there",
    ),
    "cut": (cut, r"sums-00002-of-00003\.array_record has \d+ bytes, manifest\.json"),
    "cut, without a manifest": (no_manifest, r"sums-00002-of-00003\.array_record: "),
    "not listed": (strange, r"other\.array_record is not in the manifest\.json"),
    "no manifest of ours": (
        lambda folder: (folder / "manifest.json").write_text('{"sources": 3}'),
        "is no manifest of ring curate",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), BROKEN.values(), ids=BROKEN)
def test_shards_that_are_not_whole_are_refused(spoil, message, curated, tmp_path):
    for file in curated.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=message) as error:
        prepared.open_sources(run_config(tmp_path))
    assert "\n" not in str(error.value)
    assert "curate again" in str(error.value)


def test_a_path_without_shards_is_refused(tmp_path):
    for path in (tmp_path / "no", tmp_path, ""):
        with pytest.raises(ConfigError, match=r"data\.sources\.sums\.path=.* no file"):
            prepared.open_sources(run_config(path))
