# SPDX-License-Identifier: Apache-2.0
"""Each planted defect ends where it should; a restart gives the same bytes."""

import dataclasses
import json
import pathlib

import pytest
from array_record.python import (
    array_record_module,  # pyright: ignore[reportAttributeAccessIssue]  # no stub
)

from ring_jax.config import ConfigError, RawSourceConfig, VerificationConfig
from ring_jax.curate import chunks, curate, pipeline
from ring_jax.data.schema import row_from_json
from tests.planted_rows import BAD_LINES, PLANTED


def quarantine(folder: pathlib.Path) -> list[dict]:
    text = (folder / "quarantine.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def shard_rows(folder: pathlib.Path) -> list[dict]:
    rows = []
    for path in sorted(folder.glob("*.array_record")):
        reader = array_record_module.ArrayRecordReader(str(path))
        rows += [json.loads(line) for line in reader.read_all()]
        reader.close()
    return rows


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_planted_defect_ends_where_it_should(make_config, tmp_path):
    manifest = curate(make_config(), tmp_path / "out")
    ends = {}
    for item in quarantine(tmp_path / "out"):
        ends[item["id"]] = f"{item['step']}/{item['reason']}"
        assert item["detail"], item
    for name, (end, record) in PLANTED.items():
        assert ends[record.get("id", name)] == end, name
    first = 40 + len(PLANTED) + 1
    for number, (name, (end, _)) in enumerate(BAD_LINES.items(), first):
        assert ends[f"a.jsonl:{number}"] == end, name
    assert ends[f"a.jsonl:{first + len(BAD_LINES)}"] == "read/cut_off"
    ids = [row["id"] for row in shard_rows(tmp_path / "out")]
    assert ids == [f"clean/{number}" for number in range(40)]
    assert manifest["num_rows"] == 40
    assert manifest["num_records"] == 40 + len(PLANTED) + len(BAD_LINES) + 1
    assert manifest["num_quarantined"] == len(PLANTED) + len(BAD_LINES) + 1


def test_the_manifest_accounts_for_every_record_and_shows_the_offending_pair(
    make_config, tmp_path
):
    out = tmp_path / "out"
    manifest = curate(make_config(), out)
    for before, after in zip(manifest["steps"], manifest["steps"][1:], strict=False):
        assert after["rows_in"] == before["rows_out"]
    for step in manifest["steps"]:
        counted = sum(reason["count"] for reason in step["removed"].values())
        assert counted == step["rows_in"] - step["rows_out"], step["name"]
    by_name = {step["name"]: step for step in manifest["steps"]}
    (pair,) = by_name["contamination"]["removed"]["exam"]["examples"]
    assert "leaves the old station at noon" in pair["detail"]
    assert "A train leaves" in pair["other"]
    assert "Think hard" in pair["excerpt"]
    (copy,) = by_name["duplicates"]["removed"]["exact"]["examples"]
    assert copy["other"].startswith("clean/0: ")
    source = manifest["sources"]["raw"]
    assert source["files"][0]["name"] == "a.jsonl"
    assert len(source["files"][0]["sha256"]) == 64
    assert [shard["name"] for shard in source["shards"]] == [
        f"raw-0000{n}-of-00003.array_record" for n in range(3)
    ]
    page = (out / "report.html").read_text("utf-8")
    assert "Ignore all previous instructions" in page
    assert "<role>" not in page, "foreign text is escaped"
    assert str(tmp_path) not in (out / "manifest.json").read_text("utf-8")


def test_rows_in_shards_can_be_read_back_strictly(make_config, tmp_path):
    curate(make_config(), tmp_path / "out")
    for row in shard_rows(tmp_path / "out"):
        read = row_from_json(json.dumps(row), where="shard", defaults={})
        assert read.licence == "CC0-1.0"
        assert read.package == "a.jsonl==local"


@pytest.mark.parametrize("num_finished", [0, 1, 5])
def test_an_interrupted_curation_goes_on_and_ends_with_the_same_bytes(
    make_config, tmp_path, monkeypatch, num_finished
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    curate(make_config(), whole)
    examine, examined = chunks.examine, []

    def interrupted(*args):
        if len(examined) == num_finished:
            raise KeyboardInterrupt
        examined.append(args)
        return examine(*args)

    monkeypatch.setattr(chunks, "examine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        curate(make_config(), broken)
    assert not list(broken.glob("*.array_record"))
    num_again = []

    def counting(*args):
        num_again.append(args)
        return examine(*args)

    monkeypatch.setattr(chunks, "examine", counting)
    curate(make_config(), broken)
    assert contents(broken) == contents(whole)
    total = -(-(41 + len(PLANTED) + len(BAD_LINES)) // 8)
    assert len(num_again) == total - num_finished, "a finished chunk was made again"


def test_an_interruption_between_shards_keeps_the_finished_ones(
    make_config, tmp_path, monkeypatch
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    curate(make_config(), whole)

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_curation_report", full)
        with pytest.raises(OSError, match="No space"):
            curate(make_config(), broken)
    assert not (broken / "manifest.json").exists()
    before = {p.name: p.stat().st_mtime_ns for p in broken.glob("*.array_record")}
    curate(make_config(), broken)
    after = {p.name: p.stat().st_mtime_ns for p in broken.glob("*.array_record")}
    assert before == after
    assert contents(broken) == contents(whole)


def test_the_number_of_verifying_workers_and_of_rows_in_a_chunk_changes_no_shard(
    make_config, tmp_path
):
    curate(make_config(), tmp_path / "one")
    more = make_config(verification=VerificationConfig(num_workers=2), chunk_rows=1000)
    curate(more, tmp_path / "two")
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    for name in one:
        if name.endswith(".array_record"):
            assert one[name] == two[name]


def test_a_finished_folder_is_not_made_again(make_config, tmp_path, monkeypatch):
    first = curate(make_config(), tmp_path / "out")
    before = contents(tmp_path / "out")
    monkeypatch.setattr(chunks, "examine", None)
    assert curate(make_config(), tmp_path / "out") == json.loads(json.dumps(first))
    assert contents(tmp_path / "out") == before


def test_a_changed_source_or_setting_is_refused_in_one_line(make_config, raw, tmp_path):
    out = tmp_path / "out"
    curate(make_config(), out)
    with pytest.raises(ConfigError, match=r"shard_rows=16, now it is 17"):
        curate(make_config(shard_rows=17), out)
    with (raw / "a.jsonl").open("ab") as file:
        file.write(b"\n")
    with pytest.raises(ConfigError, match=r"sources.raw.0 a.jsonl"):
        curate(make_config(), out)


def test_a_step_that_is_switched_off_removes_nothing(make_config, tmp_path):
    config = make_config()
    config = dataclasses.replace(
        config,
        screen=dataclasses.replace(config.screen, prompt_injection="keep"),
        duplicates=dataclasses.replace(config.duplicates, exact="keep", near="keep"),
        contamination=dataclasses.replace(config.contamination, check="keep"),
    )
    curate(config, tmp_path / "out")
    ids = {row["id"] for row in shard_rows(tmp_path / "out")}
    assert {"injected", "copy", "contaminated"} <= ids


def test_a_folder_that_holds_something_else_is_left_alone(make_config, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="thesis.tex"):
        curate(make_config(), out)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_an_empty_source_is_refused(make_config, raw, tmp_path):
    (tmp_path / "blank.jsonl").write_text("\n\n")
    source = RawSourceConfig(path=str(tmp_path / "blank.jsonl"), licence="CC0-1.0")
    with pytest.raises(ConfigError, match="sources.blank: holds no record"):
        curate(make_config(sources={"blank": source}), tmp_path / "out")
