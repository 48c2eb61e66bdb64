# SPDX-License-Identifier: Apache-2.0
"""Programs that agree give a coding task its tests; each runs in the jail."""

import dataclasses
import json
import pathlib

import hypothesis
import hypothesis.strategies as st
import pytest

from ring_jax.cli import status
from ring_jax.cli.main import main
from ring_jax.config import (
    CodingConfig,
    CurateConfig,
    RawSourceConfig,
    SynthesisConfig,
    TeacherConfig,
    VerificationConfig,
)
from ring_jax.curate import coding_tasks, curate
from ring_jax.curate.coding_tasks import has_tests, keep_agreeing, read_inputs
from ring_jax.curate.rows import Rejection
from ring_jax.curate.synthesis import synthesise
from ring_jax.data.schema import Message, Row, row_from_json
from ring_jax.verify import Sandbox, is_same_result

BY_SUM = "print(sum(int(word) for word in input().split()))"
BY_LOOP = (
    "total = 0\nfor word in input().split():\n    total += int(word)\nprint(total)"
)
AS_FLOAT = "print(float(sum(map(int, input().split()))))"
WRONG = "print(len(input().split()))"
CRASHES = "print(1 / 0)"
HANGS = "while True: pass"
INPUTS = ["1 2\n", "10 -3 4\n", "no number\n", "0\n", "7 7 7 7\n"]


def reply(code: str) -> str:
    return f"<think>I add.</think>\nSo:\n\n```python\n{code}\n```"


def make_row(samples, tests=(), **more) -> Row:
    tests = tests or [{"input": text} for text in INPUTS]
    return Row(
        id="r",
        messages=(Message("user", "Add."), Message("assistant", "?")),
        source="s",
        domain="d",
        licence="MIT",
        package="p==1",
        verifier="program",
        metadata={"tests": tests, "samples": samples, **more},
    )


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(
        num_workers=2, timeout_seconds=20.0, max_memory_bytes=2_000_000_000
    ) as opened:
        yield opened


def judged(sandbox, *rows: Row) -> list[Row | Rejection]:
    return keep_agreeing(
        rows, sandbox=sandbox, config=CodingConfig(), min_agreement=0.5
    )


@pytest.mark.parametrize(
    ("text", "inputs"),
    [
        ("<problem>x</problem>\n<input>1 2</input>", ["1 2\n"]),
        ("<problem>x</problem><input>\n1\n2\n</input>", ["1\n2\n"]),
        ("<problem>x</problem><input> 1</input><input> 1</input>", [" 1\n"]),
        ("<problem>x <input>no</input></problem><input>1</input>", ["1\n"]),
        ("<problem>x</problem><input>\n</input><input>1", []),
        ("<problem>x</problem><input>" + "1" * 10_001 + "</input>", []),
        ("<think></problem><input>1</input></think><problem>x</problem>", []),
    ],
)
def test_inputs_stand_below_the_task_each_between_its_tags(text, inputs):
    assert read_inputs(text) == inputs


def test_outputs_that_most_programs_agree_on_become_the_tests(sandbox):
    codes = [WRONG, BY_SUM, BY_LOOP, AS_FLOAT, CRASHES]
    samples = [reply(code) for code in codes]
    (row,) = judged(sandbox, make_row(samples))
    assert isinstance(row, Row)
    outputs = {test["input"]: test["output"] for test in row.metadata["tests"]}
    # What is no number breaks all but one program, and is no input of this task.
    assert outputs == {
        "1 2\n": "3\n",
        "10 -3 4\n": "11\n",
        "0\n": "0\n",
        "7 7 7 7\n": "28\n",
    }
    assert BY_SUM in row.reply.content and row.reply.think == "I add."
    assert row.metadata["pass_rate"] == 0.6
    assert row.answer == "4 tests"


def test_each_reason_to_turn_a_task_away(sandbox):
    half = [reply(code) for code in (BY_SUM, BY_LOOP, WRONG, WRONG)]
    found = judged(
        sandbox,
        make_row(half),
        make_row([reply(CRASHES)] * 3),
        make_row([reply("print('yes')")] * 3),
        make_row(["No program.", "```cpp\nint\n```", reply(BY_SUM)]),
        make_row([reply("print('a' * 20_000)")] * 3),
    )
    reasons = [item.reason for item in found if isinstance(item, Rejection)]
    assert reasons == [
        "no_majority",
        "few_inputs",
        "same_output",
        "few_inputs",
        "few_inputs",
    ]
    details = [item.detail for item in found if isinstance(item, Rejection)]
    assert details[0] == "2 of 4 programs agree on all 4 inputs"
    assert "0 of 5 inputs" in details[1] and "'yes\\n'" in details[2]


def test_a_program_that_hangs_costs_itself_alone():
    with Sandbox(
        num_workers=1, timeout_seconds=3.0, max_memory_bytes=2_000_000_000
    ) as short:
        rows = [
            make_row([reply(HANGS), *[reply(BY_SUM)] * 2]),
            make_row([reply(BY_LOOP)]),
        ]
        found = judged(short, *rows)
    assert [isinstance(row, Row) for row in found] == [True, True]
    assert isinstance(found[0], Row)
    assert found[0].metadata["pass_rate"] == pytest.approx(2 / 3)


def test_a_task_keeps_its_own_tests_where_the_programs_agree_with_them(sandbox):
    tests = [{"input": "[1, 2]\n3", "output": "6"}, {"input": "[]\n0", "output": "0"}]
    right = reply("class Solution:\n    def add(self, a, b): return sum(a) + b")
    wrong = reply("def add(a, b): return sum(a)")
    row = make_row([wrong, right, right], tests, function="add")
    kept, against = judged(
        sandbox, row, make_row([wrong, wrong, right], tests, function="add")
    )
    assert isinstance(kept, Row)
    assert kept.metadata["tests"] == tests
    assert "class Solution" in kept.reply.content
    assert isinstance(against, Rejection)
    assert against.reason == "majority_against_answer"
    assert against.detail == "test 1: most programs give '3', not '6'"


@hypothesis.given(
    st.lists(
        st.tuples(*[st.sampled_from(["1", "1.0", "2", "x", None])] * 2),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([0.0, 0.5, 0.7]),
)
def test_agreement_is_that_of_the_definition(outputs, min_agreement):
    row = make_row(["pass"] * len(outputs), [{"input": "a"}, {"input": "b"}])
    found = coding_tasks._judge(
        row,
        outputs,
        config=CodingConfig(min_inputs=2),
        min_agreement=min_agreement,
    )
    half = len(outputs) / 2
    are_good = [sum(out[n] is not None for out in outputs) > half for n in (0, 1)]
    plain = [
        tuple(None if text is None else text.replace(".0", "") for text in out)
        for out in outputs
    ]
    counts = [plain.count(out) if None not in out else 0 for out in plain]
    best = counts.index(max(counts))
    if not all(are_good):
        expected = "few_inputs"
    elif counts[best] <= min_agreement * len(outputs):
        expected = "no_majority"
    elif len(set(plain[best])) == 1:
        expected = "same_output"
    else:
        expected = "accepted"
    assert getattr(found, "reason", "accepted") == expected
    if isinstance(found, Row):
        given = tuple(test["output"] for test in found.metadata["tests"])
        assert given == outputs[best]
        assert found.metadata["pass_rate"] == counts[best] / len(outputs)


def test_results_of_functions_are_compared_as_json():
    assert is_same_result("[1, 2]", "[1,2]", function="f")
    assert not is_same_result("[1, 2]", "[2, 1]", function="f")
    assert not is_same_result("", "[2, 1]", function="f")
    assert is_same_result("1.0 2 \n", "1 2", function="")


@pytest.mark.parametrize(
    "tests", ["", "text", [], ["a"], [{"input": "1"}], [{"input": 1, "output": "1"}]]
)
def test_odd_tests_are_none(tests):
    row = make_row([])
    assert not has_tests(dataclasses.replace(row, metadata={"tests": tests}))
    assert not has_tests(dataclasses.replace(row, metadata={"check": "assert 1"}))
    good = {"input": "1", "output": "1"}
    assert has_tests(dataclasses.replace(row, metadata={"tests": [good]}))


# A synthesis


TASK = "Read numbers on one line and print {what} of them, {n} at most in each line."


def teach(config, journal):
    """A teacher of tasks about sums and maxima; of four programs one is wrong."""
    del config, journal
    whats = iter(["the sum", "the largest", "the sum again"])

    def generate(prompts, sampling):
        texts = []
        for number, prompt in enumerate(prompts):
            if "new coding task" in prompt:
                assert "write 10 inputs" in prompt
                what = next(whats)
                given = [f"<input>{n} {n + 3} 1</input>" for n in range(4)]
                given = given[:2] if "again" in what else given
                task = TASK.format(what=what, n=len(texts))
                texts.append(f"<problem>{task}</problem>\n" + "\n".join(given))
            else:
                assert "whole program in one ```python block" in prompt
                name = "max" if "largest" in prompt else "sum"
                code = BY_SUM.replace("sum", name)
                texts.append(reply(CRASHES if number % 4 == 3 else code))
        return texts

    return generate


@pytest.fixture
def config(tmp_path) -> SynthesisConfig:
    tests = [{"input": "1 2\n", "output": "3"}, {"input": "5\n", "output": "5\n"}]
    records = [
        {"prompt": "Add the numbers of a line.", "metadata": {"tests": tests}},
        {"prompt": "Count the words of a line.", "metadata": {"tests": tests}},
        {"prompt": "Add, as a function of two.", "metadata": {"check": "assert 1"}},
    ]
    path = tmp_path / "tasks.jsonl"
    with path.open("w") as file:
        for record in records:
            more = {
                "completion": reply(BY_SUM),
                "answer": "tests",
                "verifier": "program",
            }
            file.write(json.dumps({**record, **more}) + "\n")
    return SynthesisConfig(
        teacher=TeacherConfig(model="coder"),
        seeds={"tasks": RawSourceConfig(path=str(path), licence="CC0-1.0")},
        num_rounds=1,
        solutions_per_problem=4,
        problems_per_seed=1,
        answer_seeds="yes",
        verification=VerificationConfig(num_workers=1),
    )


def read(folder: pathlib.Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_coding_tasks_are_made_with_tests_that_a_curation_accepts(config, tmp_path):
    out = tmp_path / "out"
    summary = synthesise(config, out, open_teacher=teach)
    assert summary["accepted"] == {"seeds": 2, "round 1": 2}
    assert summary["rejected"] == {
        "synthesis/propose/few_inputs": 1,
        "tasks/solve/no_tests": 1,
    }
    rows = [
        row_from_json(json.dumps(row), where="x", defaults={})
        for row in read(out, "problems.jsonl")
    ]
    seeds, made = rows[:2], rows[2:]
    assert len(made) == 2
    assert [test["output"] for test in seeds[0].metadata["tests"]] == ["3", "5\n"]
    for row in made:
        assert row.verifier == "program" and row.difficulty == 0.25
        assert row.answer == "4 tests" and len(row.metadata["tests"]) == 4
        name = max if "largest" in row.messages[0].content else sum
        for test in row.metadata["tests"]:
            assert int(test["output"]) == name(map(int, test["input"].split()))
        assert len(row.metadata["samples"]) == 4
    source = RawSourceConfig(path=str(out / "problems.jsonl"), licence="CC0-1.0")
    manifest = curate(
        CurateConfig(
            sources={"made": source}, verification=VerificationConfig(num_workers=1)
        ),
        tmp_path / "curated",
    )
    by_name = {step["name"]: step for step in manifest["steps"]}
    assert by_name["verification"]["rows_in"] == 4
    assert not by_name["verification"]["removed"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--config.coding.min_inputs=1"], "min_inputs=1"),
        (["--config.coding.num_inputs=3"], "num_inputs=3"),
        (["--config.coding.solution_prompt=Go."], "solution_prompt has no {problem}"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, words, part):
    (tmp_path / "s.jsonl").write_text("{}\n")
    file = f"--config=configs/data/synthesis.py:{tmp_path / 's.jsonl'}"
    command = ["synthesise", file, f"--workdir={tmp_path / 'out'}", *words]
    assert main(command) == status.MISTAKE
    error = capsys.readouterr().err
    assert part in error and error.count("\n") == 1
