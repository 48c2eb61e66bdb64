# SPDX-License-Identifier: Apache-2.0
"""A curation asks the verifier that each record names."""

import json

import pytest

from ring_jax.config import ConfigError, VerificationConfig
from ring_jax.curate import curate
from ring_jax.verify import program
from tests.curate.test_pipeline import quarantine, shard_rows

SUMS = {
    "verifier": "program",
    "answer": "see tests",
    "tests": [{"input": "1 2", "output": "3"}, {"input": "2 2", "output": "4"}],
}
RECORDS = {
    "math right": (
        r"So it is \boxed{\frac{2}{4}}.",
        {"verifier": "math", "answer": "0.5"},
    ),
    "math wrong": (
        r"So it is \boxed{\frac{2}{5}}.",
        {"verifier": "math", "answer": "0.5"},
    ),
    "number right": (
        "All in all 1,001 apples.",
        {"verifier": "number", "answer": "1000", "relative_tolerance": 0.01},
    ),
    "number wrong": (
        "All in all 1,001 apples.",
        {"verifier": "number", "answer": "1000"},
    ),
    "choice right": (
        "The answer is (B).",
        {"verifier": "choice", "answer": "Paris", "choices": ["Rome", "Paris"]},
    ),
    "choice wrong": ("The answer is (C).", {"verifier": "choice", "answer": "B"}),
    "program right": ("```python\nprint(sum(map(int, input().split())))\n```", SUMS),
    "program wrong": ("```python\nprint(3)\n```", SUMS),
}


def test_each_record_is_asked_of_its_own_verifier(make_config, tmp_path, raw):
    try:
        program.proven_jail()
    except ConfigError as error:
        pytest.skip(str(error))
    for path in raw.iterdir():
        path.unlink()
    with (raw / "b.jsonl").open("w") as file:
        for name, (reply, more) in RECORDS.items():
            turns = [
                {"role": "user", "content": f"This is the question called {name}."},
                {"role": "assistant", "content": reply},
            ]
            record = {"id": name, "messages": turns, "difficulty": 0.5, **more}
            file.write(json.dumps(record) + "\n")
    curate(
        make_config(verification=VerificationConfig(num_workers=2, timeout_seconds=60)),
        tmp_path / "out",
    )
    kept = [row["id"] for row in shard_rows(tmp_path / "out")]
    assert kept == [name for name in RECORDS if name.endswith("right")]
    gone = {item["id"]: item for item in quarantine(tmp_path / "out")}
    assert list(gone) == [name for name in RECORDS if name.endswith("wrong")]
    assert {item["reason"] for item in gone.values()} == {"wrong_answer"}
    assert "test 2 of 2: it printed" in gone["program wrong"]["detail"]
