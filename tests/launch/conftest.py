# SPDX-License-Identifier: Apache-2.0
"""A machine whose cloud tools are fakes that record what they are asked."""

import json
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).parent.parent.parent
LAUNCH = REPOSITORY / "launch"
FAKES = pathlib.Path(__file__).with_name("fakes.py")
TRAIN_ARGS = ("--", "--config=my_run.py", "--workdir=/shared/run")

ALWAYS = 1_000_000
NOT_FOUND = "ERROR: (gcloud) NOT_FOUND: Resource 'moe' was not found\n"


class World:
    """Runs launch scripts with fakes on PATH, and tells what the fakes were asked."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.calls_file = folder / "calls.jsonl"
        self.answers_file = folder / "answers.json"
        self.answers_file.write_text("[]")
        self.environment = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "HOME": str(folder),
            "TMPDIR": str(folder),
        }

    def fake(self, *names: str) -> None:
        for name in names:
            words = (sys.executable, "-I", "-S", str(FAKES), str(self.folder), name)
            self.script(f"bin/{name}", f'exec {shlex.join(words)} "$@"\n', shell="sh")

    def script(self, name: str, text: str, shell="bash") -> pathlib.Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/usr/bin/env {shell}\n{text}")
        path.chmod(0o755)
        return path

    def answer(self, fragment: str, text="", *, status=0, times=ALWAYS) -> None:
        """Says what a call that has the fragment is answered, after earlier answers."""
        answers = json.loads(self.answers_file.read_text())
        answers.append([fragment, status, text, times])
        self.answers_file.write_text(json.dumps(answers))

    def run(self, script: str, *words: str, **environment: str):
        return subprocess.run(
            [str(LAUNCH / script), *words],
            env=self.environment | environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def records(self) -> list[dict]:
        """Returns the calls so far, and forgets them."""
        if not self.calls_file.exists():
            return []
        lines = self.calls_file.read_text().splitlines()
        self.calls_file.unlink()
        return [json.loads(line) for line in lines]

    def calls(self) -> list[str]:
        return [" ".join(record["words"]) for record in self.records()]


@pytest.fixture
def world(tmp_path) -> World:
    # A space, as folders of users have: what is not quoted fails.
    folder = tmp_path / "a folder"
    folder.mkdir()
    return World(folder)


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """Holds that a script said one line, with these words, and ended with status 2."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert ": error: " in result.stderr
    for word in words:
        assert word in result.stderr
