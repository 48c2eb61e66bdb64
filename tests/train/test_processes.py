# SPDX-License-Identifier: Apache-2.0
"""Several processes on this machine train as one: same losses, same end, same bits."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from ring_jax.cli import main, status

REPOSITORY = pathlib.Path(__file__).parents[2]
LOCAL_POD = REPOSITORY / "launch/local_pod.sh"

CONFIG = """
from ring_jax.config import (
    DataConfig, EvaluateConfig, ModelConfig, MoeConfig, RunConfig, SourceConfig,
    StageConfig, TokenizerConfig, TrainConfig, to_config_dict,
)

def get_config():
    return to_config_dict(RunConfig(
        model=ModelConfig(
            vocab_size=512, model_dim=16, num_layers=2, num_heads=2, num_kv_heads=1,
            head_dim=8, max_positions=512, eos_id=1, pad_id=0, init_std=0.1,
            moe=MoeConfig(
                num_experts=4, num_experts_per_token=2, num_shared_experts=1,
                expert_dim=8,
            ),
        ),
        data=DataConfig(
            tokenizer=TokenizerConfig(vocab_size=300),
            sources={"chat": SourceConfig(path="ROWS", num_rows=80, num_heldout=4)},
        ),
        train=TrainConfig(
            global_batch_size=8, seq_len=64, compute_dtype="float32", remat="none",
            log_every_steps=1, checkpoint_every_steps=10, peak_flops_per_second=1e12,
        ),
        evaluate=EvaluateConfig(items_per_source=4, max_new_tokens=4, batch_size=4),
        stages={"base": StageConfig(
            mixture={"chat": 1.0}, num_steps=8, learning_rate=1e-2, warmup_steps=2,
        )},
    ))
"""

LONG = "--config.stages.base.num_steps=100"
"""Some ten seconds of steps, so that a signal meets the run while it trains."""

STEPS_BEFORE_A_SIGNAL = 13
"""Beyond the checkpoint of step 10."""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("config")
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(100):
            turns = [
                {"role": "user", "content": f"What follows {number}?"},
                {"role": "assistant", "content": f"{number + 1}", "think": "One more."},
            ]
            graded = {"answer": f"{number + 1}", "verifier": "number"}
            file.write(json.dumps({"messages": turns} | graded) + "\n")
    path = folder / "tiny.py"
    path.write_text(CONFIG.replace("ROWS", str(folder / "rows.jsonl")))
    return path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@dataclasses.dataclass
class Pod:
    """Processes of one run, which a test has started."""

    processes: list[subprocess.Popen]
    outputs: list[pathlib.Path]

    def statuses(self) -> list[int]:
        """Waits for the end of all."""
        return [process.wait(timeout=240) for process in self.processes]

    def said(self, process: int) -> str:
        return self.outputs[process].read_text("utf-8")


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., Pod]]:
    """Starts `ring train` in processes as a launcher does, one command for each."""
    pods = []

    def start(
        commands: Sequence[Sequence[str]], *, devices: int = 1, **environment: str
    ) -> Pod:
        shared = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "RING_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
            "RING_NUM_PROCESSES": str(len(commands)),
        }
        pod = Pod([], [])
        pods.append(pod)
        for number, words in enumerate(commands):
            pod.outputs.append(tmp_path / f"{len(pods)}.{number}.txt")
            with pod.outputs[-1].open("w") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", "ring_jax.cli.main", "train", *words],
                    cwd=REPOSITORY,
                    env=shared | {"RING_PROCESS_ID": str(number)} | environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            pod.processes.append(process)
        return pod

    yield start
    for process in (process for pod in pods for process in pod.processes):
        process.kill()
        process.wait()


def words_of(config, workdir, *overrides) -> list[str]:
    return [f"--config={config}", f"--workdir={workdir}", *overrides]


def losses(workdir: pathlib.Path) -> list[tuple[int, float]]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return [(r["step"], r["train/loss"]) for r in records if r["kind"] == "train"]


def wait_for_step(workdir: pathlib.Path, step: int) -> None:
    deadline = time.monotonic() + 240
    while not any(number >= step for number, _ in losses(workdir)):
        assert time.monotonic() < deadline, "the run does not step"
        time.sleep(0.05)


def committed_steps(workdir: pathlib.Path) -> list[int]:
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    assert all(name.isdigit() for name in names), "a save was left half-written"
    return sorted(map(int, names))


@pytest.fixture(scope="module")
def one_process(config, tmp_path_factory) -> pathlib.Path:
    """The folder of one process with eight devices, which is this one."""
    workdir = tmp_path_factory.mktemp("one")
    words = words_of(config, workdir, "--config.num_devices=8")
    assert main.main(["train", *words]) == status.DONE
    return workdir


def outputs(workdir: pathlib.Path, label: str = "base") -> dict[str, str]:
    """What was said to each held-out item at the end of the stage."""
    lines = workdir / "evaluation" / label / "heldout_chat.jsonl"
    found = [json.loads(line) for line in lines.read_text("utf-8").splitlines()]
    assert len(found) == 4, "each item is asked once"
    return {record["id"]: record["output"] for record in found}


def assert_same_run(workdir: pathlib.Path, expected: list[tuple[int, float]]) -> None:
    found = losses(workdir)
    assert [step for step, _ in found] == [step for step, _ in expected]
    # Gradients are summed over another number of devices, in float32: 6e-8 a sum, and
    # eight Adam steps were seen to make at most 2e-7 of it; twenty make more.
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_two_processes_have_the_losses_of_one(config, tmp_path, start, one_process):
    workdir = tmp_path / "run"
    pod = start([words_of(config, workdir)] * 2)
    assert pod.statuses() == [status.DONE] * 2, pod.said(0) + pod.said(1)
    assert_same_run(workdir, losses(one_process))
    assert outputs(workdir) == outputs(one_process)
    # One process writes and speaks, and the folder is that of any run.
    assert "base step 8 of 8" in pod.said(0)
    assert "base" not in pod.said(1)
    assert {path.name for path in workdir.iterdir()} >= {"export", "report.html"}
    assert committed_steps(workdir) == [8]


def test_ring_evaluate_finds_a_stage_done_and_asks_it_again_alike(one_process, capsys):
    before = outputs(one_process)
    asked = ["evaluate", f"--workdir={one_process}", "--json"]
    assert main.main(asked) == status.DONE
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    scores = json.loads((one_process / "evaluation/base/scores.json").read_text())
    assert found["label"] == "base" and found["suites"] == scores["suites"]
    assert main.main([*asked, "--label=again"]) == status.DONE
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["suites"] == found["suites"]
    assert outputs(one_process, "again") == outputs(one_process) == before


TWENTY = "--config.stages.base.num_steps=20"


@pytest.fixture(scope="module")
def twenty_steps(config, tmp_path_factory) -> list[tuple[int, float]]:
    """Losses of one process with one device."""
    workdir = tmp_path_factory.mktemp("twenty")
    words = words_of(config, workdir, TWENTY)
    subprocess.run(
        [sys.executable, "-m", "ring_jax.cli.main", "train", *words],
        cwd=REPOSITORY,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return losses(workdir)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_processes", "devices", "mesh"),
    [
        (2, 4, {"fsdp": 4}),
        (4, 2, {"fsdp": 2, "expert": 2}),
        (2, 4, {"slice": 2, "fsdp": 2, "context": 2}),
    ],
    ids=["2x4", "4x2", "slices"],
)
def test_any_number_of_processes_has_the_losses_of_one(
    config, tmp_path, start, twenty_steps, num_processes, devices, mesh
):
    workdir = tmp_path / "run"
    sizes = [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
    words = words_of(config, workdir, TWENTY, *sizes)
    pod = start([words] * num_processes, devices=devices)
    assert pod.statuses() == [status.DONE] * num_processes, pod.said(0)
    assert_same_run(workdir, twenty_steps)


def start_local_pod(num_processes: int, words: list[str]) -> subprocess.Popen:
    """Starts the script as a terminal does, in a process group of its own."""
    return subprocess.Popen(
        # Whoever runs the tests in the background ignores Ctrl-C, and hands that down.
        ["env", "--default-signal=INT", LOCAL_POD, str(num_processes), *words],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ring_processes(script: subprocess.Popen) -> list[int]:
    """Process ids of a local pod, by their number."""
    listed = pathlib.Path(f"/proc/{script.pid}/task/{script.pid}/children")
    found = []
    for pid in listed.read_text().split():
        command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"ring_jax.cli.main" in command:
            found.append(int(pid))
    return found


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> list[tuple[int, float]]:
    """Losses of two processes that nobody interrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    pod = start_local_pod(2, words_of(config, workdir, LONG))
    said, _ = pod.communicate(timeout=300)
    assert pod.returncode == status.DONE, said
    return losses(workdir)


@pytest.mark.slow
@pytest.mark.parametrize(("process", "name"), [(0, signal.SIGINT), (1, signal.SIGTERM)])
def test_a_signal_to_one_process_stops_all_after_the_same_step(
    config, tmp_path, start, whole, process, name
):
    workdir = tmp_path / "run"
    words = words_of(config, workdir, LONG)
    pod = start([words] * 2)
    wait_for_step(workdir, STEPS_BEFORE_A_SIGNAL)
    pod.processes[process].send_signal(name)
    assert pod.statuses() == [status.INTERRUPTED] * 2, pod.said(0) + pod.said(1)
    last = losses(workdir)[-1][0]
    assert last < 100
    assert committed_steps(workdir)[-1] == last
    for number in range(2):
        assert pod.said(number).count("ring: interrupted; run the same command") == 1
        assert "Traceback" not in pod.said(number)
    assert start([words] * 2).statuses() == [status.DONE] * 2
    assert losses(workdir) == whole


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_a_process_that_dies_ends_the_others_and_the_run_resumes_bit_exactly(
    config, tmp_path, start, whole, process
):
    workdir = tmp_path / "run"
    words = words_of(config, workdir, LONG)
    pod = start([words] * 2)
    wait_for_step(workdir, STEPS_BEFORE_A_SIGNAL)
    started = time.monotonic()
    pod.processes[process].kill()
    statuses = pod.statuses()
    assert time.monotonic() - started < 60
    other = 1 - process
    assert statuses[other] == status.ENVIRONMENT, pod.said(other)
    assert f"ring: error: process {process} was lost" in pod.said(other)
    assert "Traceback" not in pod.said(other)
    assert start([words] * 2).statuses() == [status.DONE] * 2
    assert losses(workdir) == whole


@pytest.mark.slow
def test_a_local_pod_of_four_is_killed_in_one_and_continues_bit_exactly(
    config, tmp_path
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    steps = "--config.stages.base.num_steps=40"
    pod = start_local_pod(4, words_of(config, whole, steps))
    said, _ = pod.communicate(timeout=300)
    assert pod.returncode == status.DONE, said
    pod = start_local_pod(4, words_of(config, parts, steps))
    wait_for_step(parts, STEPS_BEFORE_A_SIGNAL)
    os.kill(ring_processes(pod)[2], signal.SIGKILL)
    said, _ = pod.communicate(timeout=120)
    assert pod.returncode == 128 + signal.SIGKILL, said
    for number in (0, 1, 3):
        assert f"[{number}] ring: error: process 2 was lost" in said
    assert all(re.match(r"\[[0-3]\] ", line) for line in said.splitlines())
    pod = start_local_pod(4, words_of(config, parts, steps))
    said, _ = pod.communicate(timeout=300)
    assert pod.returncode == status.DONE, said
    assert losses(parts) == losses(whole)


@pytest.mark.slow
def test_ctrl_c_in_the_terminal_of_a_local_pod_stops_it_with_a_checkpoint(
    config, tmp_path
):
    workdir = tmp_path / "run"
    pod = start_local_pod(2, words_of(config, workdir, LONG))
    wait_for_step(workdir, STEPS_BEFORE_A_SIGNAL)
    os.killpg(pod.pid, signal.SIGINT)
    said, _ = pod.communicate(timeout=120)
    assert pod.returncode == status.INTERRUPTED, said
    assert committed_steps(workdir)[-1] == losses(workdir)[-1][0] < 100
    assert said.count("ring: interrupted; run the same command") == 2
