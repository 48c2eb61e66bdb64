# SPDX-License-Identifier: Apache-2.0
"""Programs pass their tests or do not; what they do else is shown in tests/jail."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from ring_jax.config import ConfigError
from ring_jax.jail import JailError
from ring_jax.verify import Question, Sandbox, grade, program
from tests.without_namespaces import REFUSING

SUMS = {"tests": [{"input": "1 2\n", "output": "3"}, {"input": "5 -7", "output": "-2"}]}
ADD = {
    "function": "add",
    "tests": [
        {"input": "1\n[2, 3]", "output": "[3, 4]"},
        {"input": "0\n[]", "output": "[]"},
    ],
}
CHECK = {
    "function": "add",
    "check": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
}
ASSERTS = {"check": "assert add(1, 2) == 3\nassert add(0, 0) == 0"}


def fenced(code: str) -> str:
    return f"Here it is:\n\n```python\n{code}\n```\nIt adds."


@pytest.fixture(scope="module", autouse=True)
def confined():
    try:
        program.proven_jail()
    except ConfigError as error:
        pytest.skip(str(error))


def judge(code: str, metadata) -> str:
    verdict = grade(verifier="program", reply=code, answer="", metadata=metadata)
    assert verdict.is_correct == (not verdict.detail)
    return verdict.detail


@pytest.mark.parametrize(
    ("code", "metadata"),
    {
        "stdin": ("print(sum(map(int, input().split())))", SUMS),
        "stdin, as a number": ("print(float(sum(map(int, input().split()))))", SUMS),
        "main": (
            "if __name__ == '__main__':\n    print(sum(map(int, input().split())))",
            SUMS,
        ),
        "function": ("def add(x, ys):\n    return tuple(x + y for y in ys)", ADD),
        "method": (
            "class Solution:\n    def add(self, x: int, ys: List[int]):\n"
            "        print('adding')\n        return [x + y for y in ys]",
            ADD,
        ),
        "check": ("def add(x, y): return x + y", CHECK),
        "asserts": ("def add(x, y): return x + y", ASSERTS),
        "preamble": ("def add(x, y): return fsum([x, y])",
                     ASSERTS | {"preamble": "from math import fsum"}),
        "dataclass": (
            "from __future__ import annotations\nimport dataclasses\n"
            "@dataclasses.dataclass\nclass P:\n    x: int\n"
            "def add(x, y): return P(x).x + y",
            CHECK,
        ),
    }.values(),
)  # fmt: skip
def test_a_correct_program_passes(code, metadata):
    assert judge(fenced(code), metadata) == ""


@pytest.mark.parametrize(
    ("code", "metadata", "failure"),
    {
        "wrong sum": ("print(3)", SUMS, "test 2 of 2: it printed '3\\n', not '-2'"),
        "more lines": ("print(3); print()\nprint(3)", SUMS, "test 1 of 2: it printed"),
        "no output": ("", SUMS, "no program"),
        "exit": ("exit(0)", CHECK, "before its check"),
        "hard exit": ("import os\nos._exit(0)", CHECK, "before its check"),
        "printed": ("print('True')\nexit()", ADD, "test 1 of 2: it returned ''"),
        "assertion": ("def add(x, y): return 3", ASSERTS, "AssertionError"),
        "no function": ("def sub(): pass", CHECK, "KeyError"),
        "not JSON": ("def add(x, ys): return {1j}.pop", ADD, "TypeError"),
        "syntax": ("def add(", ASSERTS, "SyntaxError"),
        "loop": ("while True: pass", SUMS | {"seconds": 0.3}, "no end after 0.3 sec"),
        "fork bomb": ("import os\nwhile True: os.fork()", SUMS, "PermissionError"),
        "dies": ("import os\nos.kill(os.getpid(), 9)", SUMS, "exit status -9"),
        "too long": ("#" * 1_000_001, SUMS, "no program of up to 1000000"),
    }.values(),
)
def test_any_other_program_fails_with_its_reason(code, metadata, failure):
    assert failure in judge(fenced(code), metadata)


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("print(1)", "print(1)"),
        ("```\nprint(1)\n```", "print(1)"),
        ("```py\nold\n```\nbetter:\n```python3\nnew\n```\n```text\nout\n```", "new"),
        ("<think>```python\nno\n```</think>\n```python\nyes\n```", "yes"),
        ("- as a list:\n  ```python\n  x = 1\n  ```", "x = 1"),
        ("```rust\nfn main() {}\n```", ""),
        ("```python\nprint(1)", ""),
    ],
)
def test_the_last_block_of_python_is_the_program(reply, code):
    assert program.extract_program(reply) == code


@pytest.mark.parametrize(
    ("printed", "expected", "is_same"),
    [
        ("1 2\n3\n\n", "1 2\n3", True),
        ("1.0 2", "1 2.00", True),
        ("yes ", "yes", True),
        ("yes", "YES", False),
        ("1 2", "12", False),
        ("1\n2", "1 2", False),
        ("0.1", "0.10000001", False),
        ("", "", True),
    ],
)
def test_output_is_compared_by_lines_and_numbers(printed, expected, is_same):
    assert program.is_same_output(printed, expected) == is_same


def question(code: str, metadata) -> Question:
    return Question(verifier="program", reply=code, answer="", metadata=metadata)


def test_the_sandbox_runs_programs_and_survives_them():
    right = question("print(sum(map(int, input().split())))", SUMS)
    hangs = question("import time\ntime.sleep(99)", SUMS | {"seconds": 60})
    bad_row = question("print(1)", {"tests": []})
    with Sandbox(
        num_workers=1, timeout_seconds=5.0, max_memory_bytes=2_000_000_000
    ) as sandbox:
        found = sandbox.grade([right, hangs, right, bad_row, right])
    outcomes = [answer.outcome for answer in found]
    assert outcomes == ["right", "timeout", "right", "error", "right"]


def test_memory_of_a_program_is_that_of_the_sandbox():
    size = question("bytearray(500_000_000)\nprint(3)", {"tests": SUMS["tests"][:1]})
    for limit, outcome in ((2_000_000_000, "right"), (450_000_000, "wrong")):
        with Sandbox(
            num_workers=1, timeout_seconds=20.0, max_memory_bytes=limit
        ) as sandbox:
            assert sandbox.grade([size])[0].outcome == outcome


def test_a_breach_refuses_every_program(monkeypatch):
    def breach(jail):
        raise JailError("a program in it flies")

    program.proven_jail.cache_clear()
    monkeypatch.setattr(program, "check_jail", breach)
    with pytest.raises(ConfigError, match="cannot be confined here .*flies.* none is"):
        judge("print(3)", SUMS)
    program.proven_jail.cache_clear()


CURATION = """
from ring_jax.config import CurateConfig, RawSourceConfig, to_config_dict

def get_config():
    raw = RawSourceConfig(path={path!r}, licence="CC0-1.0", verifier="program")
    return to_config_dict(CurateConfig(sources={{"raw": raw}}))
"""


def test_ring_curate_ends_with_status_2_where_programs_cannot_be_confined(tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "raw.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "Add."}, {"role": "assistant", '
        f'"content": "open({str(ran)!r}, \\"w\\")"}}], "answer": "x", '
        '"tests": [{"input": "", "output": ""}]}\n'
    )
    config = tmp_path / "config.py"
    config.write_text(CURATION.format(path=str(tmp_path / "raw.jsonl")))
    found = subprocess.run(
        [
            *(sys.executable, "-c", REFUSING, "-m", "ring_jax.cli.main", "curate"),
            *(f"--config={config}", f"--workdir={tmp_path / 'out'}"),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(pathlib.Path(program.__file__).parents[2])},
    )
    assert found.returncode == 2, found.stderr
    assert "programs cannot be confined here" in found.stderr.splitlines()[-1]
    assert not ran.exists()


@pytest.mark.slow
def test_ten_thousand_answers_are_graded_by_warm_workers():
    asked = (
        Question(
            verifier="math",
            reply=rf"So the result is \boxed{{\frac{{{n}}}{{{n + 7}}}}}.",
            answer=f"{n}/{n + 7}" if n % 3 else f"{n}/{n + 8}",
            metadata={},
        )
        for n in range(10_000)
    )
    with Sandbox(
        num_workers=2, timeout_seconds=30.0, max_memory_bytes=4_000_000_000
    ) as sandbox:
        start = time.monotonic()
        outcomes = [answer.outcome for answer in sandbox.stream(asked)]
        print(f"{10_000 / (time.monotonic() - start):.0f} answers per second")
    # 0/7 is 0/8.
    wanted = ["right" if n % 3 or n == 0 else "wrong" for n in range(10_000)]
    assert outcomes == wanted
