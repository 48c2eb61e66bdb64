# SPDX-License-Identifier: Apache-2.0
"""Compiled programs are kept from one start to the next."""

import os
import pathlib
import subprocess
import sys

COMPILE = """
import jax
from ring_jax.cli import devices
devices.MIN_COMPILE_SECONDS = 0.0
devices.keep_compiled_programs()
jax.jit(lambda x: x @ x)(jax.numpy.ones((8, 8)))
"""


def start(**environment: str) -> None:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPIL")}
    subprocess.run(
        [sys.executable, "-c", COMPILE], env=inherited | environment, check=True
    )


def programs(folder: pathlib.Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*-cache")}


def test_a_second_start_finds_what_the_first_compiled(tmp_path):
    start(XDG_CACHE_HOME=str(tmp_path))
    first = programs(tmp_path / "ring_jax" / "compiled")
    assert first
    start(XDG_CACHE_HOME=str(tmp_path))
    assert programs(tmp_path / "ring_jax" / "compiled") == first


def test_the_variable_of_jax_names_another_folder_or_none(tmp_path):
    start(XDG_CACHE_HOME=str(tmp_path / "a"), JAX_COMPILATION_CACHE_DIR="")
    assert not (tmp_path / "a").exists()
    start(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "b"))
    assert not (tmp_path / "a").exists()
