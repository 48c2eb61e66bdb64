# SPDX-License-Identifier: Apache-2.0
"""`launch/setup.sh`: the search for an interpreter, and what is done when.

A shell script plays the interpreter: it makes environments that are copies of itself
and answers pip's calls by writing them down. So all of setup.sh runs, in milliseconds.
"""

import pathlib
import shutil
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).parent.parent.parent
TOOLS = """bash cat cksum cp cut dirname env flock grep kill mkdir mv paste rm sed sort
tail tr"""

BROKEN_SHIM = """#!/bin/sh
echo 'pyenv: python: command not found' >&2
exit 127
"""
CHATTY_SHIM = """#!/bin/sh
echo 'Python 3.13.0 (not really)'
"""
INTERPRETER = """#!/usr/bin/env bash
calls={calls}
case "$1 $2" in
  "-c "*) echo "3.12 {identity}" ;;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo "venv" >>"$calls" ;;
  "-m pip")
    echo "${{*:5}}" >>"$calls"
    echo "chatter of pip"
    eval "${{FAKE_PIP:-true}}"
    ;;
esac
"""


class Clone:
    """A checkout in a folder with a space, and a world without any Python but ours."""

    def __init__(self, folder: pathlib.Path):
        self.root = folder / "a clone"
        self.bin = folder / "bin"
        self.calls_file = folder / "calls.txt"
        self.calls_file.write_text("")
        for name in ("launch", "elsewhere"):
            (self.root / name).mkdir(parents=True)
        for name in ("setup.py", "launch/setup.sh", "launch/constraints.txt"):
            shutil.copy(REPOSITORY / name, self.root / name)
        self.bin.mkdir()
        for tool in TOOLS.split():
            path = shutil.which(tool)
            if path is not None:
                (self.bin / tool).symlink_to(path)
        self.environment = {"PATH": str(self.bin), "HOME": str(folder / "home")}

    def script(self, name: str, text: str) -> pathlib.Path:
        path = self.bin.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def interpreter(self, name: str) -> pathlib.Path:
        identity = self.bin.parent / name
        return self.script(
            name, INTERPRETER.format(calls=f"'{self.calls_file}'", identity=identity)
        )

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.bash("launch/setup.sh", *words, **environment)

    def find(self, **environment: str) -> subprocess.CompletedProcess[str]:
        setup = self.root / "launch/setup.sh"
        return self.bash("-c", f"source '{setup}'; find_interpreter", **environment)

    def bash(self, *words: str, **environment: str):
        first = self.root / words[0]
        words = (str(first) if first.exists() else words[0], *words[1:])
        return subprocess.run(
            [str(self.bin / "bash"), *words],
            env=self.environment | environment,
            cwd=self.root / "elsewhere",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def calls(self) -> list[str]:
        lines = self.calls_file.read_text().splitlines()
        self.calls_file.write_text("")
        return lines


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def test_names_on_path_that_do_not_run_are_passed_over(clone):
    clone.script("bin/python3.12", BROKEN_SHIM)
    clone.script("bin/python3.13", CHATTY_SHIM)
    clone.interpreter("bin/python3")
    assert clone.find().stdout == f"3.12 {clone.bin / 'python3'}\n"


def test_versions_of_pyenv_are_found_behind_broken_shims(clone):
    clone.script("bin/python3", BROKEN_SHIM)
    clone.script("home/.pyenv/versions/3.11.7/bin/python", BROKEN_SHIM)
    real = clone.interpreter("home/.pyenv/versions/3.13.0/bin/python")
    assert clone.find().stdout == f"3.12 {real}\n"
    moved = clone.interpreter("pyenv/versions/3.12.1/bin/python")
    root = str(clone.bin.parent / "pyenv")
    assert clone.find(PYENV_ROOT=root).stdout == f"3.12 {moved}\n"


def test_uv_is_asked_last(clone):
    real = clone.interpreter("uv/python")
    clone.script("bin/uv", f"#!/bin/sh\necho '{real}'\n")
    assert clone.find().stdout == f"3.12 {real}\n"
    on_path = clone.interpreter("bin/python3")
    assert clone.find().stdout == f"3.12 {on_path}\n"


def test_the_running_interpreter_describes_itself(clone):
    found = clone.find(PYTHON=sys.executable)
    version, path = found.stdout.split(maxsplit=1)
    assert version == "{}.{}".format(*sys.version_info[:2])
    assert pathlib.Path(path.strip()).is_file()
    # An environment's interpreter stands for the one that it was made from.
    assert sys.prefix == sys.base_prefix or sys.prefix not in path


def test_a_chosen_interpreter_that_does_not_run_is_the_users_mistake(clone):
    clone.interpreter("bin/python3")
    done = clone.run(PYTHON=str(clone.script("bad", BROKEN_SHIM)))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "PYTHON=" in done.stderr


def test_without_any_interpreter_one_line_says_how_to_get_one(clone):
    done = clone.run()
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.count("\n") == 1
    assert "uv python install 3.12" in done.stderr
    assert not (clone.root / ".venv").exists()


@pytest.mark.parametrize(
    "words", [("Data",), ("data,--pre",), ("data,,test",), ("data", "test")]
)
def test_wrong_extras_are_the_users_mistake(clone, words):
    done = clone.run(*words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_a_second_run_does_nothing(clone):
    clone.interpreter("bin/python3")
    first = clone.run()
    assert first.returncode == 0, first.stderr
    assert "chatter" not in first.stdout + first.stderr
    venv, install, data_only, evaluation_sets = clone.calls()
    assert venv == "venv"
    assert "launch/constraints.txt" in install
    assert install.endswith("--editable .[curate,data,parity,test]")
    assert data_only.endswith("--no-deps bfcl-eval==2026.3.23")
    # Beside our packages, its folder `benchmarks` would hide ours.
    assert "--target" in evaluation_sets
    assert "nemo-gym==" in evaluation_sets
    second = clone.run()
    assert second.returncode == 0
    assert "up to date" in second.stdout
    assert clone.calls() == []


def test_every_extra_of_setup_py_is_known(clone):
    clone.interpreter("bin/python3")
    assert clone.run("data,test,lm-eval").returncode == 0
    assert clone.calls()[1].endswith("--editable .[data,lm-eval,test]")
    assert "gpu" in clone.run("gpus").stderr


def test_extras_add_up_and_fewer_of_them_change_nothing(clone):
    clone.interpreter("bin/python3")
    clone.run("test")
    assert [call for call in clone.calls() if "bfcl" in call] == []
    clone.run("data")
    assert clone.calls()[0].endswith("--editable .[data,test]")
    clone.run("test")
    assert clone.calls() == []


def test_changed_requirements_are_installed_into_the_same_environment(clone):
    clone.interpreter("bin/python3")
    clone.run("test")
    clone.calls()
    with open(clone.root / "launch/constraints.txt", "a") as file:
        file.write("extra==1.0\n")
    clone.run("test")
    (install,) = clone.calls()
    assert install.endswith("--editable .[test]")


def test_a_failed_installation_shows_the_log_and_is_tried_again(clone):
    clone.interpreter("bin/python3")
    done = clone.run("test", FAKE_PIP="echo 'no space left'; false")
    assert done.returncode == 4
    assert "no space left" in done.stderr
    clone.calls()
    assert clone.run("test").returncode == 0
    assert "venv" not in clone.calls()


def test_an_environment_whose_making_was_killed_is_made_anew(clone):
    clone.interpreter("bin/python3")
    clone.run("test", FAKE_PIP="kill -9 $PPID")
    assert clone.calls()[0] == "venv"
    assert clone.run("test").returncode == 0
    assert clone.calls()[0] == "venv"
    assert "up to date" in clone.run("test").stdout


def test_another_interpreter_or_a_moved_clone_makes_the_environment_anew(clone):
    clone.interpreter("bin/python3")
    clone.run("test")
    clone.calls()
    other = clone.interpreter("other/python")
    clone.run("test", PYTHON=str(other))
    assert clone.calls()[0] == "venv"
    clone.root = clone.root.rename(clone.root.with_name("moved clone"))
    clone.run("test")
    assert clone.calls()[0] == "venv"
