# SPDX-License-Identifier: Apache-2.0
"""jax is spared the TPU's library only where nothing speaks for a TPU or a GPU."""

import os
import pathlib
import subprocess
import sys

import pytest

from ring_jax.cli import status
from ring_jax.cli.platforms import skip_absent_tpu


@pytest.fixture
def packages(tmp_path, monkeypatch) -> pathlib.Path:
    """Installs a libtpu, and gives the folder that more can be put into."""
    folder = tmp_path / "packages"
    (folder / "libtpu").mkdir(parents=True)
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    """A virtual machine of Google's: a disk, a network card, vfio's driver, no TPU."""
    (tmp_path / "root" / "dev" / "vfio").mkdir(parents=True)
    (tmp_path / "root" / "dev" / "vfio" / "vfio").touch()
    add_pci(tmp_path / "root", "0x1ae0", "0x010802")
    add_pci(tmp_path / "root", "0x1ae0", "0x020000")
    add_pci(tmp_path / "root", "0x8086", "0x060000")
    return tmp_path / "root"


def add_pci(root: pathlib.Path, vendor: str, kind: str) -> None:
    folder = root / f"sys/bus/pci/devices/{vendor}.{kind}"
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    (folder / "class").write_text(f"{kind}\n")


def chosen(root: pathlib.Path, **environment: str) -> str | None:
    skip_absent_tpu(environment, root=root)
    return environment.get("JAX_PLATFORMS")


def test_where_only_the_cpu_can_be_it_is_chosen(packages, root):
    assert chosen(root) == "cpu"


def test_without_libtpu_nothing_is_chosen(root, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert chosen(root) is None


@pytest.mark.parametrize("name", ["accel0", "vfio/0", "vfio/devices"])
def test_a_tpu_with_a_device_file_is_left_to_jax(packages, root, name):
    (root / "dev" / name).touch()
    assert chosen(root) is None


def test_a_tpu_that_has_lost_its_device_file_is_left_to_jax(packages, root):
    add_pci(root, "0x1ae0", "0x120000")
    assert chosen(root) is None


def test_a_gpu_of_a_plugin_is_left_to_jax(packages, root):
    (packages / "jax_plugins" / "xla_cuda12").mkdir(parents=True)
    assert chosen(root) is None


def test_a_plugin_that_is_only_an_entry_point_is_left_to_jax(packages, root):
    folder = packages / "some_plugin-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Name: some-plugin\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[jax_plugins]\nsome = some\n")
    assert chosen(root) is None


def test_a_user_s_own_choice_stands(packages, root):
    assert chosen(root, JAX_FORCE_TPU_INIT="1") is None
    assert chosen(root, PJRT_NAMES_AND_LIBRARY_PATHS="own:/own.so") is None
    assert chosen(root, JAX_PLATFORMS="tpu") == "tpu"
    assert chosen(root, JAX_PLATFORMS="") == ""


@pytest.mark.aot
def test_a_command_says_nothing_of_the_tpu_that_is_not_there():
    environment = {
        name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"
    }
    done = subprocess.run(
        [sys.executable, "-m", "ring_jax.cli.main", "doctor"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (status.DONE, "")
    assert "1 x cpu" in done.stdout
