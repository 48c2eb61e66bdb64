# SPDX-License-Identifier: Apache-2.0
"""Suites: gold scores 100 %, guessing is chance, and every stop can be gone on from."""

import dataclasses
import json
import pathlib
import random
from collections.abc import Callable, Iterator, Sequence

import pytest

from ring_jax.config import (
    ConfigError,
    SuiteConfig,
    SuitesConfig,
    VerificationConfig,
)
from ring_jax.data.evaluation_files import FILE_SETS
from ring_jax.data.evaluation_rows import read_rows
from ring_jax.data.schema import Row
from ring_jax.evaluate.complete import Ask, Said, Unsaid
from ring_jax.evaluate.items import read_items, read_suites
from ring_jax.evaluate.run import evaluate, gold_text, read_reply
from ring_jax.evaluate.suites import SUITES, choose_suites
from ring_jax.verify import grade
from ring_jax.verify.ifbench import INSTRUCTIONS

MODEL = {"name": "planted", "step": 7}


def gold(ask: Ask) -> str:
    return f"<think>I know it.</think>{gold_text(ask.row)}"


@dataclasses.dataclass
class Planted:
    """Says what a function of the question says, and counts."""

    says: Callable[[Ask], str] = gold
    fails: Callable[[Ask, int], BaseException | str | None] = lambda ask, number: None
    """Instead of the number-th answer: raised, or the reason of one that is missing."""
    asked: list[Ask] = dataclasses.field(default_factory=list)

    def max_new_tokens(self, rows: Sequence[Row], wanted: int) -> int:
        return wanted

    def complete(self, asked: Sequence[Ask]) -> Iterator[Said | Unsaid]:
        # In another order than they were asked.
        for number, ask in enumerate(reversed(asked)):
            failure = self.fails(ask, number)
            if isinstance(failure, BaseException):
                raise failure
            if failure is not None:
                yield Unsaid(ask, failure)
                continue
            self.asked.append(ask)
            yield Said(
                ask=ask,
                text=self.says(ask),
                stop_reason="stop",
                num_tokens=10,
                num_think_tokens=4,
            )


def run(
    suites: dict[str, SuiteConfig],
    planted: Planted,
    workdir: pathlib.Path,
    **limits,
) -> dict:
    return evaluate(
        read_suites(suites),
        planted,
        workdir=workdir,
        label="base",
        model=MODEL,
        config=SuitesConfig(verification=VerificationConfig(num_workers=1, **limits)),
    )["suites"]


def records(workdir: pathlib.Path, name: str) -> list[dict]:
    path = workdir / "evaluation" / "base" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def rows_suite(path: pathlib.Path, num_rows: int = 12, **settings) -> SuiteConfig:
    """A file of questions with one word for an answer, or of choices among four."""
    with path.open("w") as file:
        for number in range(num_rows):
            turns = [
                {"role": "user", "content": f"Which number is {number}?"},
                {"role": "assistant", "content": f"{number}"},
            ]
            row = {
                "id": f"item-{number}",
                "messages": turns,
                "answer": str(number),
                "verifier": "number",
                "level": ("easy", "hard")[number % 2],
            }
            file.write(json.dumps(row) + "\n")
    return SuiteConfig(path=str(path), **settings)


@pytest.fixture
def numbers(tmp_path) -> dict[str, SuiteConfig]:
    return {"numbers": rows_suite(tmp_path / "numbers.jsonl")}


@pytest.mark.parametrize(
    "name",
    ["aime24", "humaneval", "bfcl", "gym_chain_sum"],
)
def test_gold_replies_score_100_percent(name, tmp_path):
    changed = SuitesConfig(num_items=6, num_samples=1, temperature=0.0)
    suites = choose_suites([name], changed)
    summary = run(suites, Planted(), tmp_path)[name]
    assert summary["status"] == "done", summary["reason"]
    assert (summary["score"], summary["low"], summary["high"]) == (1.0, 1.0, 1.0)
    assert summary["num_items"] == (18 if name == "gym_chain_sum" else 6)
    assert summary["malformed_share"] == summary["truncated_share"] == 0.0
    assert (summary["mean_tokens"], summary["mean_think_tokens"]) == (10.0, 4.0)


@pytest.mark.parametrize(
    ("name", "size"), [("aime24", 30), ("aime25", 30), ("hmmt", 196), ("ifbench", 294)]
)
def test_a_set_has_all_its_items_and_their_answers(name, size):
    rows = read_items(name, dataclasses.replace(SUITES[name], num_samples=1))
    assert len(rows) == size
    assert all(row.answer for row in rows) == (name != "ifbench")


def test_ifbench_counts_replies_that_a_loose_reading_accepts(tmp_path):
    # A reply of nine words in a frame of two lines that a loose reading leaves out.
    reply = "Sure!\n**Rain falls. Rain falls. Does rain fall, falling so?**\nBye"
    suites = choose_suites(["ifbench"], SuitesConfig(num_items=40))
    summary = run(suites, Planted(says=lambda ask: reply), tmp_path)["ifbench"]
    assert (summary["status"], summary["num_items"]) == ("done", 40), summary["reason"]
    rows = {row.id: row for row in read_rows("ifbench")}
    for record in records(tmp_path, "ifbench"):
        metadata = rows[record["id"]].metadata
        followed = INSTRUCTIONS.followed_loosely(reply, metadata)
        assert record["is_correct"] == all(followed)
    assert 0 < summary["score"] < 1


@pytest.mark.parametrize("name", ["evaluation_sets", "elsewhere"])
def test_a_published_set_is_a_suite_once_its_files_are_there(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    is_default = name == SuitesConfig().published_sets_dir
    sets = tmp_path / name
    config = SuitesConfig(published_sets_dir=name if is_default else str(sets))
    suite = choose_suites(["gsm8k"], config)["gsm8k"]
    with pytest.raises(ConfigError, match=f"{name}/gsm8k .* and put it there"):
        read_items("gsm8k", suite)
    assert "gsm8k" not in choose_suites(["reasoning"], config)
    record = {"question": "3 + 4?", "answer": "It is 7.\n#### 7"}
    (sets / "gsm8k").mkdir(parents=True)
    (sets / "gsm8k" / "test.jsonl").write_text(json.dumps(record))
    assert choose_suites(["reasoning"], config)["gsm8k"] == suite
    (row,) = read_items("gsm8k", suite)
    assert row.answer == "7"


def test_every_gold_call_of_bfcl_is_accepted_by_its_verifier():
    for name in ("bfcl", "bfcl_live"):
        rows = read_rows(name)
        wrong = [
            row.id
            for row in rows
            if not grade(
                verifier=row.verifier,
                reply=gold_text(row),
                answer=row.answer,
                metadata=row.metadata,
            ).is_correct
        ]
        assert not wrong
        assert len(rows) == {"bfcl": 1000, "bfcl_live": 1351}[name]


def test_guessing_among_four_choices_scores_near_chance(tmp_path):
    path = tmp_path / "choices.jsonl"
    with path.open("w") as file:
        for number in range(300):
            turns = [
                {"role": "user", "content": f"Question {number}: A, B, C or D?"},
                {"role": "assistant", "content": "A"},
            ]
            row = {
                "messages": turns,
                "answer": "ABCD"[number % 4],
                "verifier": "choice",
                "metadata": {"choices": ["one", "two", "three", "four"]},
            }
            file.write(json.dumps(row) + "\n")
    luck = random.Random(0)
    guesser = Planted(says=lambda ask: luck.choice("ABCD"))
    summary = run({"choices": SuiteConfig(path=str(path))}, guesser, tmp_path)
    summary = summary["choices"]
    assert summary["chance"] == 0.25
    # Three standard deviations of 300 draws.
    assert abs(summary["score"] - 0.25) < 3 * (0.25 * 0.75 / 300) ** 0.5
    assert summary["low"] < 0.25 < summary["high"]


def test_records_and_scores_keep_their_contract(numbers, tmp_path):
    wrong = Planted(says=lambda ask: "0" if ask.row.level == "easy" else gold(ask))
    summary = run(numbers, wrong, tmp_path)["numbers"]
    scores = json.loads((tmp_path / "evaluation/base/scores.json").read_text())
    assert scores["suites"]["numbers"] == summary
    assert set(scores) == {"label", "model", "date", "suites"}
    assert set(summary) >= {
        *("group", "capability", "metric", "score", "low", "high", "num_items"),
        *("num_samples", "by_difficulty", "chance", "truncated_share"),
        *("malformed_share", "mean_think_tokens", "mean_tokens", "status", "reason"),
    }
    assert summary["score"] == 7 / 12  # six hard ones, and item 0
    assert summary["by_difficulty"]["hard"]["score"] == 1.0
    assert summary["by_difficulty"]["easy"]["num_items"] == 6
    record = next(r for r in records(tmp_path, "numbers") if r["id"] == "item-5")
    assert set(record) >= {
        *("id", "sample", "prompt", "output", "think", "extracted", "answer"),
        *("is_correct", "detail", "num_tokens", "num_think_tokens", "stop_reason"),
        *("is_well_formed", "difficulty"),
    }
    assert record["prompt"] == "Which number is 5?"
    assert (record["think"], record["extracted"]) == ("I know it.", "5")


def test_a_second_start_asks_only_what_is_missing(numbers, tmp_path):
    def interrupt(ask, number):
        return KeyboardInterrupt() if number == 5 else None

    first = Planted(fails=interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(numbers, first, tmp_path)
    assert len(records(tmp_path, "numbers")) == len(first.asked) == 5
    scores = json.loads((tmp_path / "evaluation/base/scores.json").read_text())
    assert scores["suites"]["numbers"]["status"] == "partial"
    assert scores["suites"]["numbers"]["reason"] == "interrupted"
    second = Planted()
    summary = run(numbers, second, tmp_path)["numbers"]
    assert len(second.asked) == 7
    assert not {a.row.id for a in first.asked} & {a.row.id for a in second.asked}
    assert (summary["status"], summary["score"]) == ("done", 1.0)
    whole = run(numbers, Planted(), tmp_path / "other")["numbers"]
    assert whole == summary
    third = Planted()
    run(numbers, third, tmp_path)
    assert not third.asked


def test_a_line_that_a_kill_cut_is_asked_again(numbers, tmp_path):
    run(numbers, Planted(), tmp_path)
    path = tmp_path / "evaluation" / "base" / "numbers.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    again = Planted()
    assert run(numbers, again, tmp_path)["numbers"]["status"] == "done"
    assert len(again.asked) == 1
    assert len(records(tmp_path, "numbers")) == 12


def test_a_changed_setting_is_refused_with_the_difference(numbers, tmp_path):
    run(numbers, Planted(), tmp_path)
    warmer = {"numbers": dataclasses.replace(numbers["numbers"], temperature=0.6)}
    with pytest.raises(ConfigError, match=r"temperature: 0.0 -> 0.6.*--label"):
        run(warmer, Planted(), tmp_path)
    rows_suite(tmp_path / "numbers.jsonl", num_rows=11)
    with pytest.raises(ConfigError, match="items: "):
        run(numbers, Planted(), tmp_path)


@pytest.mark.parametrize("error", [OSError("the server broke"), ConfigError("no key")])
def test_a_suite_whose_answers_fail_is_partial_and_the_rest_goes_on(
    error, numbers, tmp_path
):
    other = rows_suite(tmp_path / "other.jsonl", num_rows=3)

    def fail(ask, number):
        return error if ask.row.source == "numbers" and number == 4 else None

    suites = {**numbers, "other": other}
    found = run(suites, Planted(fails=fail), tmp_path)
    assert found["numbers"]["status"] == "partial"
    assert str(error) in found["numbers"]["reason"]
    assert (found["numbers"]["num_items"], found["numbers"]["score"]) == (4, 1.0)
    assert found["other"]["status"] == "done"
    again = Planted()
    assert run(suites, again, tmp_path)["numbers"]["status"] == "done"
    assert len(again.asked) == 8


def test_a_single_missing_answer_marks_the_suite(numbers, tmp_path):
    planted = Planted(fails=lambda ask, n: "context is full" if n == 2 else None)
    summary = run(numbers, planted, tmp_path)["numbers"]
    assert (summary["status"], summary["num_items"]) == ("partial", 11)
    assert summary["reason"] == "1 replies are missing (context is full)"


def test_a_grader_that_hangs_is_marked_and_asked_again(tmp_path):
    path = tmp_path / "maths.jsonl"
    turns = [
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "\\boxed{3}"},
    ]
    row = {"id": "x", "messages": turns, "answer": "3", "verifier": "math"}
    path.write_text(json.dumps(row) + "\n")
    suites = {"maths": SuiteConfig(path=str(path))}
    tower = Planted(says=lambda ask: "\\boxed{9^{9^{9^{9^{9}}}}!}")
    summary = run(suites, tower, tmp_path, timeout_seconds=2.0)["maths"]
    (record,) = records(tmp_path, "maths")
    assert record["outcome"] in ("timeout", "crashed", "error")
    assert not record["is_correct"]
    assert summary["status"] == "partial"
    assert "1 replies not graded" in summary["reason"]
    # The reply is there: it is graded again, and not asked again.
    again = Planted()
    run(suites, again, tmp_path, timeout_seconds=2.0)
    assert not again.asked


def test_a_verifier_that_cannot_work_refuses_its_suite_before_asking(numbers, tmp_path):
    path = tmp_path / "strange.jsonl"
    text = (tmp_path / "numbers.jsonl").read_text()
    path.write_text(text.replace('"number"', '"numbre"'))
    planted = Planted(fails=lambda ask, n: None)
    suites = {"strange": SuiteConfig(path=str(path)), **numbers}
    found = run(suites, planted, tmp_path)
    assert found["strange"]["status"] == "refused"
    assert "numbre" in found["strange"]["reason"]
    assert found["strange"]["score"] is None
    assert found["numbers"]["status"] == "done"
    assert {ask.row.source for ask in planted.asked} == {"numbers"}


def test_samples_of_an_item_have_seeds_of_their_own_and_each_metric_its_score(tmp_path):
    rows_suite(tmp_path / "n.jsonl", num_rows=4)

    def sometimes(ask: Ask) -> str:
        return gold(ask) if ask.sample == 0 else f"{90 + ask.sample}"

    found = {}
    for metric in ("avg", "pass", "maj"):
        suite = SuiteConfig(
            path=str(tmp_path / "n.jsonl"),
            num_samples=4,
            temperature=1.0,
            metric=metric,
        )
        planted = Planted(says=sometimes)
        found[metric] = run({metric: suite}, planted, tmp_path)[metric]
        assert len({ask.seed for ask in planted.asked}) == 16
    assert [found[metric]["score"] for metric in found] == [0.25, 1.0, 0.25]
    assert found["pass"]["metric"] == "pass@4"
    assert found["avg"]["pass_at"] == {"1": 0.25, "2": 0.5, "4": 1.0}


def test_wrong_answers_vote_together_where_the_verifier_finds_them_equal(tmp_path):
    rows_suite(tmp_path / "n.jsonl", num_rows=2)
    text = (tmp_path / "n.jsonl").read_text()
    (tmp_path / "n.jsonl").write_text(text.replace('"number"', '"math"'))
    wrong = ["", "", "1/2", "0.5", "\\frac{1}{2}"]

    def says(ask: Ask) -> str:
        # Two right ones against three wrong ones, which say the same in other words;
        # of the second item 3/4 and 3.4 do not.
        said = wrong if ask.row.id == "item-0" else ["", "", "3/4", "3.4", "7"]
        return f"\\boxed{{{said[ask.sample]}}}" if said[ask.sample] else gold(ask)

    suite = SuiteConfig(
        path=str(tmp_path / "n.jsonl"), num_samples=5, temperature=1.0, metric="maj"
    )
    summary = run({"n": suite}, Planted(says=says), tmp_path)["n"]
    assert summary["score"] == summary["maj"] == 0.5
    assert summary["pass_at"]["1"] == pytest.approx(0.4)


def test_an_unknown_suite_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="Did you mean `aime24`"):
        choose_suites(["aime2024"], SuitesConfig())


def test_groups_stand_for_their_suites():
    own = {"mine": SuiteConfig(group="general")}
    general = choose_suites(["general"], SuitesConfig(own=own))
    assert "mine" in general and "bfcl" in general and "aime24" not in general
    own["heldout_sums"] = SuiteConfig(kind="heldout")
    assert list(choose_suites(["heldout"], SuitesConfig(own=own))) == ["heldout_sums"]
    there = len(SUITES) - len(FILE_SETS)  # whose files nobody put there
    assert len(choose_suites(["all"], SuitesConfig(own=own))) == there + 1


@pytest.mark.parametrize(
    ("suite", "parts"),
    [
        (SuiteConfig(path="/no/such/file.jsonl"), ["/no/such/file", "put its items"]),
        (SuiteConfig(kind="aimee"), ["kind='aimee'", "aime24"]),
        (SuiteConfig(kind="reasoning_gym", task="sums"), ["task='sums'", "chain_sum"]),
        (SuiteConfig(kind="heldout", sources="sums"), ["'sums'", "no held-out rows"]),
    ],
)
def test_items_that_are_not_there_are_named_in_one_line(suite, parts):
    with pytest.raises(ConfigError) as error:
        read_items("mine", suite)
    assert all(part in str(error.value) for part in parts)


def test_a_missing_package_names_where_it_goes(monkeypatch):
    monkeypatch.setattr(
        "ring_jax.data.sources.packages.find_distribution", lambda name: None
    )
    with pytest.raises(ConfigError, match="nemo-gym is missing; run"):
        read_items("aime24", SUITES["aime24"])


def test_some_items_are_the_same_ones_each_time_and_asked_in_the_suites_words():
    suite = dataclasses.replace(SUITES["aime24"], num_items=5)
    rows = read_items("aime24", suite)
    assert rows == read_items("aime24", suite)
    every = [row.id for row in read_items("aime24", SUITES["aime24"])]
    assert [i for i in every if i in {row.id for row in rows}] == [r.id for r in rows]
    assert all("\\boxed{}" in row.messages[-2].content for row in rows)


def test_reasoning_that_the_prompt_opened_is_reasoning():
    reply = read_reply("So it is 4.</think>\n4", "stop")
    assert (reply.think, reply.answer) == ("So it is 4.", "4")
    assert reply.is_well_formed
    assert not read_reply("<think>So it", "length").answer
