# SPDX-License-Identifier: Apache-2.0
"""Two runs cannot share a folder."""

import os
import subprocess
import sys

import pytest

from ring_jax.config import ConfigError
from ring_jax.train.run_folder_lock import only_run_in


def test_a_second_run_in_a_folder_is_refused_and_the_next_is_not(tmp_path):
    with (
        only_run_in(tmp_path),
        pytest.raises(ConfigError, match=f"in use by process {os.getpid()} on"),
        only_run_in(tmp_path),
    ):
        pass
    with only_run_in(tmp_path):
        pass


def test_a_killed_run_leaves_its_folder_free(tmp_path):
    hold = (
        "import os, pathlib, signal, sys\n"
        "from ring_jax.train.run_folder_lock import only_run_in\n"
        "with only_run_in(pathlib.Path(sys.argv[1])):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", hold, str(tmp_path)], check=False)
    assert (tmp_path / "lock").read_text("utf-8").startswith("process ")
    with only_run_in(tmp_path):
        pass
