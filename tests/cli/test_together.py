# SPDX-License-Identifier: Apache-2.0
"""Processes that meet before they compute: who is missing, who differs, who ended."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

from ring_jax.cli import status
from ring_jax.cli.together import find_spot
from ring_jax.config import ConfigError

REPOSITORY = pathlib.Path(__file__).parents[2]
LOCAL_POD = REPOSITORY / "launch/local_pod.sh"

PLACE = {
    "RING_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "RING_NUM_PROCESSES": "4",
    "RING_PROCESS_ID": "2",
}

# A group without JAX: process 1 ends with status 3, and process 0 waits in vain.
LEFT_WAITING = """
import sys, time
from ring_jax.cli import rendezvous
rendezvous.GRACE_SECONDS = 0.5
process = int(sys.argv[1])
spot = rendezvous.Spot(sys.argv[2], 2, process, 60.0)
group = rendezvous.meet(spot, {})
if process == 1:
    group.break_off(3, "ended: loss is nan")
    group.exit_at_once(3)
time.sleep(60)
"""


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def start(command: list[str], **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_ring(
    commands: dict[int, list[str]], *, count: int, **environment: str
) -> list[subprocess.Popen]:
    """Starts the processes that have a command, of so many that should be there."""
    place = {
        "RING_COORDINATOR_ADDRESS": free_address(),
        "RING_NUM_PROCESSES": str(count),
    }
    return [
        start(
            [sys.executable, "-m", "ring_jax.cli.main", "train", *words],
            **place | {"RING_PROCESS_ID": str(number)} | environment,
        )
        for number, words in commands.items()
    ]


def ends(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """Status and last line of each."""
    found = []
    for process in processes:
        _, errors = process.communicate(timeout=120)
        found.append((process.returncode, errors.strip().splitlines()[-1]))
    return found


def test_a_place_is_read_from_the_environment():
    spot = find_spot(PLACE | {"RING_START_TIMEOUT": "7"})
    assert spot is not None
    assert (spot.host, spot.port, spot.num_processes) == ("10.0.0.1", 1234, 4)
    assert (spot.process, spot.timeout_seconds, spot.is_local) == (2, 7.0, False)
    assert find_spot({}) is None
    assert (
        find_spot(PLACE | {"RING_NUM_PROCESSES": "1", "RING_PROCESS_ID": "0"}) is None
    )


@pytest.mark.parametrize(("tasks", "device"), [("4(x2)", 3), ("1(x8)", None)])
def test_slurm_says_where_a_process_stands(monkeypatch, tasks, device):
    slurm = {
        "SLURM_JOB_ID": "5",
        "SLURM_STEP_NODELIST": "node[03-04]",
        "SLURM_NTASKS": "8",
        "SLURM_PROCID": "7",
        "SLURM_LOCALID": "3",
        "SLURM_STEP_TASKS_PER_NODE": tasks,
    }
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    spot = find_spot({})
    assert spot is not None
    assert (spot.host, spot.num_processes, spot.process) == ("node03", 8, 7)
    assert spot.local_device == device
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert find_spot({}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RING_PROCESS_ID": ""}, "RING_PROCESS_ID must be set, too"),
        ({"RING_PROCESS_ID": "4"}, "from 0 to below RING_NUM_PROCESSES=4"),
        ({"RING_NUM_PROCESSES": "two"}, "RING_NUM_PROCESSES=two"),
        ({"RING_COORDINATOR_ADDRESS": "host"}, "host is not HOST:PORT"),
        ({"RING_START_TIMEOUT": "soon"}, "RING_START_TIMEOUT=soon must be seconds"),
        ({"RING_START_TIMEOUT": "-1"}, "RING_START_TIMEOUT=-1 must be seconds"),
    ],
)
def test_half_a_place_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        find_spot(PLACE | change)


def test_processes_with_different_settings_are_refused_with_the_difference(
    tiny_config, tmp_path
):
    words = [f"--config={tiny_config}", f"--workdir={tmp_path / 'run'}"]
    found = ends(start_ring({0: words, 1: [*words, "--config.seed=5"]}, count=2))
    line = (
        "ring: error: process 1 was started with other settings than process 0: "
        "config.seed=5, not 0. Start all processes with the same command."
    )
    assert found == [(status.MISTAKE, line)] * 2
    assert not (tmp_path / "run").exists()


def test_an_absent_process_is_named_when_time_is_out(tiny_config, tmp_path):
    words = [f"--config={tiny_config}", f"--workdir={tmp_path / 'run'}"]
    # Two pods that wait at the same time.
    pods = [
        start_ring(dict.fromkeys(present, words), count=3, RING_START_TIMEOUT="8")
        for present in ([0, 2], [1])
    ]
    lines = ("process 1 of 3 did not come to", "process 0 did not answer at")
    for processes, line in zip(pods, lines, strict=True):
        for code, last in ends(processes):
            assert code == status.MISTAKE
            assert line in last


def test_a_process_that_waits_in_vain_is_ended_with_the_first_ones_status():
    address = free_address()
    processes = [
        start([sys.executable, "-c", LEFT_WAITING, str(number), address])
        for number in range(2)
    ]
    (code, line), (first_code, _) = [
        (process.wait(timeout=60), process.communicate()[1]) for process in processes
    ]
    assert (code, first_code) == (3, 3)
    assert line == "ring: error: process 1 ended: loss is nan.\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "'' is not a number of processes"),
        (["0"], "'0' is not a number of processes"),
        (["two", "--config=x.py"], "'two' is not a number of processes"),
        (["2", "--devices-per-process=0"], "--devices-per-process=0 is not"),
    ],
)
def test_a_bad_number_of_processes_is_one_line(words, message):
    done = subprocess.run([LOCAL_POD, *words], capture_output=True, text=True)
    assert done.returncode == status.MISTAKE
    assert done.stderr.startswith(f"local_pod: error: {message}")
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)


def test_a_dry_run_prints_a_command_for_each_process():
    command = [
        LOCAL_POD,
        "3",
        "--devices-per-process=2",
        "--dry-run",
        "--config=a b.py",
    ]
    environment = os.environ | {"PYTHON": sys.executable, "RING_PORT": "1234"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        f"RING_PROCESS_ID={i}" for i in range(3)
    ]
    for line in lines:
        assert "RING_COORDINATOR_ADDRESS=127.0.0.1:1234" in line
        assert "--xla_force_host_platform_device_count=2" in line
        assert line.endswith("train '--config=a b.py'")


def test_a_pod_that_cannot_start_ends_with_the_lines_and_the_status_of_its_processes(
    tmp_path,
):
    command = [LOCAL_POD, "2", "--config=no_such.py", f"--workdir={tmp_path}"]
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert done.returncode == status.MISTAKE
    lines = sorted(done.stdout.splitlines())
    assert [line[:18] for line in lines] == ["[0] ring: error: -", "[1] ring: error: -"]
