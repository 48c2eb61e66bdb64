# SPDX-License-Identifier: Apache-2.0
"""`launch/tpu_worker.sh`, for real, with a shell script that plays ring."""

import time

import pytest

from .conftest import refused

START = ("start", "none", "--config=a.py", "--workdir=/shared/run")


@pytest.fixture
def host(world):
    def ring(text: str) -> None:
        world.environment["RING"] = str(world.script("ring", text))

    world.ring = ring
    return world


def call(host, *words: str) -> str:
    result = host.run("tpu_worker.sh", *words)
    assert result.returncode == 0, result.stderr
    return result.stdout


def status(host) -> str:
    return call(host, "status").split(maxsplit=2)[2].strip()


def wait_until_up(host) -> None:
    """Waits until the fake has set its trap."""
    log = host.folder / "ring_jax_run/log.txt"
    while "\nup" not in log.read_text():
        time.sleep(0.05)


def status_at_the_end(host) -> str:
    for _ in range(100):
        if (found := status(host)) != "running":
            return found
        time.sleep(0.1)
    raise AssertionError("it runs for ever")


def test_a_run_outlives_the_call_and_leaves_its_status_and_its_log(host):
    host.ring('echo "preset $RING_XLA_PRESET: $*"; exit 3\n')
    assert status(host) == "idle"
    call(host, *START)
    assert status_at_the_end(host) == "exited 3"
    log = call(host, "log")
    assert "preset none: train --config=a.py --workdir=/shared/run" in log


def test_a_second_start_leaves_the_run_alone_and_stop_lets_it_save(host):
    host.ring("trap 'echo saved; exit 75' TERM\necho up\nwhile :; do sleep 0.1; done\n")
    call(host, *START)
    call(host, *START)
    assert status(host) == "running"
    refused(host.run("tpu_worker.sh", "check-idle"), "stop it")
    wait_until_up(host)
    call(host, "stop", "20")
    assert status_at_the_end(host) == "exited 75"
    assert call(host, "log").count("saved") == 1
    call(host, "check-idle")


def test_a_run_that_does_not_end_is_killed(host):
    host.ring("trap : TERM\necho up\nwhile :; do sleep 0.1; done\n")
    call(host, *START)
    wait_until_up(host)
    call(host, "stop", "1")
    assert status_at_the_end(host) == "exited 137"


def test_a_host_that_went_down_is_not_taken_for_a_running_one(host):
    folder = host.folder / "ring_jax_run"
    folder.mkdir()
    (folder / "pid").write_text("1\n")  # another process has the number now
    assert status(host) == "exited 137"
