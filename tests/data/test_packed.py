# SPDX-License-Identifier: Apache-2.0
"""Packed rows in shards: the same bytes as batches made on the fly, or a refusal."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import resource
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring_jax.batch import Batch
from ring_jax.cli.status import ENVIRONMENT, status_of
from ring_jax.config import (
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
from ring_jax.data import pack, packed_rows, packing, pipeline, prepared
from ring_jax.data.chat import Rendered
from ring_jax.data.mixture_table import Change
from ring_jax.data.prepared import PreparedData
from ring_jax.data.schema import row_to_json
from ring_jax.data.sources.record_files import RecordFiles, write_records
from ring_jax.data.stage_ledger import open_ledger
from ring_jax.data.windows import Windows

BATCH_SIZE, SEQ_LEN = 4, 128
SOURCES = {
    "sums": SourceConfig(
        kind="reasoning_gym", task="chain_sum", level="easy", num_rows=120
    ),
    "orders": SourceConfig(kind="instructions", num_rows=60, num_heldout=10),
}
CHANGE = MixtureChangeConfig(step=20, mixture={"orders": 3.0, "sums": 1.0})
STAGES = {
    "base": StageConfig(
        mixture={"sums": 3.0, "orders": 1.0},
        mixture_changes={"later": CHANGE},
        num_steps=30,
    ),
    "reasoning": StageConfig(mixture={"sums": 1.0}, num_steps=11, train_prompts=True),
}
FIELDS = [field.name for field in dataclasses.fields(Batch)]
SHARD = "base-00001-of-00004.array_record"
"""Steps 8 to 15 of the first stage: windows, and so shards, have 8 steps."""


def run_config(packed=None, *, seed=0, stages=STAGES, **data) -> RunConfig:
    data = {
        "sources": SOURCES,
        "tokenizer": TokenizerConfig(vocab_size=400, num_training_rows=100),
        "packing": PackingConfig(window_rows=32),
        "packed": None if packed is None else str(packed),
        **data,
    }
    return RunConfig(
        model=ModelConfig(vocab_size=512, eos_id=1, pad_id=0),
        data=DataConfig(**data),
        train=TrainConfig(global_batch_size=BATCH_SIZE, seq_len=SEQ_LEN),
        seed=seed,
        stages=stages,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> PreparedData:
    return pipeline.prepare(run_config(), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("packed")
    pack.pack(run_config(), folder, tokens_per_shard=1)
    return folder


@pytest.fixture
def copied(packed, tmp_path) -> pathlib.Path:
    return shutil.copytree(packed, tmp_path / "packed")


@contextlib.contextmanager
def opened(config, data, *, stage="base", rows=None):
    batches = pipeline.TrainBatches(config, data, stage=stage, rows=rows)
    with contextlib.closing(batches):
        yield batches


def take(batches, count: int) -> list[Batch]:
    return [next(batches) for _ in range(count)]


def assert_same(left: Batch, right: Batch) -> None:
    for name in FIELDS:
        one, other = getattr(left, name), getattr(right, name)
        assert one.dtype == other.dtype, name
        np.testing.assert_array_equal(one, other)


@pytest.fixture(scope="module")
def made(data) -> dict[str, list[Batch]]:
    """All batches of each stage, packed on the fly."""
    batches = {}
    for stage, settings in STAGES.items():
        with opened(run_config(), data, stage=stage) as iterator:
            batches[stage] = take(iterator, settings.num_steps)
    return batches


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("num_hosts", [1, 2, 4])
def test_every_batch_is_the_one_made_on_the_fly(stage, num_hosts, data, packed, made):
    for host in range(num_hosts):
        rows = range(host, BATCH_SIZE, num_hosts)
        with opened(run_config(packed), data, stage=stage, rows=rows) as batches:
            for expected in made[stage]:
                mine = {f: getattr(expected, f)[list(rows)] for f in FIELDS}
                assert_same(next(batches), Batch(**mine))
            with pytest.raises(StopIteration):
                next(batches)


# Into a window, at its border, before the mixture changes, and into the last window.
@pytest.mark.parametrize("position", [3, 8, 23, 27])
@pytest.mark.parametrize("num_hosts", [1, 2, 4])
def test_a_run_changes_between_shards_and_packing_as_it_continues(
    position, num_hosts, data, packed, made
):
    for first, then in ((None, packed), (packed, None)):
        with opened(run_config(first), data) as batches:
            take(batches, position)
            state = json.loads(json.dumps(batches.get_state()))
        for host in range(num_hosts):
            rows = range(host, BATCH_SIZE, num_hosts)
            with opened(run_config(then), data, rows=rows) as batches:
                batches.set_state(state)
                for expected in made["base"][position : position + 3]:
                    mine = {f: getattr(expected, f)[list(rows)] for f in FIELDS}
                    assert_same(next(batches), Batch(**mine))


def test_workers_read_the_same_bytes(data, packed, made):
    with opened(run_config(packed, num_workers=2), data) as batches:
        for expected in made["base"][:6]:
            assert_same(next(batches), expected)


def test_rows_left_out_are_counted_as_on_the_fly(data, tmp_path):
    full = PackingConfig(window_rows=8, fill=1.0)
    stages = {"base": StageConfig(mixture={"sums": 1.0, "orders": 1.0}, num_steps=40)}
    # At once, without the start gate, which refuses such a fill.
    config = run_config(packing=full, stages=stages)
    with opened(config, data) as batches:
        take(batches, 40)
        expected = batches.get_state()
    assert expected["left_out"] > 0, "else this test shows nothing"
    writer = pack.StageWriter(config, data, tmp_path, 1, stage="base")
    manifest = {"kind": "packed rows", "format": packed_rows.FORMAT}
    manifest["stages"] = json.loads(json.dumps({"base": writer.finish()}))
    (tmp_path / packed_rows.MANIFEST).write_text(json.dumps(manifest))
    with opened(run_config(tmp_path, packing=full, stages=stages), data) as batches:
        take(batches, 40)
        assert batches.get_state() == expected
    refusing = PackingConfig(window_rows=8, fill=1.0, no_room="refuse")
    refusing = run_config(tmp_path, packing=refusing, stages=stages)
    with pytest.raises(ConfigError, match=r'found no room.*no_room="refuse"'):
        packed_rows.check(refusing, data)


def test_the_manifest_counts_what_the_ledger_says(data, packed):
    manifest = packed_rows.load_manifest(packed)
    for stage, settings in STAGES.items():
        found = manifest["stages"][stage]
        windows = Windows(open_ledger(run_config(), data.indexes, stage=stage))
        shares = [windows.composition(step) for step in range(settings.num_steps)]
        for name in SOURCES:
            source, own = found["sources"][name], [share[name] for share in shares]
            assert source["num_rows"] == sum(share.rows for share in own)
            tokens = sum(source["tokens_by_class"].values())
            assert tokens == sum(share.tokens for share in own)
            trained = sum(share.trained for share in own)
            assert source["num_trained_tokens"] == trained
        assert found["fill"] == found["num_tokens"] / (
            settings.num_steps * BATCH_SIZE * SEQ_LEN
        )
        for shard in found["shards"]:
            content = (packed / shard["name"]).read_bytes()
            assert shard["sha256"] == hashlib.sha256(content).hexdigest()


documents = st.lists(
    st.tuples(
        st.integers(0, 9),
        st.lists(
            st.tuples(st.integers(0, 2**31 - 1), st.integers(1, 5)),
            min_size=1,
            max_size=12,
        ),
    ),
    max_size=5,
)


@given(rows=st.lists(documents, min_size=1, max_size=3))
def test_a_record_is_read_as_the_row_that_was_written(rows):
    rendered = [
        [
            (source, Rendered(*np.asarray(tokens, np.int32).reshape(-1, 2).T))
            for source, tokens in row
        ]
        for row in rows
    ]
    found = packed_rows.decode([packed_rows.encode(r) for r in rendered], seq_len=60)
    expected = packing.stack(rendered, seq_len=60)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@given(place=st.integers(0, 8), value=st.integers(-5, 99))
def test_a_record_whose_sizes_do_not_add_up_is_refused(place, value):
    tokens = Rendered(np.arange(5, dtype=np.int32), np.full(5, 2, np.int32))
    record = np.frombuffer(packed_rows.encode([(1, tokens)]), "<i4").copy()
    if record[place] == value or place in (4, 6, 7, 8):
        return  # what the token, its class or its source is, no sum can tell
    record[place] = value
    with pytest.raises(ValueError, match=r"a record|add up"):
        packed_rows.decode([record.tobytes()], seq_len=8)


class Killed(BaseException):
    """No error that anything handles."""


def test_an_interrupted_folder_ends_with_the_same_bytes(packed, tmp_path, monkeypatch):
    count, encode = 0, packed_rows.encode

    def mortal(row):
        nonlocal count
        count += 1
        if count == 50:  # in the middle of the second shard
            raise Killed
        return encode(row)

    monkeypatch.setattr(pack, "encode", mortal)
    with pytest.raises(Killed):
        pack.pack(run_config(), tmp_path, tokens_per_shard=1)
    half = sorted(path.name for path in tmp_path.glob("*.array_record"))
    assert half == ["base-00000-of-00004.array_record"]
    with pytest.raises(ConfigError, match="begun and not finished; run `ring pack`"):
        packed_rows.load_manifest(tmp_path)
    begun = count
    pack.pack(run_config(), tmp_path, tokens_per_shard=1)
    num_rows = (30 + 11) * BATCH_SIZE
    assert count - begun == num_rows - 8 * BATCH_SIZE, "a finished shard is kept"
    files = [path for path in packed.rglob("*") if path.is_file()]
    assert len(files) > 8
    for path in files:
        again = tmp_path / path.relative_to(packed)
        assert again.read_bytes() == path.read_bytes(), path.name


def test_a_disk_that_fills_leaves_no_half_shard(packed, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (packed / SHARD).stat().st_size
    others = [path.stat().st_size for path in (packed / "lengths").rglob("*.npy")]
    assert max(others) < size - 5_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 5_000, hard))
    try:
        with pytest.raises(OSError, match="could not be written whole") as error:
            pack.pack(run_config(), tmp_path, tokens_per_shard=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status_of(error.value) == ENVIRONMENT
    assert not [path for path in tmp_path.iterdir() if "array_record" in path.name]
    assert not (tmp_path / packed_rows.MANIFEST).exists()
    pack.pack(run_config(), tmp_path, tokens_per_shard=1)
    assert (tmp_path / SHARD).read_bytes() == (packed / SHARD).read_bytes()


def test_a_finished_folder_is_left_alone_and_a_damaged_one_mended(copied):
    before = (copied / SHARD).read_bytes()
    modified = (copied / packed_rows.MANIFEST).stat().st_mtime_ns
    pack.pack(run_config(), copied, tokens_per_shard=1)
    assert (copied / packed_rows.MANIFEST).stat().st_mtime_ns == modified
    (copied / SHARD).write_bytes(before[:900] + b"?" + before[901:])
    pack.pack(run_config(), copied, tokens_per_shard=1)
    assert (copied / SHARD).read_bytes() == before


CHANGED = {
    "seed": (run_config(seed=1), r"seed: 0 -> 1"),
    "packing": (
        run_config(packing=PackingConfig(window_rows=64)),
        r"packing\.window_rows: 32 -> 64",
    ),
    "mixture": (
        run_config(
            stages=STAGES
            | {"base": dataclasses.replace(STAGES["base"], mixture={"sums": 1.0})}
        ),
        r"mixture\[0\]\.mixture\.sums: 3\.0 -> 1\.0; mixture\[0\]\.mixture\.orders: ",
    ),
    "change": (
        run_config(
            stages=STAGES
            | {
                "base": dataclasses.replace(
                    STAGES["base"],
                    mixture_changes={"later": dataclasses.replace(CHANGE, step=4)},
                )
            }
        ),
        r"mixture\[1\]\.first_step: 24 -> 8",
    ),
    "steps": (
        run_config(
            stages=STAGES | {"base": dataclasses.replace(STAGES["base"], num_steps=31)}
        ),
        r"holds 30 steps of stage base, of 31",
    ),
    "stage": (
        run_config(stages=STAGES | {"more": STAGES["base"]}),
        r"has no stage more, it has \['base', 'reasoning'\]",
    ),
}


@pytest.mark.parametrize(("config", "message"), CHANGED.values(), ids=CHANGED)
def test_other_data_are_refused_with_what_differs(config, message, packed, tmp_path):
    data_config = dataclasses.replace(config.data, packed=str(packed))
    config = dataclasses.replace(config, data=data_config)
    with pytest.raises(ConfigError, match=message) as error:
        pipeline.prepare(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_fewer_steps_and_changes_behind_them_read_the_same_rows(data, packed, made):
    later = {"later": CHANGE, "last": dataclasses.replace(CHANGE, step=70)}
    base = dataclasses.replace(STAGES["base"], num_steps=26, mixture_changes=later)
    config = run_config(packed, stages=STAGES | {"base": base})
    packed_rows.check(config, data)
    with opened(config, data) as batches:
        assert_same(take(batches, 26)[-1], made["base"][25])


def test_a_mixture_that_a_run_decided_is_not_read_from_shards(data, packed):
    with (
        opened(run_config(packed), data) as batches,
        pytest.raises(ConfigError, match=r"data\.packed=.* holds one mixture; unset"),
    ):
        batches.change_mixture(Change(start_step=8, mixture={"sums": 1.0}))
    with opened(run_config(), data, stage="reasoning") as batches:
        batches.change_mixture(Change(start_step=8, mixture={"orders": 1.0}))
        take(batches, 9)
        state = batches.get_state()
    with opened(run_config(packed), data, stage="reasoning") as batches:
        batches.set_state(state)
        with pytest.raises(ConfigError, match=r"mixture\[1\]\.first_step: None -> 8"):
            next(batches)


def no_manifest(folder: pathlib.Path) -> None:
    (folder / packed_rows.MANIFEST).unlink()


def cut(folder: pathlib.Path) -> None:
    (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-9])


BROKEN = {
    "half-written": (no_manifest, "was begun and not finished"),
    "cut": (cut, r"has \d+ bytes of base-00001-of-00004\.array_record, not \d+"),
    "missing": (lambda folder: (folder / SHARD).unlink(), f"lacks {SHARD}"),
    "empty": (shutil.rmtree, "holds no packed rows"),
    "no JSON": (
        lambda folder: (folder / packed_rows.MANIFEST).write_text("{"),
        r"has a manifest\.json that is not of ring pack",
    ),
    "a curation": (
        lambda folder: (folder / packed_rows.MANIFEST).write_text('{"format": 1}'),
        r"has a manifest\.json that is not of ring pack",
    ),
    "later format": (
        lambda folder: (folder / packed_rows.MANIFEST).write_text(
            '{"kind": "packed rows", "format": 9}'
        ),
        "holds packed rows of format 9, not 1",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), BROKEN.values(), ids=BROKEN)
def test_a_folder_that_is_not_whole_is_refused(spoil, message, data, copied):
    spoil(copied)
    with pytest.raises(ConfigError, match=message) as error:
        packed_rows.check(run_config(copied), data)
    assert "\n" not in str(error.value)
    assert "ring pack" in str(error.value)


def test_bits_that_were_lost_are_found_when_they_are_read(data, copied, made):
    content = (copied / SHARD).read_bytes()
    # An id of the last packed row; the size stays.
    record = RecordFiles([copied / SHARD])[-1]
    assert content.count(record) == 1
    spoiled = record[:-1] + bytes([record[-1] ^ 1])
    (copied / SHARD).write_bytes(content.replace(record, spoiled))
    with opened(run_config(copied), data) as batches:
        assert_same(take(batches, 8)[-1], made["base"][7])
        with pytest.raises(OSError, match=r"base-00001-of-00004.*pack again"):
            take(batches, 8)


def test_a_run_on_packed_rows_renders_none_of_its_files(tmp_path, monkeypatch):
    """Rows in shards: their lengths are in the packed folder."""
    from_files = curated(tmp_path)
    pack.pack(from_files, tmp_path / "packed", tokens_per_shard=1)
    packed_config = dataclasses.replace(
        from_files,
        data=dataclasses.replace(from_files.data, packed=str(tmp_path / "packed")),
    )

    def refuse(*args, **kwargs):
        raise AssertionError("a row was rendered")

    with opened(from_files, pipeline.prepare(from_files, tmp_path / "a")) as batches:
        expected = take(batches, 10)
    monkeypatch.setattr(prepared, "render_in_turn", refuse)
    monkeypatch.setattr(prepared.RenderedRows, "take", refuse)
    data = pipeline.prepare(packed_config, tmp_path / "b")
    with opened(packed_config, data) as batches:
        for batch in expected:
            assert_same(next(batches), batch)


def test_rows_in_files_are_tokenized_once_to_be_packed(tmp_path, monkeypatch):
    from_files = curated(tmp_path)

    def refuse(*args, **kwargs):
        raise AssertionError("a row was rendered again")

    with opened(from_files, pipeline.prepare(from_files, tmp_path / "a")) as batches:
        expected = take(batches, 10)
    monkeypatch.setattr(prepared.RenderedRows, "take", refuse)
    pack.pack(from_files, tmp_path / "packed", tokens_per_shard=1)
    packed_config = dataclasses.replace(
        from_files,
        data=dataclasses.replace(from_files.data, packed=str(tmp_path / "packed")),
    )
    data = pipeline.prepare(packed_config, tmp_path / "b")
    with opened(packed_config, data) as batches:
        for batch in expected:
            assert_same(next(batches), batch)
    left = {path.name for path in (tmp_path / "packed").iterdir()}
    assert not [name for name in left if name.startswith("tmp")]


def curated(tmp_path: pathlib.Path) -> RunConfig:
    sums = prepared.open_sources(run_config())["sums"].train
    path = tmp_path / "sums.array_record"
    write_records(path, (row_to_json(row).encode() for row in sums))
    source = SourceConfig(kind="array_record", path=str(path), num_heldout=10)
    return run_config(
        sources={"sums": source},
        stages={"base": StageConfig(mixture={"sums": 1.0}, num_steps=10)},
    )
