# SPDX-License-Identifier: Apache-2.0
"""Whatever comes in is counted, quarantined, or refused in one line."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from ring_jax.config import (
    ConfigError,
    CurateConfig,
    RawSourceConfig,
    TaxonomyConfig,
)
from ring_jax.curate import curate
from tests.curate.hostile import ENDS
from tests.planted_rows import chat, clean

FIELDS = """
    samples pass_rate topics difficulty level answer verifier domain id metadata task
    system source licence package rejected text finish_reason
    """.split()  # noqa: SIM905  (a list of this length reads better as text)
VALUES = [
    5, -1, 2.5, True, None, "abc", "\u0007", "x" * 30_000, {"a": 1},
    [1, 2, 3], [None] * 4, [[1], [1], [1]], [""] * 5,
]  # fmt: skip


def reasons(folder) -> dict[str, str]:
    lines = (folder / "quarantine.jsonl").read_text("utf-8").splitlines()
    return {item["id"]: item["reason"] for item in map(json.loads, lines)}


def test_a_verifier_that_goes_wrong_costs_its_own_row(hostile, tmp_path):
    manifest = curate(hostile, tmp_path / "out")
    assert reasons(tmp_path / "out") == ENDS
    assert manifest["num_rows"] == 6


@pytest.mark.parametrize("check", ["tag", "keep"])
def test_whatever_a_field_holds_the_record_is_kept_or_has_a_reason(tmp_path, check):
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for number, value in enumerate(VALUES):
            for name in FIELDS:
                outer = chat(f"What is {name} {number}?", f"It is {number}, {name}.")
                inner = chat(f"Which is {name} {number}?", f"That {number}, {name}.")
                file.write(json.dumps({**outer, name: value}) + "\n")
                file.write(json.dumps({**inner, "metadata": {name: value}}) + "\n")
    config = CurateConfig(
        sources={"raw": RawSourceConfig(path=str(path), licence="CC0-1.0")},
        taxonomy=TaxonomyConfig(check=check),
        chunk_rows=50,
    )
    manifest = curate(config, tmp_path / "out")
    assert manifest["num_records"] == 2 * len(VALUES) * len(FIELDS)
    # What is no field of a form, and all of `metadata`, may hold anything.
    assert manifest["num_rows"] > manifest["num_records"] // 2


def parquet(path, records, **settings) -> RawSourceConfig:
    table = pyarrow.Table.from_pylist(records)
    pyarrow.parquet.write_table(table, path, compression="none", **settings)
    return RawSourceConfig(kind="parquet", path=str(path), licence="CC0-1.0")


def test_half_a_parquet_file_is_refused_before_anything_is_written(tmp_path):
    source = parquet(tmp_path / "a.parquet", [clean(n) for n in range(50)])
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match=r"a.parquet cannot be read") as error:
        curate(CurateConfig(sources={"raw": source}), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_parquet_file_that_breaks_off_inside_ends_with_the_same_line_each_time(
    tmp_path,
):
    records = [{"text": json.dumps(clean(n))} for n in range(400)]
    path = tmp_path / "a.parquet"
    source = parquet(path, records, row_group_size=100, use_dictionary=False)
    data = bytearray(path.read_bytes())
    # The header of a later column chunk: only who reads the rows finds it broken.
    place = pyarrow.parquet.ParquetFile(path).metadata.row_group(2).column(0)
    data[place.data_page_offset : place.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    config = CurateConfig(sources={"raw": source}, chunk_rows=50)
    lines = []
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"a.parquet cannot be read") as error:
            curate(config, tmp_path / "out")
        lines.append(str(error.value))
    assert lines[0] == lines[1]
    assert "\n" not in lines[0]
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_parquet_file_without_rows_is_refused(tmp_path):
    table = pyarrow.table({"text": pyarrow.array([], pyarrow.string())})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    source = RawSourceConfig(
        kind="parquet", path=str(tmp_path / "a.parquet"), licence="CC0-1.0"
    )
    with pytest.raises(ConfigError, match="sources.raw: holds no record"):
        curate(CurateConfig(sources={"raw": source}), tmp_path / "out")


def test_sources_may_share_ids_and_the_first_row_of_each_id_stays(tmp_path):
    sources = {}
    for name, numbers in (("best", [1, 2]), ("other", [11, 12])):
        rows = [{**clean(n), "id": f"row {n % 10}"} for n in numbers]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources[name] = RawSourceConfig(path=str(path), licence="CC0-1.0")
    manifest = curate(CurateConfig(sources=sources), tmp_path / "out")
    assert manifest["sources"]["best"]["num_rows"] == 2
    removed = manifest["sources"]["other"]["removed"]
    assert removed == {"duplicates/duplicate_id": 2}
    assert manifest["sources"]["other"]["shards"] == []
