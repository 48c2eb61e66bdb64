# SPDX-License-Identifier: Apache-2.0
"""Synthesis against a server on this machine that adds, and misbehaves on order."""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence

import hypothesis
import hypothesis.strategies as st
import pytest

from ring_jax.cli import status
from ring_jax.cli.main import main
from ring_jax.config import (
    ConfigError,
    CurateConfig,
    RawSourceConfig,
    SynthesisConfig,
    TeacherConfig,
    TeacherSamplingConfig,
    VerificationConfig,
)
from ring_jax.curate import curate
from ring_jax.curate.chat_server import ChatServer
from ring_jax.curate.journal import Journal, answer_key
from ring_jax.curate.proposals import read_problem
from ring_jax.curate.seeds import choose_seeds
from ring_jax.curate.synthesis import synthesise
from ring_jax.data.schema import Message, Row, row_from_json
from tests.curate.test_pipeline import shard_rows
from tests.loopback_server import Loopback, chat_message, serving

SAMPLING = TeacherSamplingConfig(max_tokens=100)
SMALL = {"max_seeds": 3, "solutions_per_problem": 5, "num_rounds": 2}
"""A hundred answers or so: each is written to the disk before the next is asked for."""
SEED = "Ann bought {a} pears and {b} apples on market day. How many fruits has she?"


def answer(prompt: str, seed: int) -> str:
    """What the model on the server says: a function of prompt and seed alone.

    Of a seed problem it makes a new one with other numbers. It solves sums, one time in
    five wrong; sums above 150 it only guesses.
    """
    luck = int(hashlib.sha256(f"{prompt}/{seed}".encode()).hexdigest(), 16)
    numbers = [int(word) for word in re.findall(r"\d+", prompt)]
    total = sum(numbers)
    if "new problem" in prompt:
        kind = luck % 10
        if kind == 0:
            return "I would rather not."
        if kind == 1:
            return f"<problem>{prompt.split('problem:')[1].split('Write')[0]}</problem>"
        if kind == 2:
            return "<problem>Add 1.</problem>"
        a, b = luck % 97, luck // 97 % 97
        place = ("library", "harbour", "school", "castle")[luck // 9409 % 4]
        return (
            f"<think>Like {total}.</think><problem>In the {place} stand {a} chairs and "
            f"{b} tables made of wood. Count all that stand in there.</problem>"
        )
    wrong = luck % 5 == 0 or total > 150
    said = luck % 1000 if wrong else total
    return f"<think>I add the numbers ({seed}).</think>\nIt is \\boxed{{{said}}}."


@pytest.fixture
def server() -> Iterator[Loopback]:
    with serving(response) as state:
        yield state


def response(body: dict) -> tuple[int, dict]:
    (message,) = body["messages"]
    text = answer(message["content"], body["seed"])
    return 200, {"model": body["model"], **chat_message(text)}


def teacher(server: Loopback, **more) -> TeacherConfig:
    settings = {"url": server.url, "model": "adder", "first_wait_seconds": 0.0}
    return TeacherConfig(**{**settings, **more})


@pytest.fixture
def make_config(tmp_path) -> Callable[..., SynthesisConfig]:
    """Makes the config of a small synthesis of six seeds, one of them twice."""
    path = tmp_path / "seeds.jsonl"
    pairs = [(3, 4), (10, 20), (31, 14), (41, 2), (60, 70), (90, 95), (3, 4)]
    records = [
        {
            "prompt": SEED.format(a=a, b=b),
            "completion": f"{a + b}",
            "answer": f"{a + b}",
        }
        for a, b in pairs
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))

    def make(**more) -> SynthesisConfig:
        settings = {
            "teacher": TeacherConfig(model="adder"),
            "seeds": {"pears": RawSourceConfig(path=str(path), licence="CC0-1.0")},
            "problems_per_seed": 3,
            "batch_problems": 4,
            "solution_sampling": SAMPLING,
            "licence": "CC-BY-4.0",
            "verifier": "match",
        }
        return SynthesisConfig(**{**settings, **more})

    return make


def open_adder(config: TeacherConfig, journal: Journal):
    """The same model without a server."""
    del config, journal

    def generate(prompts: Sequence[str], sampling: TeacherSamplingConfig) -> list[str]:
        seen: collections.Counter[str] = collections.Counter()
        texts = []
        for prompt in prompts:
            texts.append(answer(prompt, sampling.seed + seen[prompt]))
            seen[prompt] += 1
        return texts

    return generate


def read(folder: pathlib.Path, name: str) -> list[dict]:
    lines = (folder / name).read_text("utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def results(folder: pathlib.Path) -> dict[str, bytes]:
    """All that a synthesis makes but the journal, whose order is the network's."""
    names = ("problems.jsonl", "rejected.jsonl", "synthesis.json", "plan.json")
    return {name: (folder / name).read_bytes() for name in names}


# Problems


def test_accepted_problems_are_right_and_say_what_made_them(make_config, tmp_path):
    config, out = make_config(), tmp_path / "out"
    summary = synthesise(config, out, open_teacher=open_adder)
    rows = [
        row_from_json(json.dumps(row), where="x", defaults={})
        for row in read(out, "problems.jsonl")
    ]
    assert len(rows) == summary["num_problems"] > 5
    assert {row.metadata["round"] for row in rows} == {1, 2}
    assert len({row.id for row in rows}) == len(rows)
    for row in rows:
        numbers = map(int, re.findall(r"\d+", row.messages[0].content))
        assert row.answer == str(sum(numbers))
        assert row.answer in row.reply.content
        assert row.reply.think.startswith("I add")
        assert "Reason step by step" not in row.messages[0].content
        agreeing = sum(f"{{{row.answer}}}" in s for s in row.metadata["samples"])
        assert len(row.metadata["samples"]) == 10
        assert agreeing > 5
        assert row.difficulty == pytest.approx(1 - agreeing / 10)
        assert row.metadata["model"] == "adder"
        assert row.metadata["sampling"] == dataclasses.asdict(SAMPLING)
        assert (row.licence, row.source) == ("CC-BY-4.0", "synthesis")


def test_every_rejected_problem_has_its_reason(make_config, tmp_path):
    out = tmp_path / "out"
    summary = synthesise(make_config(), out, open_teacher=open_adder)
    rejected = read(out, "rejected.jsonl")
    reasons = collections.Counter(
        f"{item['source']}/{item['step']}/{item['reason']}" for item in rejected
    )
    assert dict(reasons) == summary["rejected"]
    assert set(reasons) == {
        "pears/seeds/duplicate",
        "synthesis/propose/no_problem",
        "synthesis/propose/too_short",
        "synthesis/propose/duplicate",
        "synthesis/consistency/no_majority",
    }
    assert all(item["detail"] and item["excerpt"] for item in rejected)
    # Three candidates of each of the six seeds, and of each problem of round 1.
    num_first = summary["accepted"]["round 1"]
    num_away = sum(count for name, count in reasons.items() if "synthesis" in name)
    assert num_away + summary["num_problems"] == 3 * (6 + num_first)


def test_a_problem_that_copies_its_seed_is_rejected(make_config, tmp_path):
    def open_copier(config, journal):
        return lambda prompts, sampling: [
            f"<problem>{SEED.format(a=3, b=4)} Please.</problem>" for _ in prompts
        ]

    out = tmp_path / "out"
    config = make_config(max_seeds=1, num_rounds=1, max_similarity=0.7)
    summary = synthesise(config, out, open_teacher=open_copier)
    assert summary["rejected"]["synthesis/propose/copies_seed"] == 3
    assert read(out, "rejected.jsonl")[-1]["other"].startswith("pears/seeds.jsonl:")


def test_seeds_are_answered_where_the_config_says_so(make_config, tmp_path):
    config = make_config(answer_seeds="yes", num_rounds=0)
    summary = synthesise(config, tmp_path / "out", open_teacher=open_adder)
    rows = read(tmp_path / "out", "problems.jsonl")
    assert [row["answer"] for row in rows] == ["7", "30", "45", "43", "130"]
    assert {row["licence"] for row in rows} == {"CC0-1.0"}, "a seed keeps its own"
    assert {row["source"] for row in rows} == {"pears"}
    # 185 is above what the model can add.
    assert summary["rejected"]["pears/consistency/no_majority"] == 1


def test_a_majority_against_a_seeds_own_answer_is_rejected(make_config, tmp_path):
    def open_wrong(config, journal):
        return lambda prompts, sampling: ["\\boxed{1}" for _ in prompts]

    config = make_config(answer_seeds="yes", num_rounds=0)
    summary = synthesise(config, tmp_path / "out", open_teacher=open_wrong)
    assert summary["num_problems"] == 0
    assert summary["rejected"]["pears/consistency/majority_against_answer"] == 6


def test_solutions_agree_by_their_verifier(make_config, tmp_path):
    def open_speller(config, journal):
        spellings = ("7", "7.0", "\\frac{14}{2}", "8", "7")
        return lambda prompts, sampling: [
            f"\\boxed{{{spellings[n % 5]}}}" for n in range(len(prompts))
        ]

    settings = {"answer_seeds": "yes", "num_rounds": 0, "max_seeds": 1}
    config = make_config(verifier="math", **settings)
    assert synthesise(config, tmp_path / "a", open_teacher=open_speller)["num_problems"]
    (row,) = read(tmp_path / "a", "problems.jsonl")
    assert (row["answer"], row["difficulty"]) == ("7", 0.2)
    config = make_config(verifier="match", **settings)
    summary = synthesise(config, tmp_path / "b", open_teacher=open_speller)
    assert summary["rejected"]["pears/consistency/no_majority"] == 1


def test_empty_solutions_have_no_majority(make_config, tmp_path):
    def open_silent(config, journal):
        return lambda prompts, sampling: ["<think>Hm.</think>" for _ in prompts]

    config = make_config(answer_seeds="yes", num_rounds=0)
    summary = synthesise(config, tmp_path / "out", open_teacher=open_silent)
    assert summary["rejected"]["pears/solve/no_solution"] == 6


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        ("<problem> a b </problem>", "a b"),
        ("<think><problem>no</problem></think>So: <problem>a</problem>", "a"),
        ("<problem>a</problem><problem>b</problem>", ""),
        ("<problem>a", ""),
        ("", ""),
    ],
)
def test_a_problem_stands_once_between_its_tags(reply, problem):
    assert read_problem(reply) == problem


@hypothesis.given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1)), max_size=40),
    st.integers(1, 50),
)
def test_seeds_come_in_turns_from_every_task_and_difficulty(kinds, num):
    seeds = [
        Row(
            id=f"{number}",
            messages=(Message("user", "?"), Message("assistant", "!")),
            task=task,
            difficulty=difficulty,
            source="s",
            domain="d",
            licence="l",
            package="p",
        )
        for number, (task, difficulty) in enumerate(kinds)
    ]
    strata = collections.Counter(map(stratum, seeds))
    chosen = choose_seeds(seeds, num=num)
    taken = collections.Counter(map(stratum, chosen))
    assert len({row.id for row in chosen}) == len(chosen) == min(num, len(seeds))
    for one in strata:
        for other in strata:
            # None is ahead of one that still has some.
            assert taken[one] <= taken[other] + 1 or taken[other] == strata[other]


def stratum(row: Row) -> tuple[str, int]:
    return row.task, min(4, int(row.difficulty * 5))


def test_samples_of_a_synthesis_pass_the_curation_and_grade_it(make_config, tmp_path):
    synthesise(make_config(), tmp_path / "made", open_teacher=open_adder)
    made = {row["id"]: row for row in read(tmp_path / "made", "problems.jsonl")}
    source = RawSourceConfig(
        path=str(tmp_path / "made/problems.jsonl"), licence="CC-BY-4.0"
    )
    config = CurateConfig(
        sources={"made": source}, verification=VerificationConfig(num_workers=1)
    )
    manifest = curate(config, tmp_path / "out")
    by_name = {step["name"]: step for step in manifest["steps"]}
    for name in ("normalise", "consistency", "verification"):
        assert not by_name[name]["removed"], name
    rows = shard_rows(tmp_path / "out")
    assert rows
    for row in rows:
        assert row["metadata"]["difficulty_by"] == "pass_rate"
        assert row.get("difficulty", 0.0) == made[row["id"]].get("difficulty", 0.0)
        assert row["answer"] == made[row["id"]]["answer"]


# The server


def test_a_server_that_fails_often_changes_nothing_but_the_time(
    make_config, server, tmp_path
):
    synthesise(make_config(**SMALL), tmp_path / "plain", open_teacher=open_adder)

    def misbehave(number: int, body: dict):
        kind = number % 7
        if kind == 0:
            return 500, b"Internal error"
        if kind == 1:
            return 429, b"slow down"
        if kind == 2:
            return 200, b'{"choices": [{"mess'
        if kind == 3:
            return 200, b'{"choices": []}'
        if kind == 4:
            time.sleep(0.02)
        return None

    server.misbehave = misbehave
    config = make_config(teacher=teacher(server, max_tries=50), **SMALL)
    synthesise(config, tmp_path / "out")
    assert results(tmp_path / "out") == results(tmp_path / "plain")
    entries = read(tmp_path / "out", "journal.jsonl")
    # Of seven requests two or three are answered; none that was answered came again.
    assert len(server.asked) > 2 * len(entries)
    asked = collections.Counter(
        (e["prompt"], e["temperature"], e["max_tokens"], e["seed"]) for e in entries
    )
    assert set(asked.values()) == {1}
    assert entries[0]["usage"]["completion_tokens"] == 9
    assert entries[0]["finish_reason"] == "stop"
    assert entries[0]["model"] == "adder"


@pytest.mark.parametrize("num_answers", [0, 1, 30])
def test_an_interrupted_synthesis_asks_only_for_what_it_lacks(
    make_config, server, tmp_path, num_answers
):
    synthesise(make_config(**SMALL), tmp_path / "plain", open_teacher=open_adder)
    config = make_config(teacher=teacher(server), **SMALL)

    def open_interrupted(settings, journal):
        chat = ChatServer(settings, journal)

        def generate(prompts, sampling):
            if len(journal) >= num_answers:
                raise KeyboardInterrupt
            return chat(prompts, sampling)

        return generate

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        synthesise(config, out, open_teacher=open_interrupted)
    assert not (out / "problems.jsonl").exists()
    before = len(server.asked)
    assert len(read(out, "journal.jsonl")) == before
    synthesise(config, out)
    assert results(out) == results(tmp_path / "plain")
    assert len(server.asked) == len(read(out, "journal.jsonl"))
    asked = len(server.asked)
    synthesise(config, out)
    assert len(server.asked) == asked, "a finished folder asks nothing"


def test_answers_under_way_at_an_interruption_are_kept(make_config, server, tmp_path):
    def interrupt(number: int, body: dict) -> None:
        if number == 10:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)  # this answer comes when the work has ended

    server.misbehave = interrupt
    config = make_config(teacher=teacher(server, num_parallel=3), **SMALL)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        synthesise(config, out)
    assert len(read(out, "journal.jsonl")) == len(server.asked) > 10
    synthesise(config, out)
    assert len(server.asked) == len(read(out, "journal.jsonl"))
    synthesise(make_config(**SMALL), tmp_path / "plain", open_teacher=open_adder)
    assert results(out) == results(tmp_path / "plain")


def test_a_server_that_stays_broken_ends_the_work_and_keeps_its_answers(
    make_config, server, tmp_path
):
    server.misbehave = lambda number, body: (503, b"down") if number >= 20 else None
    config = make_config(teacher=teacher(server, max_tries=2, num_parallel=2), **SMALL)
    out = tmp_path / "out"
    with pytest.raises(OSError, match=r"2 tries failed.*503") as caught:
        synthesise(config, out)
    assert status.status_of(caught.value) == status.ENVIRONMENT
    assert len(read(out, "journal.jsonl")) == 20
    server.misbehave = lambda number, body: None
    synthesise(config, out)
    synthesise(make_config(**SMALL), tmp_path / "plain", open_teacher=open_adder)
    assert results(out) == results(tmp_path / "plain")


@pytest.mark.parametrize("code", [400, 401, 404])
def test_a_refusal_is_not_tried_again(server, tmp_path, code):
    server.misbehave = lambda number, body: (code, b'{"error": "no such\nmodel"}')
    with Journal(tmp_path / "j") as journal:
        chat = ChatServer(teacher(server, num_parallel=1), journal)
        with pytest.raises(
            ConfigError, match=rf"'adder' with status {code} \(.*no such"
        ):
            chat(["a", "b"], SAMPLING)
    assert len(server.asked) == 1


def test_a_server_that_is_slow_or_not_there_is_tried_again_and_told(server, tmp_path):
    server.misbehave = lambda number, body: time.sleep(0.5)
    slow = teacher(server, timeout_seconds=0.1, max_tries=2)
    with (
        Journal(tmp_path / "j") as journal,
        pytest.raises(OSError, match=r"2 tries failed.*[Tt]imed? ?out"),
    ):
        ChatServer(slow, journal)(["a"], SAMPLING)
    absent = teacher(server, url="http://127.0.0.1:9/v1", max_tries=2)
    with (
        Journal(tmp_path / "j") as journal,
        pytest.raises(OSError, match=r"2 tries failed.*refused"),
    ):
        ChatServer(absent, journal)(["a"], SAMPLING)


def test_equal_prompts_get_different_seeds_and_answers_in_order(server, tmp_path):
    server.misbehave = lambda number, body: time.sleep(0.05) if number == 0 else None
    with Journal(tmp_path / "j") as journal:
        chat = ChatServer(teacher(server), journal)
        texts = chat(["Add 1 and 2.", "Add 5.", "Add 1 and 2."], SAMPLING)
    assert texts == [
        answer("Add 1 and 2.", 0),
        answer("Add 5.", 0),
        answer("Add 1 and 2.", 1),
    ]
    assert sorted(body["seed"] for body in server.asked) == [0, 0, 1]
    assert {body["max_tokens"] for body in server.asked} == {100}


def test_the_key_is_sent_and_never_written(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "top-secret")
    with Journal(tmp_path / "j") as journal:
        ChatServer(teacher(server, key_variable="TEACHER_KEY"), journal)(
            ["a"], SAMPLING
        )
    assert server.headers[0]["Authorization"] == "Bearer top-secret"
    assert "top-secret" not in (tmp_path / "j").read_text()
    monkeypatch.delenv("TEACHER_KEY")
    with (
        Journal(tmp_path / "j") as journal,
        pytest.raises(ConfigError, match="no such"),
    ):
        ChatServer(teacher(server, key_variable="TEACHER_KEY"), journal)


def test_requests_keep_the_pace(server, tmp_path):
    with Journal(tmp_path / "j") as journal:
        paced = teacher(server, requests_per_minute=1200)
        ChatServer(paced, journal)([f"Add {n}." for n in range(6)], SAMPLING)
    # 50 ms apart; what arrives can be late, and so nearer to the next one.
    assert server.times[-1] - server.times[0] > 0.2


def test_reasoning_of_its_own_field_is_kept(server, tmp_path):
    message = {"content": "It is 3.", "reasoning_content": "1 + 2"}
    text = json.dumps({"choices": [{"message": message}]}).encode()
    server.misbehave = lambda number, body: (200, text)
    with Journal(tmp_path / "j") as journal:
        (said,) = ChatServer(teacher(server), journal)(["a"], SAMPLING)
    assert said == "<think>1 + 2</think>\nIt is 3."


@pytest.mark.parametrize(
    "content", [["parts"], 3, "half \ud800 a pair", "nul \x00", None]
)
def test_odd_content_is_text_or_no_answer(server, tmp_path, content):
    text = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
    server.misbehave = lambda number, body: (200, text)
    with Journal(tmp_path / "j") as journal:
        chat = ChatServer(teacher(server, max_tries=1), journal)
        if isinstance(content, str | None):
            (said,) = chat(["a"], SAMPLING)
            said.encode()
        else:
            with pytest.raises(OSError, match="a response that is none"):
                chat(["a"], SAMPLING)


# The journal


def key(number: int) -> str:
    return answer_key(model="m", sampling=SAMPLING, prompt="p", number=number)


def test_a_journal_that_was_cut_gives_all_whole_answers(tmp_path):
    path = tmp_path / "j"
    with Journal(path) as journal:
        for number in range(3):
            journal.add(key(number), f"answer {number} \u00e9\n", prompt="p")
    path.write_bytes(path.read_bytes()[:-5])
    with Journal(path) as journal:
        assert [key(n) in journal for n in range(3)] == [True, True, False]
        journal.add(key(2), "again")
        assert [journal.read(key(n)) for n in range(3)] == [
            "answer 0 \u00e9\n",
            "answer 1 \u00e9\n",
            "again",
        ]
    with Journal(path) as journal:
        assert journal.read(key(2)) == "again"


def test_a_journal_with_a_foreign_line_is_refused_in_one_line(tmp_path):
    (tmp_path / "j").write_text('{"key": "a", "answer": "b"}\nno json\n')
    with pytest.raises(ConfigError, match="line 2 is no answer"):
        Journal(tmp_path / "j").__enter__()


def test_an_answer_depends_on_model_sampling_prompt_and_number():
    other = dataclasses.replace(SAMPLING, temperature=0.0)
    keys = {
        key(0),
        key(1),
        answer_key(model="n", sampling=SAMPLING, prompt="p", number=0),
        answer_key(model="m", sampling=other, prompt="p", number=0),
        answer_key(model="m", sampling=SAMPLING, prompt="q", number=0),
    }
    assert len(keys) == 5


# The command

CONFIG = """
from ring_jax.config import (
    RawSourceConfig, SynthesisConfig, TeacherConfig, to_config_dict
)

def get_config():
    return to_config_dict(SynthesisConfig(
        teacher=TeacherConfig(url="URL", model="adder", first_wait_seconds=0.0),
        seeds={"pears": RawSourceConfig(path="SEEDS", licence="CC0-1.0")},
        num_rounds=1, solutions_per_problem=5, verifier="match",
    ))
"""


@pytest.fixture
def config_file(make_config, server, tmp_path) -> pathlib.Path:
    seeds = make_config().seeds["pears"].path
    path = tmp_path / "synthesis.py"
    path.write_text(CONFIG.replace("URL", server.url).replace("SEEDS", seeds))
    return path


def test_the_command_makes_problems_and_goes_on_with_a_folder(
    config_file, server, tmp_path, capsys
):
    out = tmp_path / "out"
    words = ["synthesise", f"--config={config_file}", f"--workdir={out}", "--json"]
    assert main(words) == status.DONE
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["num_problems"] == len(read(out, "problems.jsonl")) > 0
    asked = len(server.asked)
    assert main(words) == status.DONE
    assert len(server.asked) == asked
    faster = ["--config.teacher.num_parallel=2", "--config.teacher.url=http://x/v1"]
    assert main([*words, *faster]) == status.DONE, "how it asks may change"
    capsys.readouterr()
    assert main([*words, "--config.solutions_per_problem=6"]) == status.MISTAKE
    assert "solutions_per_problem=5, now it is 6" in capsys.readouterr().err


def test_a_teacher_that_solves_nothing_ends_with_3(config_file, server, tmp_path):
    text = json.dumps({"choices": [{"message": {"content": "No."}}]}).encode()
    server.misbehave = lambda number, body: (200, text)
    words = ["synthesise", f"--config={config_file}", f"--workdir={tmp_path / 'out'}"]
    assert main(words) == status.STOPPED


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--config.teacher.url="], ["teacher.url is empty"]),
        (["--config.teacher.url=ftp://x"], ["'ftp://x'", "http"]),
        (["--config.teacher.model="], ["teacher.model is empty"]),
        (["--config.teacher.max_tries=0"], ["max_tries=0"]),
        (["--config.teacher.key_variable=NO_SUCH_KEY"], ["'NO_SUCH_KEY'"]),
        (["--config.teacher.requests_per_minute=-1"], ["requests_per_minute=-1"]),
        (["--config.seeds.pears.path=/no/such"], ["/no/such"]),
        (["--config.solutions_per_problem=2"], ["solutions_per_problem=2"]),
        (["--config.num_rounds=0"], ["num_rounds=0", "answer_seeds"]),
        (["--config.solution_sampling.top_p=0"], ["top_p=0.0"]),
        (["--config.problem_prompt=Write."], ["problem_prompt", "{problem}"]),
        (["--config.answer_seeds=maybe"], ["'maybe'", "'yes'"]),
    ],
)
def test_a_mistake_is_one_line(config_file, tmp_path, capsys, words, parts):
    out = tmp_path / "out"
    command = ["synthesise", f"--config={config_file}", f"--workdir={out}"]
    assert main([*command, *words]) == status.MISTAKE
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert all(part in line for part in parts), line


def test_a_config_of_another_kind_is_refused(tmp_path, capsys):
    words = ["synthesise", "--config=configs/data/demo.py", f"--workdir={tmp_path}/o"]
    assert main(words) == status.MISTAKE
    assert "holds no synthesis" in capsys.readouterr().err
    assert main(["synthesise"]) == status.MISTAKE
    config = "--config=configs/data/synthesis.py"
    assert main(["synthesise", config, f"--workdir={tmp_path}/o"]) == status.MISTAKE
    assert "openai/gsm8k" in capsys.readouterr().err
