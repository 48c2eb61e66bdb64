# SPDX-License-Identifier: Apache-2.0
"""`ring evaluate` as a person meets it: a server, a stop, mistakes in one line."""

import json
import pathlib

import pytest

from ring_jax.cli import status
from ring_jax.cli.main import main
from tests.generate.test_command import model, workdir
from tests.loopback_server import chat_message, serving

__all__ = ["model", "workdir"]
"""Fixtures: a run's folder, and the model in it."""

RUN = """
import dataclasses
from ring_jax.cli.asked_model import ONLY_ASKED
from ring_jax.config import SuiteConfig, SuitesConfig, to_config_dict

def get_config():
    own = {"numbers": SuiteConfig(path="ROWS", capability="mathematics")}
    suites = SuitesConfig(own=own)
    return to_config_dict(dataclasses.replace(ONLY_ASKED, suites=suites))
"""


@pytest.fixture
def words(tmp_path: pathlib.Path, monkeypatch) -> list[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    rows = tmp_path / "rows.jsonl"
    with rows.open("w") as file:
        for number in range(6):
            turns = [
                {"role": "user", "content": f"What is {number} + 0?"},
                {"role": "assistant", "content": f"{number}"},
            ]
            row = {"messages": turns, "answer": f"{number}", "verifier": "number"}
            file.write(json.dumps(row) + "\n")
    config = tmp_path / "run.py"
    config.write_text(RUN.replace("ROWS", str(rows)))
    return ["evaluate", f"--config={config}", f"--workdir={tmp_path / 'run'}"]


def by_server(words: list[str], url: str, *more: str) -> list[str]:
    server = ["--suites=numbers", f"--server={url}", "--model=org/adder", "--json"]
    pace = ["--config.suites.server.first_wait_seconds=0"]
    return [*words, *server, *pace, *more]


def test_a_server_is_graded_and_what_failed_is_asked_by_a_second_start(
    words, tmp_path, capsys
):
    broken = {"2", "4"}

    def reply(body):
        number = body["messages"][0]["content"].split()[2]
        if number in broken:
            return 400, {"error": "no"}
        return 200, chat_message(number if number != "5" else "6")

    with serving(reply) as server:
        assert main(by_server(words, server.url)) == status.STOPPED
        out = capsys.readouterr().out
        summary = json.loads(out.splitlines()[-1])["suites"]["numbers"]
        assert (summary["status"], summary["num_items"]) == ("partial", 4)
        assert "2 replies are missing" in out
        broken.clear()
        assert main(by_server(words, server.url)) == status.DONE
    assert len(server.asked) == 6 + 2
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])["suites"]["numbers"]
    assert (summary["status"], summary["score"]) == ("done", 5 / 6)
    folder = tmp_path / "run" / "evaluation" / "org_adder"
    scores = json.loads((folder / "scores.json").read_text())
    assert (scores["label"], scores["model"]) == ("org_adder", "org/adder")
    assert len((folder / "numbers.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ([], ["name suites", "aime24"]),
        (["--suites=numbres"], ["'numbres'", "`numbers`"]),
        (["--suites=numbers", "--server=http://x"], ["--model=NAME"]),
        (
            ["--suites=numbers", "--server=http://x", "--model=m", "--label=../up"],
            ["--label='../up'"],
        ),
        (
            [
                *("--suites=numbers", "--server=http://x", "--model=m"),
                "--config.suites.own.numbers.path=gone.jsonl",
            ],
            ["path='gone.jsonl'", "put its items there"],
        ),
        (
            ["--suites=numbers", "--config.suites.num_samples=4"],
            ["num_samples=4", "temperature"],
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    words, more, parts, tmp_path, capsys
):
    assert main([*words, *more]) == status.MISTAKE
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert all(part in line for part in parts), line
    assert not (tmp_path / "run").exists()


def test_the_newest_model_of_a_run_is_graded_once(workdir, capsys):
    asked = [
        "evaluate",
        f"--workdir={workdir}",
        "--suites=gym_gcd",
        "--config.suites.num_items=1",
        "--config.suites.max_new_tokens=6",
        "--json",
    ]
    for _ in range(2):
        assert main(asked) == status.DONE
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert summary["label"] == "step_3"
        assert summary["suites"]["gym_gcd"]["num_items"] == 3
    folder = workdir / "evaluation" / "step_3"
    records = (folder / "gym_gcd.jsonl").read_text().splitlines()
    assert len(records) == 3
    assert {json.loads(line)["stop_reason"] for line in records} <= {"stop", "length"}
    assert all(json.loads(line)["num_tokens"] <= 6 for line in records)
