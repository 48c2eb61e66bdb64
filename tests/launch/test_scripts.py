# SPDX-License-Identifier: Apache-2.0
"""What holds for every launch script, and the pod of local processes."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from .conftest import LAUNCH, REPOSITORY, refused

SCRIPTS = sorted(
    str(file.relative_to(LAUNCH))
    for pattern in ("*.sh", "*/*.sh", "*/*.sbatch")
    for file in LAUNCH.glob(pattern)
)
COMMANDS = ("tpu_vm.sh", "gke/jobset.sh", "slurm/submit.sh", "local_pod.sh", "train.sh")
LOCAL = ("--config=a.py", "--workdir=/shared/run")


def test_shellcheck_finds_nothing():
    beside = pathlib.Path(sys.executable).parent
    shellcheck = shutil.which("shellcheck", path=f"{beside}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("no shellcheck: pip install 'ring_jax[test]'")
    result = subprocess.run(
        [shellcheck, "--external-sources", *(f"launch/{name}" for name in SCRIPTS)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_readable_and_names_every_option(world, name):
    result = world.run(name, "--help")
    assert result.returncode == 0
    assert result.stderr == ""
    assert f"launch/{name}" in result.stdout
    assert not result.stdout.startswith("#")
    assert max(map(len, result.stdout.splitlines())) <= 94
    # The patterns of the script's own `case`: `--spot | --reserved) ...`.
    patterns = re.findall(r"^ +(--\w[^)\n]*)\)( |$)", source(name), re.MULTILINE)
    for option in " | ".join(pattern for pattern, _ in patterns).split(" | "):
        assert option.removesuffix("*") in result.stdout


def source(name: str) -> str:
    return (LAUNCH / name).read_text("utf-8")


def test_processes_of_a_local_pod_know_each_other(world):
    python = world.script(
        "python", 'echo "$RING_COORDINATOR_ADDRESS $RING_NUM_PROCESSES"\n'
    )
    port = {"RING_PORT": "9000", "PYTHON": str(python)}
    result = world.run("local_pod.sh", "3", *LOCAL, **port)
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == [
        f"[{number}] 127.0.0.1:9000 3" for number in range(3)
    ]


def test_the_status_of_the_first_process_that_fails_is_the_pods(world):
    # The others hear of it by themselves: the rendezvous, which this stands for.
    python = world.script(
        "python",
        'if [ "$RING_PROCESS_ID" = 1 ]; then touch "$HOME/ended"; exit 2; fi\n'
        'while [ ! -e "$HOME/ended" ]; do sleep 0.1; done\nsleep 1\nexit 75\n',
    )
    port = {"RING_PORT": "9000", "PYTHON": str(python)}
    result = world.run("local_pod.sh", "3", *LOCAL, **port)
    assert result.returncode == 2


def test_ctrl_c_reaches_each_process_once(world):
    python = world.script(
        "python",
        "trap 'signals+=x' INT TERM\necho up >>\"$HOME/up\"\n"
        "for ((i = 0; i < 20; i++)); do sleep 0.05; done\n"
        'echo "got $signals"\nexit 75\n',
    )
    pod = subprocess.Popen(
        [str(LAUNCH / "local_pod.sh"), "2", *LOCAL],
        env={**world.environment, "RING_PORT": "9000", "PYTHON": str(python)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    up = world.folder / "up"
    while not up.exists() or len(up.read_text()) < 6:
        time.sleep(0.02)
    os.killpg(pod.pid, signal.SIGINT)
    output, _ = pod.communicate(timeout=30)
    assert sorted(output.splitlines()) == ["[0] got x", "[1] got x"]
    assert pod.returncode == 75


def test_a_local_pod_of_nothing_is_refused(world):
    refused(world.run("local_pod.sh", "0", *LOCAL), "'0'", "from 1 to 999")
    refused(world.run("local_pod.sh", "two", *LOCAL), "two", "number")


def commands_of_the_docs() -> list[list[str]]:
    text = (REPOSITORY / "docs/launching.md").read_text("utf-8")
    blocks = re.findall(r"```\n(.*?)```", text, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", "").splitlines()
    return [shlex.split(line) for line in lines if "--config=" in line]


@pytest.mark.parametrize("words", commands_of_the_docs(), ids=lambda words: words[0])
def test_a_command_of_the_docs_is_one_that_its_script_takes(world, words):
    script, *rest = words
    dry = [*rest[: rest.index("--")], "--dry-run", *rest[rest.index("--") :]]
    result = world.run(script.removeprefix("launch/"), *dry)
    assert result.returncode == 0, result.stderr
    assert "--config=configs/my_run.py" in result.stdout


def test_the_docs_have_a_command_for_each_kind_of_cluster():
    scripts = [words[0] for words in commands_of_the_docs()]
    assert scripts == [f"launch/{name}" for name in COMMANDS[:3]]
