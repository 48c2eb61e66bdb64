# SPDX-License-Identifier: Apache-2.0
"""Published sets are read by their columns; gold answers are right, planted ones wrong.

The items are our own, in each set's published format.
"""

import base64
import csv
import json
import pathlib
import pickle
import zlib

import pyarrow.parquet
import pytest

from ring_jax.config import ConfigError, VerificationConfig
from ring_jax.data.evaluation_columns import NO_REPLY
from ring_jax.data.evaluation_files import FILE_SETS, read
from ring_jax.verify import Question, Sandbox


def packed(tests):
    """As LiveCodeBench packs private tests."""
    text = pickle.dumps(json.dumps(tests))
    return base64.b64encode(zlib.compress(text)).decode()


def problem(**changes):
    tests = [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]
    private = [{"input": "20 22\n", "output": "42\n", "testtype": "stdin"}]
    return {
        "question_title": "Sum",
        "question_content": "Print the sum of two numbers.",
        "platform": "atcoder",
        "question_id": "own_a",
        "contest_id": "own",
        "contest_date": "2026-01-02T00:00:00",
        "starter_code": "",
        "difficulty": "medium",
        "public_test_cases": json.dumps(tests),
        "private_test_cases": packed(private),
        "metadata": "{}",
    } | changes


METHOD = problem(
    question_id="own_b",
    platform="leetcode",
    starter_code="class Solution:\n    def add(self, a: int, b: int) -> int:\n",
    metadata='{"func_name": "add"}',
    public_test_cases=json.dumps(
        [{"input": "1\n2", "output": "3", "testtype": "functional"}]
    ),
    private_test_cases=packed(
        [{"input": "20\n22", "output": "42", "testtype": "functional"}]
    ),
)
GPQA = {
    "Record ID": "own1",
    "Question": "Which gas do plants take up?",
    "Correct Answer": " carbon dioxide\n",
    "Incorrect Answer 1": "argon",
    "Incorrect Answer 2": "helium",
    "Incorrect Answer 3": "neon",
    "Subdomain": "Botany",
}
OLYMPIAD = {
    "id": 7,
    "question": "Find all $x$ with $x^2=9$.",
    "context": None,
    "final_answer": ["$3$,$-3$"],
    "is_multiple_answer": True,
    "unit": None,
    "answer_type": "Numerical",
    "error": None,
    "subfield": "Algebra",
}
CHOICES = {"question": "What is $2+2$?", "options": ["3", "4", "5", "6"], "answer": "B"}
INSTRUCT = {
    "origin_prompt": [{"role": "user", "content": "Call the tool."}],
    "ground_truth": {"action": "Map.route", "args": {"start": "A", "km": 3}},
    "template": {"thought": "thought", "action": "name", "args": "args"},
    "meta_data": {"response_format": "json"},
}
FILES = {
    "math500": (
        "test.jsonl",
        [
            {
                "problem": "Half of one?",
                "solution": "...",
                "answer": "\\frac{1}{2}",
                "subject": "Prealgebra",
                "level": 4,
                "unique_id": "test/prealgebra/1.json",
            }
        ],
        ["so \\boxed{0.5}", "The answer is $\\dfrac12$."],
        ["\\boxed{2}", "\\boxed{\\frac{1}{3}}", "no idea"],
    ),
    "gsm8k": (
        "test.jsonl",
        [{"question": "How many?", "answer": "2*617=<<2*617=1234>>1234\n#### 1,234"}],
        ["#### 1234", "The answer is 1,234.00 dollars.", "\\boxed{1234}"],
        ["#### 1235", "1,234 minus 1 is 1,233"],
    ),
    "gpqa": (
        "gpqa_diamond.csv",
        [GPQA],
        ["The answer is carbon dioxide.", "\\boxed{carbon dioxide}"],
        ["The answer is argon.", "Answer: E"],
    ),
    "livecodebench": (
        "test6.jsonl",
        [problem()],
        ["```python\na, b = map(int, input().split())\nprint(a + b)\n```"],
        ["```python\nprint(3)\n```", "a + b"],
    ),
    "olympiadbench": (
        "OE_TO_maths_en_COMP.jsonl",
        [OLYMPIAD],
        ["\\boxed{-3, 3}", "\\boxed{3,-3}"],
        ["\\boxed{3}", "\\boxed{9}"],
    ),
    "mathbench": (
        "single_choice_en.jsonl",
        [CHOICES],
        [
            "Therefore, the correct answer is option B",
            "所以答案为选项B",
            "(B)",
            "\\boxed{4}",
        ],
        ["Therefore, the correct answer is option C", "\\boxed{3}"],
    ),
    "gaokao2023en": (
        "Gaokao2023-Math-En.jsonl",
        [{"question": "Solve $x-1=2$.", "answer": "$x=3$"}],
        ["\\boxed{3}", "\\boxed{x=3}"],
        ["\\boxed{2}"],
    ),
    "ifeval": (
        "ifeval_input_data.jsonl",
        [
            {
                "key": 1000,
                "prompt": "Write three words. No commas.",
                "instruction_id_list": [
                    "punctuation:no_comma",
                    "length_constraints:number_words",
                ],
                "kwargs": [
                    {"num_words": None},
                    {"num_words": 3, "relation": "at least"},
                ],
            }
        ],
        ["one two three"],
        ["one, two, three", "one two"],
    ),
    "teval": (
        "instruct_v2.json",
        {"0": INSTRUCT},
        [
            '{"thought": "t", "name": "Map.route", "args": {"start": "A", "km": 3}}',
            "```json\n{'thought': '', 'name': 'Map.route', 'args': "
            "{'start': 'A', 'km': 3}}\n```",
        ],
        [
            '{"thought": "t", "name": "Map.route", "args": {"start": "B", "km": 3}}',
            '{"name": "Map.route", "args": {"start": "A", "km": 3}}',
            "Map.route(A, 3)",
        ],
    ),
    "mmlu": (
        "own_subject_test.csv",
        [["What is 2+2?", "3", "4", "5", "6", "B"]],
        ["Answer: B", "answer: (b)", "So it is 4, and the answer is B."],
        ["Answer: A", "Answer: $LETTER"],
    ),
    "ceval": (
        "own_val.csv",
        [
            {
                "id": 0,
                "question": "1+1等于____",
                "A": "2",
                "B": "3",
                "C": "4",
                "D": "5",
                "answer": "A",
                "explanation": "",
            }
        ],
        ["答案：A", "答案是A", "A"],
        ["答案：B", "C"],
    ),
}
"""Name -> file, its records, right replies, wrong replies."""
NAMES = sorted(FILES)


def write(folder: pathlib.Path, file: str, records) -> pathlib.Path:
    path = folder / file
    with path.open("w", encoding="utf-8", newline="") as out:
        if file.endswith(".jsonl"):
            out.writelines(json.dumps(record) + "\n" for record in records)
        elif file.endswith(".json"):
            json.dump(records, out)
        else:
            lines = csv.writer(out)
            if isinstance(records[0], dict):
                lines.writerow(records[0])
                records = [list(record.values()) for record in records]
            lines.writerows(records)
    return path


def outcomes(pairs):
    """Grades replies to rows."""
    questions = [
        Question(
            verifier=row.verifier,
            reply=reply,
            answer=row.answer,
            metadata=json.loads(json.dumps(row.metadata)),
        )
        for row, reply in pairs
    ]
    limits = VerificationConfig()
    with Sandbox(
        num_workers=1,
        timeout_seconds=limits.timeout_seconds,
        max_memory_bytes=limits.max_memory_bytes,
    ) as sandbox:
        return [answer.outcome for answer in sandbox.grade(questions)]


def read_own(name, folder):
    file, records, *_ = FILES[name]
    return read(name, str(write(folder, file, records)))


def test_every_set_has_a_file_here():
    assert set(FILES) == set(FILE_SETS)


def test_gold_replies_are_right_and_planted_ones_wrong_in_every_set(tmp_path):
    pairs, wanted = [], []
    for name in NAMES:
        (row,) = read_own(name, tmp_path)
        gold = [] if row.reply.content == NO_REPLY else [row.reply.content]
        *_, right, wrong = FILES[name]
        pairs += [(row, reply) for reply in [*gold, *right, *wrong]]
        wanted += ["right"] * len(gold + right) + ["wrong"] * len(wrong)
    assert not [
        (row.source, reply, outcome)
        for (row, reply), outcome, expected in zip(
            pairs, outcomes(pairs), wanted, strict=True
        )
        if outcome != expected
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_holds_the_question_and_not_the_answer(name, tmp_path):
    (row,) = read_own(name, tmp_path)
    asked = row.messages[-2]
    assert asked.role == "user"
    assert row.source == name
    assert row.id.startswith(f"{name}/")
    gold = {"math500": "frac{1}{2}", "gsm8k": "1234", "gaokao2023en": "x=3"}
    assert gold.get(name, "####") not in asked.content


def test_a_method_of_livecodebench_is_called_with_public_and_private_tests(tmp_path):
    (row,) = read("livecodebench", str(write(tmp_path, "test.jsonl", [METHOD])))
    assert METHOD["starter_code"] in row.messages[1].content
    assert [test["output"] for test in row.metadata["tests"]] == ["3", "42"]
    right = f"```python\n{METHOD['starter_code']}        return a + b\n```"
    public_only = f"```python\n{METHOD['starter_code']}        return 3\n```"
    assert outcomes([(row, right), (row, public_only)]) == ["right", "wrong"]


class Shell:
    def __reduce__(self):
        return (exec, ("import sys; sys.stdout.write('a file has run code')",))


def test_a_pickle_that_names_a_function_is_refused_and_not_run(tmp_path, capsys):
    data = base64.b64encode(zlib.compress(pickle.dumps(Shell()))).decode()
    path = write(tmp_path, "test.jsonl", [problem(private_test_cases=data)])
    with pytest.raises(ConfigError, match=r"builtins\.exec"):
        read("livecodebench", str(path))
    assert "run code" not in capsys.readouterr().out


def test_choices_of_gpqa_are_shuffled_by_the_question_alone(tmp_path):
    records = [GPQA | {"Question": f"Which gas is number {n}?"} for n in range(40)]
    path = write(tmp_path, "gpqa_main.csv", records)
    rows = read("gpqa", str(path))
    assert [row.answer for row in rows] == [r.answer for r in read("gpqa", str(path))]
    assert {row.answer for row in rows} == set("ABCD")
    for row in rows:
        place = "ABCD".index(row.answer)
        assert row.metadata["choices"][place] == "carbon dioxide"
    turned = write(tmp_path, "gpqa_turned.csv", records[::-1])
    answers = {row.messages[0].content: row.answer for row in rows}
    for row in read("gpqa", str(turned)):
        assert answers[row.messages[0].content] == row.answer


def test_a_tolerance_of_olympiadbench_is_of_the_gold_number(tmp_path):
    record = OLYMPIAD | {"final_answer": ["$-2.5$"], "error": "1e-1"}
    (row,) = read("olympiadbench", str(write(tmp_path, "OE_TO.jsonl", [record])))
    replies = ["\\boxed{-2.59}", "\\boxed{-2.61}", "\\boxed{2.5}"]
    assert outcomes([(row, reply) for reply in replies]) == ["right", "wrong", "wrong"]


def test_mmlu_reads_the_hubs_parquet_and_a_folder_of_tables(tmp_path):
    record = {"question": "2+2?", "subject": "sums", "choices": list("3456")}
    table = pyarrow.Table.from_pylist([record | {"answer": 1}])
    pyarrow.parquet.write_table(table, tmp_path / "test-00000-of-00001.parquet")
    (row,) = read("mmlu", str(tmp_path))
    assert (row.answer, row.task) == ("B", "sums")
    folder = tmp_path / "tables"
    folder.mkdir()
    for subject in ("algebra", "botany"):
        write(folder, f"{subject}_test.csv", FILES["mmlu"][1])
    assert [row.task for row in read("mmlu", str(folder))] == ["algebra", "botany"]


def test_mathbench_asks_chinese_questions_in_chinese(tmp_path):
    (row,) = read(
        "mathbench", str(write(tmp_path, "single_choice_cn.jsonl", [CHOICES]))
    )
    assert "单项选择题" in row.messages[0].content
    cloze = {"question": "3+4=?", "answer": "7"}
    (row,) = read("mathbench", str(write(tmp_path, "cloze_cn.jsonl", [cloze])))
    assert row.verifier == "math"
    assert outcomes([(row, "\\boxed{7}"), (row, "\\boxed{8}")]) == ["right", "wrong"]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_says_which_one_to_put_where(name, tmp_path):
    with pytest.raises(ConfigError) as error:
        read(name, str(tmp_path / "nowhere"))
    known = FILE_SETS[name]
    for told in (str(tmp_path / "nowhere"), known.files, known.page, known.fields):
        assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_record_of_another_format_is_named(name, tmp_path):
    path = write(tmp_path, "instruct_v2.jsonl", [{"prompts": "other"}])
    with pytest.raises(ConfigError, match=r"instruct_v2\.jsonl, record 1"):
        read(name, str(path))


def test_a_line_that_is_no_json_is_named_by_its_place(tmp_path):
    file, records, *_ = FILES["ifeval"]
    path = write(tmp_path, file, records[:1])
    with path.open("a") as lines:
        lines.write("{broken\n")
    with pytest.raises(ConfigError, match="record 2, is not of the published format"):
        read("ifeval", str(path))


@pytest.mark.parametrize(
    ("name", "file", "changes", "message"),
    [
        ("ceval", "own_test.csv", {"answer": ""}, "none of ABCD"),
        ("gsm8k", "test.jsonl", {"answer": "12"}, "has no ####"),
        ("olympiadbench", "TP_TO.jsonl", {"final_answer": None}, "OE_TO"),
        ("olympiadbench", "OE_MM.jsonl", {"image_1": "bytes"}, "OE_TO"),
        (
            "livecodebench",
            "test.jsonl",
            {"private_test_cases": "AAAA"},
            "while decompressing",
        ),
        ("livecodebench", "test.jsonl", {"metadata": METHOD["metadata"]}, "func_name"),
    ],
)
def test_an_item_that_cannot_be_graded_is_refused(
    name, file, changes, message, tmp_path
):
    record = FILES[name][1][0] | changes
    with pytest.raises(ConfigError, match=message):
        read(name, str(write(tmp_path, file, [record])))


def test_files_of_teval_that_need_an_encoder_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="sentence encoder"):
        read("teval", str(write(tmp_path, "plan_json_v2.json", {"0": INSTRUCT})))


def test_an_unknown_set_is_answered_with_those_that_are_known(tmp_path):
    with pytest.raises(ConfigError, match="math500"):
        read("math", str(tmp_path))
