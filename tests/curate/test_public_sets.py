# SPDX-License-Identifier: Apache-2.0
"""Every set of the paper's mixes, in its published format, ends in the right rows.

The records are ours; their columns and their quirks are those of the sets' cards.
"""

import dataclasses
import json
import pathlib

import pyarrow
import pyarrow.parquet
import pytest

from ring_jax.cli import status
from ring_jax.cli.main import main
from ring_jax.cli.settings import load_config_file
from ring_jax.config import (
    ConfigError,
    CurateConfig,
    DuplicatesConfig,
    RawSourceConfig,
    VerificationConfig,
    from_config_dict,
)
from ring_jax.curate import curate
from ring_jax.curate.chunks import Examined, chunk_jobs, examine
from ring_jax.curate.pipeline import open_steps
from ring_jax.curate.read import open_source
from ring_jax.data.schema import row_to_json
from ring_jax.verify import program
from tests.curate.test_pipeline import shard_rows

CONFIG = "configs/data/ring_lite_distill.py"
STEPS = "Two and two are four, and four less one is three."
STDIN = {"input": "1 2\n", "output": "3\n"}
CODE = "print(sum(map(int, input().split())))"
FENCED = f"```python\n{CODE}\n```"
EXPECTED_TESTS = {"tests": [STDIN]}
PAIRS = {"inputs": ["1 2\n"], "outputs": ["3\n"]}
SPACED = {"input": ["1 2\n"], "output": ["3\n"]}
NO_TESTS = {"input": [], "output": []}
CALL = {"name": "add", "arguments": {"a": 1, "b": 2}}


def turns(*contents: str, roles=("user", "assistant"), names=("role", "content")):
    return [
        {names[0]: role, names[1]: content}
        for role, content in zip(roles, contents, strict=True)
    ]


def shared_gpt(*contents: str, roles=("human", "gpt")):
    return turns(*contents, roles=roles, names=("from", "value"))


# Set -> mix, records as published, what the first row must hold; all but the first
# record are turned away as `not_selected`.
SETS = {
    "openr1_math": (
        "reasoning",
        [
            {
                "problem": "2 + 2 - 1?",
                "solution": "It is 3.",
                "answer": "3",
                "problem_type": "Algebra",
                "question_type": "math-word-problem",
                "source": "olympiads",
                "uuid": "u-1",
                "is_reasoning_complete": [True, True],
                "generations": ["<think>a</think>4", f"<think>{STEPS}</think>3"],
                "correctness_math_verify": [False, True],
                "correctness_llama": None,
                "finish_reasons": ["stop", "stop"],
                "correctness_count": 1,
                "messages": turns(
                    "2 + 2 - 1?", f"<think>\n{STEPS}\n</think>\n\nIt is \\boxed{{3}}."
                ),
            }
        ],
        {
            "id": "openr1_math/u-1",
            "answer": "3",
            "verifier": "math",
            "licence": "Apache-2.0",
        },
    ),
    "openthoughts_math": (
        "reasoning",
        [
            {
                "problem": "2 + 2 - 1?",
                "deepseek_reasoning": f"{STEPS}\n",
                "deepseek_solution": "It is \\boxed{3}.",
                "ground_truth_solution": "We get $\\boxed{3}$.",
                "domain": domain,
                "source": "olympiads",
                "test_cases": None,
                "starter_code": None,
            }
            for domain in ("math", "code")
        ],
        {"answer": "3", "verifier": "math", "task": "math", "licence": "Apache-2.0"},
    ),
    "openthoughts_code": (
        "reasoning",
        [
            {
                "problem": "Add two numbers.",
                "deepseek_reasoning": STEPS,
                "deepseek_solution": f"So:\n{FENCED}",
                "ground_truth_solution": None,
                "domain": domain,
                "source": "apps",
                "test_cases": json.dumps(PAIRS),
                "starter_code": "",
            }
            for domain in ("code", "physics")
        ],
        {"verifier": "program", "licence": "Apache-2.0", "metadata": EXPECTED_TESTS},
    ),
    "synthetic_1": (
        "reasoning",
        [
            {
                "response_id": "r-1",
                "problem_id": "p-1",
                "task_type": "verifiable_math",
                "score": 1.0,
                "messages": turns("2 + 2 - 1?", f"<think>{STEPS}</think>It is 3."),
            }
        ],
        {"id": "synthetic_1/r-1", "task": "verifiable_math", "licence": "Apache-2.0"},
    ),
    "scp_116k": (
        "reasoning",
        [
            {
                "domain": "Physics",
                "problem": "How heavy are 2 + 2 - 1 kg?",
                "matched_solution": "3 kg",
                "r1_response": "They weigh 3 kg.",
                "r1_reasoning_content": STEPS,
            }
        ],
        {"task": "Physics", "licence": "MIT"},
    ),
    "bespoke_stratos": (
        "reasoning",
        [
            {
                "system": "Think between <|begin_of_thought|> and <|end_of_thought|>.",
                "conversations": shared_gpt(
                    "2 + 2 - 1?",
                    f"<|begin_of_thought|>\n\n{STEPS}\n\n<|end_of_thought|>\n\n"
                    "<|begin_of_solution|>\n\nIt is 3.\n\n<|end_of_solution|>",
                    roles=("user", "assistant"),
                ),
            }
        ],
        {"licence": "Apache-2.0"},
    ),
    "general_thought": (
        "reasoning",
        [
            {
                "question_id": 7 + number,
                "question_url": "https://example.org/7",
                "question": f"2 + 2 - 1? ({number})",
                "reference_answer": "3",
                "prev_messages": None,
                "model_name": "DeepSeek/DeepSeek-R1",
                "model_answer": "It is 3.",
                "model_reasoning": STEPS,
                "task": "Basic maths",
                "question_license": "MIT",
                "question_source": "here",
                "community_answer_score": 0,
                "community_question_score": 0,
                "verifier_score": score,
            }
            for number, score in enumerate([1.0, 0.0, None])
        ],
        {
            "id": "general_thought/7",
            "answer": "3",
            "licence": "MIT",
            "metadata": {"model": "DeepSeek/DeepSeek-R1", "question_licence": "MIT"},
        },
    ),
    "codeforces_cots": (
        "reasoning",
        [
            {
                "id": f"1000/{letter}",
                "title": "Sum",
                "description": "Add two numbers.",
                "examples": [STDIN],
                "prompt": f"Solve problem {letter}: add two numbers.",
                "generation": f"<think>\n{STEPS}\n</think>\n\n{FENCED}",
                "finish_reason": reason,
                "messages": turns("Solve", "unused"),
            }
            for letter, reason in (("A", "stop"), ("B", "length"))
        ],
        {
            "id": "codeforces_cots/1000/A",
            "verifier": "program",
            "licence": "CC-BY-4.0",
            "metadata": EXPECTED_TESTS,
        },
    ),
    "infinity_instruct": (
        "generalisation",
        [
            {
                "id": "1",
                "conversations": shared_gpt("Name a colour.", "Blue is a colour."),
                "label": {"ability_en": ["listing"], "ability_zh": ["x"]},
                "langdetect": "en",
                "source": "Subjective",
            }
        ],
        {
            "domain": "instruction",
            "licence": "CC-BY-SA-4.0",
            "metadata": {"language": "en", "abilities": ["listing"]},
        },
    ),
    "openhermes": (
        "generalisation",
        [
            {
                "conversations": shared_gpt(
                    "Be brief.",
                    "Name a colour.",
                    "Blue.",
                    roles=("system", "human", "gpt"),
                ),
                "source": "airoboros2.2",
                "category": "general",
                "system_prompt": None,
                "id": None,
                "title": None,
            }
        ],
        {"domain": "instruction", "task": "general", "licence": "NOASSERTION"},
    ),
    "glaive": (
        "generalisation",
        [
            {
                "system": "SYSTEM: You have these functions -\n" + '{"name": "add"}',
                "chat": "USER: Add 1 and 2.\n\n\nASSISTANT: <functioncall> "
                '{"name": "add", "arguments": \'{"a": 1, "b": 2}\'} <|endoftext|>'
                '\n\n\nFUNCTION RESPONSE: {"sum": 3}\n\n\n'
                "ASSISTANT: The sum is 3. <|endoftext|>\n\n\n",
            }
        ],
        {"domain": "tool", "licence": "Apache-2.0"},
    ),
    "xlam": (
        "generalisation",
        [
            {
                "id": 5,
                "query": "Add 1 and 2.",
                "answers": json.dumps([CALL]),
                "tools": json.dumps(
                    [{"name": "add", "parameters": {"a": {}, "b": {}}}]
                ),
            }
        ],
        {
            "id": "xlam/5",
            "domain": "tool",
            "verifier": "tool_call",
            "licence": "CC-BY-4.0",
            "metadata": {"accepted": [{"add": {"a": [1], "b": [2]}}]},
        },
    ),
    "numina_cot": (
        "queries",
        [
            {
                "source": "aops_forum",
                "problem": "2 + 2 - 1?",
                "solution": "First 4, then $\\boxed{3}$.",
                "messages": turns("2 + 2 - 1?", "First 4, then $\\boxed{3}$."),
            }
        ],
        {"answer": "3", "verifier": "math", "task": "aops_forum"},
    ),
    "big_math": (
        "queries",
        [
            {
                "problem": "2 + 2 - 1?",
                "answer": "3",
                "source": "orca_math",
                "domain": ["Mathematics -> Algebra"],
                "llama8b_solve_rate": 0.25,
            }
        ],
        {"answer": "3", "verifier": "math", "difficulty": 0.75, "domain": "reasoning"},
    ),
    "dapo_math": (
        "queries",
        [
            {
                "data_source": "math_dapo",
                "prompt": turns("Answer in the last line: 2 + 2 - 1?", roles=["user"]),
                "ability": "MATH",
                "reward_model": {
                    "ground_truth": "3",
                    "style": "rule-lighteval/MATH_v2",
                },
                "extra_info": {"index": "x-1"},
            }
        ],
        {"answer": "3", "verifier": "math"},
    ),
    "math": (
        "queries",
        [
            {
                "problem": "2 + 2 - 1?",
                "level": "Level 4",
                "type": "Prealgebra",
                "solution": "It is $\\boxed{\\frac{6}{2}}$.",
            }
        ],
        {"answer": "\\frac{6}{2}", "difficulty": 0.7, "task": "Prealgebra"},
    ),
    "gsm8k": (
        "queries",
        [
            {
                "question": "Ann has 2 and 2 pears and eats one. How many are left?",
                "answer": "The first answer is 4. She eats <<4-1=3>>one.\n#### 1,003",
            }
        ],
        {"answer": "1,003", "verifier": "math", "licence": "MIT"},
    ),
    "taco": (
        "queries",
        [
            {
                "question": "Add two numbers.",
                "solutions": json.dumps([CODE, "print(3)"]),
                "starter_code": "",
                "input_output": json.dumps(PAIRS),
                "difficulty": "MEDIUM_HARD",
                "raw_tags": "[]",
                "source": "codeforces",
                "url": None,
            }
        ],
        {
            "difficulty": 0.5,
            "verifier": "program",
            "task": "codeforces",
            "metadata": EXPECTED_TESTS,
        },
    ),
    "apps": (
        "queries",
        [
            {
                "problem_id": 12,
                "question": "Write a function that adds.",
                "solutions": json.dumps(["def add(a, b):\n    return a + b"]),
                "input_output": json.dumps(
                    {"fn_name": "add", "inputs": [[1, 2]], "outputs": [[3]]}
                ),
                "difficulty": "introductory",
                "url": "https://example.org/12",
                "starter_code": "def add(a, b):",
            }
        ],
        {
            "id": "apps/12",
            "difficulty": 0.2,
            "verifier": "program",
            "licence": "MIT",
            "metadata": {
                "tests": [{"input": "1\n2", "output": "3"}],
                "function": "add",
            },
        },
    ),
    "code_contests": (
        "queries",
        [
            {
                "name": "1_A. Sum",
                "description": "Add two numbers.",
                "public_tests": SPACED,
                "private_tests": SPACED,
                "generated_tests": NO_TESTS,
                "source": 2,
                "difficulty": 8,
                "solutions": {"language": [2, 3], "solution": ["int main() {}", CODE]},
                "incorrect_solutions": {"language": [3], "solution": ["print(4)"]},
                "cf_rating": 800,
            }
        ],
        {
            "id": "code_contests/1_A. Sum",
            "difficulty": 0.25,
            "verifier": "program",
            "licence": "CC-BY-4.0",
            "metadata": {"tests": [STDIN, STDIN]},
        },
    ),
    "ring_lite_distill_sft": (
        "released",
        [{"messages": turns("2 + 2 - 1?", f"<think>{STEPS}</think>It is 3.")}],
        {"licence": "Apache-2.0", "domain": "reasoning"},
    ),
}
WITH_REASONING = ("reasoning", "released")


def load(mix: str, root: object, *names: str) -> CurateConfig:
    flag = f"{CONFIG}:{mix}:{root}:{','.join(names)}"
    config = from_config_dict(CurateConfig, load_config_file(flag).to_dict())
    # What a reply is worth is the verifiers' own matter, and not this test's.
    return dataclasses.replace(config, verification=VerificationConfig(check="keep"))


def publish(config: RawSourceConfig, records: list[dict]) -> None:
    """Writes records where the config looks for them, as it expects them."""
    assert config.path is not None
    path = pathlib.Path(config.path.replace("*", "00000-of-00001"))
    path.parent.mkdir(parents=True, exist_ok=True)
    if config.kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))


def examined(name: str, records: list[dict], tmp_path: pathlib.Path) -> Examined:
    """Takes published records through every step that looks at one row alone."""
    config = load(SETS[name][0], tmp_path / "raw", name)
    source = dataclasses.replace(config.sources[name], share=1.0)
    publish(source, records)
    opened = open_source(source, name=name, seed=0, max_row_bytes=config.max_row_bytes)
    (job,) = chunk_jobs(opened, chunk_rows=len(records), folder=tmp_path / "chunks")
    with open_steps(config, []) as steps:
        return examine(job, steps)


def only_row(made: Examined) -> dict:
    (row,) = made.rows
    return json.loads(row_to_json(row))


def test_every_set_of_every_mix_is_tried_here():
    known = {
        name: mix
        for mix in ("reasoning", "generalisation", "queries", "released")
        for name in load(mix, "raw").sources
    }
    assert set(known) == set(SETS)


@pytest.mark.parametrize("name", SETS)
def test_a_published_record_ends_in_the_right_row(name, tmp_path):
    mix, records, expected = SETS[name]
    made = examined(name, records, tmp_path)
    row = only_row(made)
    ends = [rejection.reason for rejection in made.rejections]
    assert ends == ["not_selected"] * (len(records) - 1)
    metadata = expected.get("metadata", {})
    assert {k: row[k] for k in expected if k != "metadata"} == {
        k: v for k, v in expected.items() if k != "metadata"
    }
    assert {k: row["metadata"].get(k) for k in metadata} == metadata
    source = load(mix, "raw").sources[name]
    assert (row["licence"], row["domain"]) == (source.licence, source.domain)
    assert row["source"] == name
    assert row["package"].endswith(f"=={source.version or 'local'}")
    reply = row["messages"][-1]
    # Calls alone have no length to grade by.
    assert 0.0 < row.get("difficulty", 0.0) <= 1.0 or reply["tool_calls"]
    if mix in WITH_REASONING:
        assert reply["think"] == STEPS
        assert "<think>" not in reply["content"]
        assert "begin_of" not in json.dumps(row)
    else:
        assert "think" not in reply


def test_records_of_two_sets_in_files_of_one_name_are_no_duplicates(tmp_path):
    config = load("queries", tmp_path / "raw", "gsm8k", "numina_cot")
    for name, source in config.sources.items():
        publish(source, SETS[name][1])
    assert curate(config, tmp_path / "out")["num_rows"] == 2


def test_a_program_task_asks_for_its_starter_code_and_replies_with_python(tmp_path):
    row = only_row(examined("apps", SETS["apps"][1], tmp_path))
    asked, reply = row["messages"]
    assert asked["content"].endswith("```python\ndef add(a, b):\n```")
    assert reply["content"] == "```python\ndef add(a, b):\n    return a + b\n```"
    row = only_row(examined("code_contests", SETS["code_contests"][1], tmp_path))
    assert row["messages"][-1]["content"] == FENCED


def test_a_transcript_becomes_turns_with_calls_and_results(tmp_path):
    row = only_row(examined("glaive", SETS["glaive"][1], tmp_path))
    roles = [turn["role"] for turn in row["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]
    assert row["messages"][0]["content"].startswith("You have these functions")
    assert row["messages"][2]["tool_calls"] == [CALL]
    assert row["messages"][3]["content"] == '{"sum": 3}'
    assert row["messages"][4]["content"] == "The sum is 3."


def test_a_query_with_tools_is_accepted_by_its_own_verifier(tmp_path):
    name = "xlam"
    config = load("generalisation", tmp_path / "raw", name)
    publish(config.sources[name], SETS[name][1])
    verified = dataclasses.replace(config, verification=VerificationConfig())
    assert curate(verified, tmp_path / "out")["num_rows"] == 1


def judged(mix: str, kind: str, tmp_path: pathlib.Path, **changes: dict) -> list[str]:
    """Curates the sets of a mix with a verifier; returns the sets whose row is left."""
    config = load(mix, tmp_path / "raw")
    sources = {
        name: dataclasses.replace(source, share=1.0)
        for name, source in config.sources.items()
        if source.verifier == kind
    }
    for name, source in sources.items():
        publish(source, [{**SETS[name][1][0], **changes.get(name, {})}])
    verified = dataclasses.replace(
        config,
        sources=sources,
        verification=VerificationConfig(num_workers=1, timeout_seconds=60.0),
        # All sets ask the same here.
        duplicates=DuplicatesConfig(exact="keep", near="keep"),
    )
    curate(verified, tmp_path / "out")
    return [row["source"] for row in shard_rows(tmp_path / "out")]


def test_right_answers_are_accepted_and_a_wrong_one_is_not(tmp_path):
    left = judged("queries", "math", tmp_path / "queries")
    assert left == ["big_math", "dapo_math", "gsm8k", "math", "numina_cot"]
    wrong = {"deepseek_solution": "It is \\boxed{4}."}
    left = judged("reasoning", "math", tmp_path / "r", openthoughts_math=wrong)
    assert left == ["openr1_math"]


def test_right_programs_are_accepted_and_a_wrong_one_is_not(tmp_path):
    try:
        program.proven_jail()
    except ConfigError as error:
        pytest.skip(str(error))
    left = judged("queries", "program", tmp_path / "queries")
    assert left == ["apps", "code_contests", "taco"]
    wrong = {"generation": "```python\nprint(4)\n```"}
    left = judged("reasoning", "program", tmp_path / "r", codeforces_cots=wrong)
    assert left == ["openthoughts_code"]


@pytest.mark.parametrize(
    ("name", "change", "part"),
    [
        ("math", {"level": "Level 9"}, "Level 9"),
        ("taco", {"solutions": "[]"}, "no solution in Python 3"),
        ("taco", {"solutions": "print(1)"}, "solutions is not JSON"),
        (
            "taco",
            {"input_output": '{"inputs": ["1"], "outputs": []}'},
            "output for each",
        ),
        ("taco", {"question": " "}, "must be a coding task"),
        ("code_contests", {"solutions": None}, "no solution"),
        ("openr1_math", {"messages": None}, "messages"),
        ("big_math", {"answer": None}, "completion"),
        ("glaive", {"chat": "Hello"}, "USER:"),
        ("glaive", {"chat": "USER: a\n\nASSISTANT: <functioncall> {x}"}, "not JSON"),
        ("glaive", {"chat": "USER: a\n\nASSISTANT: b\n\nUSER: c"}, "ends with a turn"),
        ("xlam", {"answers": "[]"}, "must name functions"),
        ("xlam", {"tools": "{}"}, "list of objects"),
    ],
)
def test_a_record_that_lacks_something_is_quarantined_with_the_reason(
    name, change, part, tmp_path
):
    good = SETS[name][1][0]
    made = examined(name, [{**good, **change}, good], tmp_path)
    (turned_away,) = made.rejections
    assert len(made.rows) == 1
    assert turned_away.step == "normalise"
    assert part in turned_away.detail


def test_only_named_columns_are_read_of_a_parquet_file(tmp_path):
    name = "code_contests"
    config = load("queries", tmp_path / "raw", name).sources[name]
    huge = {"language": [3], "solution": ["x" * 100_000]}
    publish(config, [{**SETS[name][1][0], "incorrect_solutions": huge}])
    opened = open_source(config, name=name, seed=0, max_row_bytes=20_000)
    (record,) = opened.read(0)
    assert "incorrect_solutions" not in getattr(record, "fields", {})
    assert "solutions" in getattr(record, "fields", {})


def test_a_share_draws_the_same_records_in_every_run_and_from_any_record_on(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "{n}"}}\n' for n in range(2000)))
    source = RawSourceConfig(path=str(path), licence="CC0-1.0", share=0.25)
    opened = open_source(source, name="rows", seed=0, max_row_bytes=100)
    drawn = [getattr(record, "where", "") for record in opened.read(0)]
    # Four standard deviations of a binomial draw.
    assert abs(len(drawn) - 500) < 4 * (2000 * 0.25 * 0.75) ** 0.5
    assert [getattr(r, "where", "") for r in opened.read(100)] == drawn[100:]
    again = open_source(source, name="rows", seed=1, max_row_bytes=100)
    assert [getattr(r, "where", "") for r in again.read(0)] == drawn


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ConfigError, match="share="):
        RawSourceConfig(share=share)


def test_stage_two_replays_the_papers_share_of_each_kind():
    sources = load("generalisation", "raw").sources
    # Samples of stage 1 by kind (2.59M of them), and what stage 2 replays.
    maths, code, science = 0.842 * 2590, 0.0833 * 2590, 0.0746 * 2590
    assert sources["openr1_math"].share == pytest.approx(400 / maths, abs=1e-3)
    assert sources["codeforces_cots"].share == pytest.approx(195 / code, abs=1e-3)
    assert sources["scp_116k"].share == pytest.approx(50 / science, abs=1e-3)
    assert sources["synthetic_1"].share == pytest.approx(645 / 2590, abs=1e-3)


@pytest.mark.parametrize(
    ("mix", "parts"),
    [
        ("reasoning", ["openr1_math", "open-r1/OpenR1-Math-220k/data/train-*.parquet"]),
        ("generalisation:R", ["infinity_instruct", "R/BAAI/Infinity-Instruct/Gen"]),
        ("generalisation:R:glaive", ["refs/convert/parquet", "parquet files of"]),
        ("queries:R:apps", ["R/codeparrot/apps/train.jsonl", "jsonl files of"]),
        ("released", ["https://huggingface.co/datasets/inclusionAI/Ring-lite-dis"]),
        ("reasons", ["no mix", "generalisation"]),
        ("reasoning:R:openr1", ["no ['openr1']", "openr1_math"]),
    ],
)
def test_missing_files_and_wrong_names_are_one_line(mix, parts, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["curate", f"--config={CONFIG}:{mix}", f"--workdir={out}"]
    assert main(words) == status.MISTAKE
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert all(part in line for part in parts), line
    assert not out.exists()


@pytest.mark.parametrize("mix", ["reasoning", "generalisation", "queries", "released"])
def test_a_mix_resolves_to_the_reviewed_settings(mix, check_golden):
    config = from_config_dict(
        CurateConfig, load_config_file(f"{CONFIG}:{mix}").to_dict()
    )
    # What differs from the defaults; those are in the demo's file.
    defaults = dataclasses.asdict(RawSourceConfig())
    sources = {
        name: {
            field: value
            for field, value in dataclasses.asdict(source).items()
            if value != defaults[field]
        }
        for name, source in config.sources.items()
    }
    text = json.dumps({"sources": sources}, indent=2)
    check_golden(f"configs/data/ring_lite_distill.{mix}.txt", text + "\n")
