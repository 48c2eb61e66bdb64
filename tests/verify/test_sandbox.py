# SPDX-License-Identifier: Apache-2.0
"""A verifier that hangs, forks, dies, eats memory or dials out harms one row only."""

import os
import time

import pytest

from ring_jax.config import ConfigError
from ring_jax.verify import Question, Sandbox

# Python imports this module at the start of every worker.
HOSTILE = """
import os, pathlib, socket, sys, time
import ring_jax.verify.grade
grade = sys.modules["ring_jax.verify.grade"]

def tells_pid(reply, answer, metadata):
    child = os.fork()
    if child == 0:
        time.sleep(600)
    raise ValueError(f"child {child}")

grade.VERIFIERS |= {
    "hangs": lambda *_: time.sleep(600),
    "tells_pid": tells_pid,
    "dies": lambda *_: os._exit(3),
    "eats": lambda *_: bytearray(10**12),
    "dials": lambda *_: socket.socket().connect(("127.0.0.1", 9)),
    "writes": lambda _, answer, __: pathlib.Path(answer).write_text("x" * 9),
    "prints": lambda *_: print('{"correct": true}') or False,
    "peeks": lambda *_: "SECRET_OF_THE_SHELL" in os.environ,
    "lies": lambda *_: 1 / 0,
}
"""


def ask(verifier: str, answer: str = "4") -> Question:
    return Question(verifier=verifier, reply="4", answer=answer, metadata={})


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(HOSTILE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("SECRET_OF_THE_SHELL", "1")
    with Sandbox(
        num_workers=2, timeout_seconds=3.0, max_memory_bytes=2_000_000_000
    ) as made:
        yield made


def test_a_hostile_verifier_costs_its_own_row_and_no_other(sandbox):
    hostile = ["hangs", "dies", "eats", "dials", "prints", "peeks", "lies", "no such"]
    questions = [ask(name) for bad in hostile for name in ("match", bad)]
    start = time.monotonic()
    answers = sandbox.grade(questions)
    # One hang of three seconds; starting a worker anew takes most of the rest.
    assert time.monotonic() - start < 300
    assert [answer.outcome for answer in answers[::2]] == ["right"] * len(hostile)
    found = dict(zip(hostile, answers[1::2], strict=True))
    assert {name: answer.outcome for name, answer in found.items()} == {
        "hangs": "timeout",
        "dies": "crashed",
        "eats": "error",
        "dials": "error",
        "prints": "wrong",
        "peeks": "wrong",
        "lies": "error",
        "no such": "error",
    }
    assert "memory" in found["eats"].detail
    assert "network" in found["dials"].detail


def test_what_a_hanging_verifier_started_is_killed_with_it(sandbox):
    (told,) = sandbox.grade([ask("tells_pid")])
    child = int(told.detail.split()[-1])
    os.kill(child, 0)  # it lives
    assert sandbox.grade([ask("hangs")] * 2)[0].outcome == "timeout"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and is_alive(child):
        time.sleep(0.05)
    assert not is_alive(child)


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_verifier_writes_nothing_to_disk(sandbox, tmp_path):
    left = tmp_path / "left.txt"
    (answer,) = sandbox.grade([ask("writes", str(left))])
    assert answer.outcome == "error"
    assert not left.stat().st_size


def test_verdicts_come_in_the_order_of_the_rows(sandbox):
    questions = [ask("match", str(number % 5)) for number in range(200)]
    outcomes = [answer.outcome for answer in sandbox.grade(questions)]
    assert outcomes == ["right" if n % 5 == 4 else "wrong" for n in range(200)]


def test_a_worker_that_cannot_start_is_refused_in_one_line(sandbox, tmp_path):
    (tmp_path / "reasoning_gym.py").write_text("raise ImportError('half installed')")
    with pytest.raises(ConfigError, match=r"does not start .*half installed"):
        sandbox.grade([ask("reasoning_gym/gcd")])
