# SPDX-License-Identifier: Apache-2.0
"""Traces of a server on this machine that adds, some of it wrong, and misbehaves."""

import json
import pathlib
import re
from collections.abc import Iterator

import pytest

from ring_jax.cli import status
from ring_jax.cli.main import main
from ring_jax.config import RawSourceConfig, TraceConfig, VerificationConfig
from ring_jax.curate.forms import normalise
from ring_jax.curate.rows import RawRecord
from ring_jax.curate.traces import Sample, judge_graded
from ring_jax.data.schema import Message, Row, row_from_json
from ring_jax.verify import Sandbox
from tests.loopback_server import Loopback, chat_message, serving

ROWS = [
    {"id": "gold", "prompt": "What is 3 + 4?", "answer": "7"},
    {"id": "asked", "prompt": "What is 5 + 6?"},
    {"id": "wrong", "prompt": "What is 1 + 1?", "answer": "3"},
    {"id": "guessed", "prompt": "Guess: 10 + 20?"},
    {"id": "endless", "prompt": "Count on from 8"},
    {"id": "long", "prompt": "long " * 300},
]


def said(body: dict) -> tuple[int, dict]:
    """What the model on the server says: a function of prompt and seed alone.

    It adds. With an even seed it takes its time, and with each fifth it is wrong.
    """
    prompt, seed = body["messages"][-1]["content"], body["seed"]
    if len(prompt) > 1000:
        return 400, {"error": "This model's maximum context length is 256 tokens."}
    total = sum(map(int, re.findall(r"\d+", prompt)))
    if "Count on" in prompt:
        return 200, chat_message("9 10 11", finish="length")
    if "Guess" in prompt or seed % 5 == 4:
        total += seed + 1
    think = "I add. " * (2 - seed % 2)
    return 200, chat_message(f"It is \\boxed{{{total}}}.", reasoning=think)


@pytest.fixture
def server() -> Iterator[Loopback]:
    with serving(said) as state:
        yield state


@pytest.fixture
def words(server, tmp_path) -> list[str]:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return [
        "generate",
        f"--server={server.url}",
        "--model=adder",
        f"--file={file}",
        f"--output={tmp_path / 'traces.jsonl'}",
        "--config.traces.teacher.first_wait_seconds=0",
        "--config.traces.teacher.max_tries=3",
        "--config.traces.verification.num_workers=1",
    ]


def read(path: pathlib.Path) -> dict[str, dict]:
    rows = map(json.loads, path.read_text("utf-8").splitlines())
    return {row["id"]: row for row in rows}


def outputs(folder: pathlib.Path) -> list[bytes]:
    names = ("traces.jsonl", "traces.rejected.jsonl")
    return [(folder / name).read_bytes() for name in names]


def test_samples_say_which_model_and_sampling_made_them(server, words, tmp_path):
    assert main([*words, "--n=4", "--config.traces.sampling.temperature=0.9"]) == 0
    rows = read(tmp_path / "traces.jsonl")
    assert list(rows) == ["gold", "asked", "wrong", "guessed"]
    row = rows["gold"]
    assert row["metadata"]["model"] == "adder"
    assert row["metadata"]["sampling"]["temperature"] == 0.9
    assert row["metadata"]["finish_reasons"] == ["stop"] * 4
    assert len(set(row["metadata"]["samples"])) > 1
    assert row["messages"][-1]["think"] == "I add. I add."
    assert {body["temperature"] for body in server.asked} == {0.9}
    rejected = read(tmp_path / "traces.rejected.jsonl")
    assert rejected["endless"]["reason"] == "never_stopped"
    assert rejected["long"]["reason"] == "prompt_too_long"
    assert "maximum context length is 256" in rejected["long"]["detail"]


def test_grading_keeps_verified_answers_and_labels_by_majority(words, tmp_path, capsys):
    shortest = "--config.traces.choose=shortest"
    assert main([*words, "--n=10", "--grade", "--json", shortest]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["num_rows"] == 2 and found["num_samples"] == 60
    assert found["rejected"] == {
        "never_stopped": 1,
        "no_majority": 1,
        "none_right": 1,
        "prompt_too_long": 1,
    }
    rows = read(tmp_path / "traces.jsonl")
    for name, answer, by in (("gold", "7", "verifier"), ("asked", "11", "majority")):
        row, metadata = rows[name], rows[name]["metadata"]
        assert row["answer"] == answer and metadata["graded_by"] == by
        assert metadata["pass_rate"] == 0.8 and row["difficulty"] == 0.2
        assert row["messages"][-1]["think"] == "I add."
        assert f"{{{answer}}}" in row["messages"][-1]["content"]
        assert len(metadata["samples"]) == 10


def test_a_trace_is_a_row_for_a_curation(words, tmp_path):
    assert main([*words, "--n=5", "--grade"]) == 0
    for line in (tmp_path / "traces.jsonl").read_text().splitlines():
        row = row_from_json(line, where="x", defaults={})
        record = RawRecord(where="x", fields=json.loads(line))
        source = RawSourceConfig(path="traces.jsonl", licence="CC0-1.0")
        again = normalise(record, source, source="traces")
        assert isinstance(again, Row)
        assert again.reply == row.reply and again.answer == row.answer
        assert again.metadata["samples"] == row.metadata["samples"]
        assert again.metadata["pass_rate"] == row.metadata["pass_rate"]


def test_an_interrupted_sampling_asks_for_nothing_twice(
    server, words, tmp_path, capsys
):
    assert main([*words, "--n=3"]) == 0
    whole = outputs(tmp_path)
    journal = tmp_path / "traces.journal" / "journal.jsonl"
    journal.unlink()
    (tmp_path / "traces.jsonl").unlink()
    server.asked.clear()
    server.misbehave = lambda number, body: (500, {}) if number >= 6 else None
    assert main([*words, "--n=3"]) == status.ENVIRONMENT
    error = capsys.readouterr().err.splitlines()[-1]
    assert "3 tries failed" in error and "run the command again" in error
    num_kept = len(journal.read_text().splitlines())
    assert num_kept > 0 and not (tmp_path / "traces.jsonl").exists()
    server.asked.clear()
    server.misbehave = lambda number, body: None
    assert main([*words, "--n=3"]) == 0
    # What is too long is no answer, and is asked again.
    assert len(server.asked) == 3 * len(ROWS) - num_kept
    assert outputs(tmp_path) == whole


def test_a_conversation_is_sent_whole_and_its_old_reply_is_not(server, words, tmp_path):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "5"},
    ]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns, "answer": "4"}))
    asked_as = "--config.traces.asked_as={prompt} Use \\boxed{}."
    assert main([*words, "--grade", asked_as]) == 0
    (body,) = server.asked
    assert body["messages"][0] == turns[0]
    assert body["messages"][1]["content"] == "What is 2 + 2? Use \\boxed{}."
    (row,) = read(tmp_path / "traces.jsonl").values()
    assert row["messages"][1] == turns[1]
    assert row["messages"][-1]["content"] == "It is \\boxed{4}."


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--n=0"], "--n=0"),
        (["--n=2", "--grade"], "row asked has no answer to grade by"),
        (["--chat"], "no --prompt and no --chat"),
        (["--output=traces.txt"], "--output=FILE.jsonl"),
        (["--file=absent"], "absent is no file"),
        (["--model="], "name its model"),
        (["--workdir=w"], "leave out the run"),
        (["--config.seed=1"], "begin with --config.traces."),
        (["--config.traces.chose=first"], "Did you mean `choose`"),
        (["--config.traces.asked_as=x"], "must hold {prompt}"),
        (["--server=here"], "must begin with http"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_and_nothing_is_asked(server, words, capsys, more, part):
    assert main([*words, *more]) == 2
    errors = capsys.readouterr().err
    assert part in errors and len(errors.splitlines()) == 1
    assert not server.asked


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{", "rows.jsonl:1: is not JSON"),
        ('{"prompt": "a", "metadata": {"x": NaN}}', "NaN is no JSON"),
        ("[]", "is no object"),
        ("{}", "either prompt or messages"),
        ('{"prompt": 3}', "must be a text"),
        ('{"messages": []}', "no turn to answer"),
        ('{"messages": "a"}', "list of turns"),
        ('{"prompt": "a", "top_p": 1}', "top_p"),
        ("", "has no prompt"),
    ],
)
def test_a_wrong_row_is_named(words, capsys, tmp_path, line, part):
    (tmp_path / "rows.jsonl").write_text(line)
    assert main(words) == 2
    errors = capsys.readouterr().err
    assert part in errors and len(errors.splitlines()) == 1


def test_an_output_of_other_settings_or_another_command_is_left_alone(
    words, capsys, tmp_path
):
    output = tmp_path / "traces.jsonl"
    output.write_text("mine")
    assert main([*words, "--n=1"]) == 2
    assert "exists, and not from sampling" in capsys.readouterr().err
    output.unlink()
    assert main([*words, "--n=1"]) == 0
    before = outputs(tmp_path)
    for more in (["--n=2"], ["--n=1", "--config.traces.choose=shortest"]):
        assert main([*words, *more]) == 2
        assert "was begun with" in capsys.readouterr().err.splitlines()[-1]
    assert outputs(tmp_path) == before


def test_no_row_left_is_exit_status_3(words, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[4]))
    assert main(words) == status.STOPPED


def graded(row: Row, samples: list[Sample]):
    config = TraceConfig(verification=VerificationConfig(num_workers=1))
    with Sandbox(
        num_workers=1, timeout_seconds=10.0, max_memory_bytes=4_000_000_000
    ) as sandbox:
        return judge_graded([row], [samples], sandbox=sandbox, config=config)[0]


def test_answers_that_never_ended_count_against_a_majority():
    turns = (Message("user", "What is 1/2?"), Message("assistant", "?"))
    origin = dict.fromkeys(("id", "source", "domain", "licence", "package"), "x")
    row = Row(messages=turns, **origin)
    halves = [Sample(r"\boxed{1/2}", "stop"), Sample(r"\boxed{0.5}", "stop")]
    cut = Sample("<think>let me", "length")
    assert isinstance(graded(row, [*halves, cut]), Row)
    assert not isinstance(graded(row, [*halves, cut, cut]), Row)
