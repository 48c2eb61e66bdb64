# SPDX-License-Identifier: Apache-2.0
"""Readers: nothing is passed over in silence, and a file cut in half is refused."""

import gzip
import json
import pathlib
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from array_record.python import (
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue]  # no stub
)
from hypothesis import given
from hypothesis import strategies as st

from ring_jax.config import ConfigError, RawSourceConfig
from ring_jax.curate.read import MAX_DEPTH, OpenSource, open_source
from ring_jax.curate.rows import RawRecord, Rejection

RECORDS = [{"id": f"r{n}", "text": "word " * (n + 1)} for n in range(300)]


def write(path: pathlib.Path, records: list[dict[str, Any]]) -> None:
    """Writes records in the kind of file that the name says."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".parquet":
        table = pyarrow.Table.from_pylist(records)
        pyarrow.parquet.write_table(table, path, row_group_size=100)
    elif path.suffix == ".array_record":
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for line in lines.splitlines():
            writer.write(line.encode())
        writer.close()
    else:
        path.write_text(lines)


KINDS = {
    "a.jsonl": "jsonl",
    "a.jsonl.gz": "jsonl",
    "a.parquet": "parquet",
    "a.array_record": "array_record",
}


@pytest.fixture(params=KINDS)
def file(request, tmp_path) -> tuple[str, pathlib.Path]:
    path = tmp_path / request.param
    write(path, RECORDS)
    return KINDS[request.param], path


def read_all(source: OpenSource, first: int = 0) -> list[Any]:
    return list(source.read(first))


def open_path(kind: str, path: pathlib.Path | str, **more):
    config = RawSourceConfig(kind=kind, path=str(path), licence="CC0-1.0", **more)
    return open_source(config, name="raw", seed=0, max_row_bytes=10_000)


def test_every_kind_gives_the_same_records_and_starts_anywhere(file):
    kind, path = file
    source = open_path(kind, path)
    records = read_all(source)
    assert [record.fields for record in records] == RECORDS
    assert [record.where for record in records][::299] == [
        f"{path.name}:1",
        f"{path.name}:300",
    ]
    assert read_all(source, 257) == records[257:]


def test_a_file_cut_in_half_is_refused_or_counted(file):
    kind, path = file
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    try:
        records = list(open_path(kind, path).read(0))
    except ConfigError as error:
        assert path.name in str(error)
        assert "\n" not in str(error)
        assert path.suffix != ".jsonl", "lines that are whole are read"
        return
    assert path.suffix == ".jsonl"
    assert isinstance(records[-1], Rejection)
    assert records[-1].reason == "cut_off"
    whole = [record for record in records if isinstance(record, RawRecord)]
    assert [record.fields for record in whole] == RECORDS[: len(whole)]


def test_a_file_damaged_in_its_middle_never_gives_other_records(file):
    kind, path = file
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 3, len(data) // 3 + 40):
        data[place] ^= 0xFF
    path.write_bytes(data)
    try:
        records = list(open_path(kind, path).read(0))
    except ConfigError as error:
        assert path.name in str(error)
        return
    good = [record.fields for record in records if isinstance(record, RawRecord)]
    if kind == "parquet":
        # Parquet's pages carry no checksum: a flipped letter is another letter. It is
        # for the sha256 of the manifest to tell the file from the published one.
        assert len(records) == len(RECORDS)
    else:
        assert all(record in RECORDS for record in good)


def test_a_giant_row_is_turned_away_and_the_next_is_read(tmp_path):
    giant = {"text": "x" * 20_000}
    for name, kind in KINDS.items():
        write(tmp_path / name, [RECORDS[0], giant, RECORDS[1]])
        first, second, third = read_all(open_path(kind, tmp_path / name))
        assert isinstance(second, Rejection), kind
        assert second.reason == "giant"
        assert (first.fields, third.fields) == (RECORDS[0], RECORDS[1])


def test_bytes_that_are_no_utf8_cost_their_own_record_in_every_kind(tmp_path):
    good, bad = b'{"text": "caf\xc3\xa9"}', b'{"text": "caf\xe9"}'
    (tmp_path / "a.jsonl").write_bytes(good + b"\n" + bad + b"\n" + good + b"\n")
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        file.write((tmp_path / "a.jsonl").read_bytes())
    writer = array_record_module.ArrayRecordWriter(str(tmp_path / "a.array_record"), "")
    for line in (good, bad, good):
        writer.write(line)
    writer.close()
    # Parquet's strings are bytes that its writer vouches for.
    texts = pyarrow.array([b"caf\xc3\xa9", b"caf\xe9", b"caf\xc3\xa9"])
    column = pyarrow.Array.from_buffers(pyarrow.string(), 3, texts.buffers())
    table = pyarrow.table({"text": column})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    for name, kind in KINDS.items():
        first, second, third = read_all(open_path(kind, tmp_path / name))
        assert isinstance(second, Rejection), kind
        assert second.reason == "invalid_utf8"
        assert first.fields == third.fields == {"text": "caf\u00e9"}


@given(st.integers(0, MAX_DEPTH + 20))
def test_a_record_may_be_so_deep_and_no_deeper(tmp_path_factory, depth):
    path = tmp_path_factory.mktemp("deep") / "a.jsonl"
    path.write_text('{"note": ' + "[" * depth + "]" * depth + ' , "text": ""}\n')
    if not depth:
        path.write_text('{"text": ""}\n')
    (record,) = read_all(open_path("jsonl", path))
    assert isinstance(record, Rejection) == (depth + 1 > MAX_DEPTH)


def test_a_string_of_brackets_is_not_deep(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "{[" * 500}) + "\n")
    (record,) = read_all(open_path("jsonl", tmp_path / "a.jsonl"))
    assert isinstance(record, RawRecord)


def test_files_of_a_folder_come_in_the_order_of_their_names(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    for path in (tmp_path, tmp_path / "*.jsonl"):
        source = open_path("jsonl", path)
        assert [record.fields["text"] for record in read_all(source)] == ["a", "b", "c"]
        assert [file.name for file in source.files] == ["a.jsonl", "b.jsonl", "c.jsonl"]


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"kind": "jsonlines"}, "kind='jsonlines' must be one of"),
        ({"path": None}, "path is empty"),
        ({"path": "/no/such/file"}, "names no file"),
        ({"licence": ""}, "licence is empty"),
        ({"kind": "parquet"}, "a.jsonl cannot be read"),
        ({"kind": "array_record"}, "a.jsonl cannot be read"),
        ({"kind": "reasoning_gym", "task": "sums"}, "task='sums'"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused_in_one_line(tmp_path, settings, part):
    path = tmp_path / "a.jsonl"
    write(path, RECORDS)
    config = RawSourceConfig(**{"path": str(path), "licence": "CC0-1.0", **settings})
    with pytest.raises(ConfigError) as error:
        open_source(config, name="raw", seed=0, max_row_bytes=1000)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(ConfigError, match="it is empty"):
        open_path("jsonl", tmp_path / "a.jsonl")
