# SPDX-License-Identifier: Apache-2.0
"""What is done after a run ended: the scripts' policy, in ring's own exit statuses."""

import subprocess

import pytest

from ring_jax.cli import status

from .conftest import LAUNCH

CASES = {
    "all done": ("0 0 0", "done 0"),
    "a mistake": ("2 0", f"stop {status.MISTAKE}"),
    "a check": ("0 3", f"stop {status.STOPPED}"),
    "a mistake over a check": ("3 2", f"stop {status.MISTAKE}"),
    "a check over crashes": ("134 3 4", f"stop {status.STOPPED}"),
    "a preemption": ("75 75", f"again {status.INTERRUPTED}"),
    "a preemption at the end": ("0 75", f"again {status.INTERRUPTED}"),
    "the environment": ("4 0", f"retry {status.ENVIRONMENT}"),
    "a crash": ("0 139", "retry 139"),
    "a crash over a preemption": ("75 1 75", "retry 1"),
    "also where the crash comes first": ("1 75", "retry 1"),
}


@pytest.fixture(scope="module")
def verdicts() -> list[str]:
    lines = "".join(
        f'judge {statuses}; echo "$verdict $verdict_status"\n'
        for statuses, _ in CASES.values()
    )
    script = f'set -euo pipefail; source "{LAUNCH}/restart_policy.sh"\n{lines}'
    result = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True
    )
    return result.stdout.splitlines()


@pytest.mark.parametrize("name", CASES)
def test_the_rarest_word_decides(verdicts, name):
    assert verdicts[list(CASES).index(name)] == CASES[name][1]
