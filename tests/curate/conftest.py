# SPDX-License-Identifier: Apache-2.0
"""Raw files with defects planted in known places, and small curations of them."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest

from ring_jax.config import CurateConfig, RawSourceConfig, VerificationConfig
from tests.curate.hostile import ENDS, HOSTILE
from tests.planted_rows import BAD_LINES, PLANTED, PROBLEM, chat, clean

# The machine may be busy, and nothing is left in the checkout.
hypothesis.settings.register_profile("ring", deadline=None, database=None)
hypothesis.settings.load_profile("ring")


@pytest.fixture
def raw(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder of raw files: clean rows, every planted record, every bad line."""
    folder = tmp_path / "raw"
    folder.mkdir()
    records = [clean(number) for number in range(40)]
    for name, (_, record) in PLANTED.items():
        records.append({"id": name, **record})
    with (folder / "a.jsonl").open("wb") as file:
        for record in records:
            file.write(json.dumps(record).encode() + b"\n")
        for _, line in BAD_LINES.values():
            file.write(line)
        file.write(b'{"text": "half a li')  # the end of a file that was cut
    exam = tmp_path / "exam.jsonl"
    exam.write_text(json.dumps({"problem": PROBLEM, "answer": "180"}) + "\n")
    return folder


@pytest.fixture
def make_config(raw: pathlib.Path) -> Callable[..., CurateConfig]:
    """Makes the config of a small curation of `raw`."""

    def make(**more: Any) -> CurateConfig:
        exam = RawSourceConfig(path=str(raw.parent / "exam.jsonl"), licence="CC0-1.0")
        settings = {
            "sources": {"raw": RawSourceConfig(path=str(raw), licence="CC0-1.0")},
            "evaluation_sets": {"exam": exam},
            "max_row_bytes": 50_000,
            "chunk_rows": 8,
            "shard_rows": 16,
            "verification": VerificationConfig(num_workers=1),
        }
        return CurateConfig(**{**settings, **more})

    return make


@pytest.fixture
def hostile(tmp_path, monkeypatch) -> CurateConfig:
    """A curation of rows whose verifiers go wrong, each between two that do not."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HOSTILE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    names = [name for bad in (*ENDS, "forks") for name in ("match", bad)]
    records = [
        chat(f"What is {n} + 1?", f"{n + 1}", answer=f"{n + 1}", verifier=name, id=name)
        | ({"id": f"good {n}"} if name == "match" else {})
        for n, name in enumerate(names)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return CurateConfig(
        sources={"raw": RawSourceConfig(path=str(path), licence="CC0-1.0")},
        verification=VerificationConfig(
            num_workers=2, timeout_seconds=3.0, max_memory_bytes=2_000_000_000
        ),
        chunk_rows=4,
    )
