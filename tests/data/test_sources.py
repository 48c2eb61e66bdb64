# SPDX-License-Identifier: Apache-2.0
"""Every source: held-out items are not trained, gold answers pass, wrong ones fail."""

import collections
import importlib.metadata
import json
from typing import Any, cast

import pytest

from ring_jax.config import ConfigError, SourceConfig
from ring_jax.data import sources
from ring_jax.data.sources import packages
from ring_jax.data.sources.reasoning_tasks import TASKS
from ring_jax.verify import grade, reasoning

GENERAL = {
    "countries": SourceConfig(kind="countries", num_rows=400),
    "capitals": SourceConfig(kind="countries", num_rows=400, task="capital"),
    "elements": SourceConfig(kind="elements", num_rows=400),
    "instructions": SourceConfig(kind="instructions", num_rows=3000),
    "repeat": SourceConfig(kind="instructions", num_rows=500, task="repeat"),
    "calls_easy": SourceConfig(kind="tool_calls", num_rows=500),
    "calls_medium": SourceConfig(kind="tool_calls", num_rows=500, level="medium"),
    "calls_hard": SourceConfig(kind="tool_calls", num_rows=500, level="hard"),
    "dialogue": SourceConfig(kind="dialogue", num_rows=400),
    "exchanges": SourceConfig(kind="dialogue", num_rows=400, task="unseen"),
    "text": SourceConfig(kind="text", num_rows=300),
    "code": SourceConfig(kind="code", num_rows=300),
}
REASONING = {
    f"{task}_{level}": SourceConfig(
        kind="reasoning_gym",
        task=task,
        level=cast(Any, level),
        num_rows=300,
        num_heldout=48,
    )
    for task in TASKS
    for level in TASKS[task].levels
}
ALL = {**GENERAL, **REASONING}
CACHE: dict[str, sources.SourceRows] = {}


@pytest.fixture
def rows(name) -> sources.SourceRows:
    # Read once for all tests of this file; reading again is one of the tests.
    if name not in CACHE:
        CACHE[name] = sources.read(ALL[name], name=name, seed=0)
    return CACHE[name]


def is_correct(row, reply: str) -> bool:
    return grade(
        verifier=row.verifier, reply=reply, answer=row.answer, metadata=row.metadata
    ).is_correct


def gold_reply(row) -> str:
    calls = [f"<tool_call>{c.to_json()}</tool_call>" for c in row.reply.tool_calls]
    return row.reply.content + "".join(calls)


def prompt(row) -> str:
    return row.text or "|".join(message.content for message in row.messages[:-1])


@pytest.mark.parametrize("name", ALL)
def test_no_heldout_row_is_trained(name, rows):
    trained = {" ".join(prompt(row).split()) for row in rows.train}
    heldout = [" ".join(prompt(row).split()) for row in rows.heldout]
    assert rows.train
    assert rows.heldout
    assert not trained & set(heldout)
    assert len(set(heldout)) == len(heldout) or name == "instructions"


@pytest.mark.parametrize("name", ALL)
def test_a_gold_answer_is_right_and_another_rows_is_wrong(name, rows):
    graded = [row for row in rows.train[:100] + rows.heldout if row.verifier]
    assert all(is_correct(row, gold_reply(row)) for row in graded)
    # A neighbour may happen to have the same answer, or another right one.
    others = [
        (row, gold_reply(other))
        for row, other in zip(graded, graded[1:], strict=False)
        if row.answer.lower() != other.answer.lower()
        and row.metadata.get("item") != other.metadata.get("item", "-")
    ]
    wrong = sum(not is_correct(row, reply) for row, reply in others)
    assert wrong == len(others)
    assert not any(is_correct(row, "") for row in graded)


@pytest.mark.parametrize("name", ALL)
def test_reading_again_gives_the_same_rows(name, rows):
    assert sources.read(ALL[name], name=name, seed=0) == rows


@pytest.mark.parametrize("name", ALL)
def test_each_row_says_where_it_comes_from(name, rows):
    for row in [*rows.train, *rows.heldout]:
        assert row.source == name
        assert row.licence
        distribution, separator, version = row.package.partition("==")
        assert distribution
        assert separator
        assert version
        json.dumps(dict(row.metadata))
    assert len(rows.train) <= ALL[name].num_rows
    assert len(rows.heldout) <= ALL[name].num_heldout


@pytest.mark.parametrize("name", REASONING)
def test_no_answer_of_a_task_is_worth_guessing(name, rows):
    for part in (rows.train, rows.heldout):
        counts = collections.Counter(row.answer for row in part)
        assert max(counts.values()) <= 0.2 * len(part)


@pytest.mark.parametrize("name", REASONING)
def test_reasoning_rows_think_and_answer(name, rows):
    assert all(
        row.reply.think and row.reply.content == row.answer for row in rows.train
    )
    # Our wordings are short; only the stories of gsm_symbolic are long.
    longest = max(len(prompt(row)) for row in rows.train)
    assert longest < (140 if "gsm" not in name else 2000)


def test_chain_sums_show_running_sums():
    rows = sources.read(ALL["chain_sum_easy"], name="x", seed=0).train
    for row in rows:
        for step in row.reply.think.split(";"):
            left, _, right = step.partition("=")
            assert eval(left) == int(right)  # our own digits, plus and minus only
        assert row.reply.think.endswith(f"={row.answer}")


def test_heldout_problems_of_one_source_are_not_trained_by_another():
    for task in ("chain_sum", "number_sorting", "products"):
        read = [
            sources.read(
                SourceConfig(kind="reasoning_gym", task=task, level="easy"),
                name=f"source{seed}",
                seed=seed,
            )
            for seed in range(3)
        ]
        trained = {prompt(row) for one in read for row in one.train}
        heldout = {prompt(row) for one in read for row in one.heldout}
        assert not trained & heldout


@pytest.mark.parametrize("name", ["countries", "capitals", "elements"])
def test_heldout_knowledge_asks_trained_facts(name, rows):
    trained = {row.metadata["fact"] for row in rows.train}
    assert {row.metadata["fact"] for row in rows.heldout} <= trained


def test_heldout_dialogue_is_reworded_or_unseen():
    reworded = sources.read(GENERAL["dialogue"], name="x", seed=0)
    unseen = sources.read(GENERAL["exchanges"], name="x", seed=0)
    trained = {row.metadata["exchange"] for row in reworded.train}
    assert {row.metadata["exchange"] for row in reworded.heldout} <= trained
    trained = {row.metadata["exchange"] for row in unseen.train}
    assert not trained & {row.metadata["exchange"] for row in unseen.heldout}
    assert {row.verifier for row in unseen.heldout} == {""}


def test_heldout_instructions_combine_words_and_forms_that_are_trained():
    rows = sources.read(GENERAL["repeat"], name="x", seed=0)
    forms = {json.dumps(row.metadata["constraints"][1]) for row in rows.train}
    words = {row.metadata["constraints"][0]["words"][0] for row in rows.train}
    for row in rows.heldout:
        assert json.dumps(row.metadata["constraints"][1]) in forms
        assert row.metadata["constraints"][0]["words"][0] in words


def test_every_task_here_has_a_verifier_that_was_read():
    assert set(TASKS) == reasoning.SAFE_TASKS


def test_jsonl_rows_are_read_and_split_by_prompt(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"question {i // 2}"},
                    {"role": "assistant", "content": f"answer {i}"},
                ]
            }
        )
        for i in range(40)
    ]
    path.write_text("\n".join(lines) + "\n")
    config = SourceConfig(kind="jsonl", path=str(path), num_heldout=5)
    rows = sources.read(config, name="mine", seed=0)
    assert len(rows.heldout) == 5
    assert len(rows.train) == 30
    assert not {prompt(r) for r in rows.train} & {prompt(r) for r in rows.heldout}
    path.write_text("\n".join(reversed(lines)))
    again = sources.read(config, name="mine", seed=1)
    assert {prompt(r) for r in again.heldout} == {prompt(r) for r in rows.heldout}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SourceConfig(kind="chess"), "kind='chess' must be one of"),
        (SourceConfig(kind="reasoning_gym"), "task='' must be one of"),
        (SourceConfig(kind="reasoning_gym", task="gcd"), "level='': gcd has"),
        (SourceConfig(kind="countries", task="flag"), "task='flag' must be empty"),
        (SourceConfig(kind="elements", task="mass"), "task='mass' must be empty"),
        (SourceConfig(kind="instructions", task="sing"), "task='sing' must be empty"),
        (SourceConfig(kind="dialogue", task="lines"), "task='lines' must be empty"),
        (SourceConfig(kind="countries", num_rows=3), "no room for a fact"),
        (SourceConfig(kind="jsonl"), "path=None is not a file"),
        (SourceConfig(kind="jsonl", path="/nowhere"), "is not a file"),
        (SourceConfig(kind="text", num_rows=0), "gives no training row"),
    ],
)
def test_a_bad_source_is_one_line_that_names_it(config, message):
    with pytest.raises(ConfigError, match=message) as error:
        sources.read(config, name="mine", seed=0)
    assert "data.sources.mine" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bad_row_of_a_file_is_named_by_its_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "good"}\n{"text": 5}\n')
    with pytest.raises(ConfigError, match=r"rows\.jsonl:2: text=5"):
        sources.read(SourceConfig(kind="jsonl", path=str(path)), name="x", seed=0)


def test_a_missing_package_names_the_extra():
    with pytest.raises(ConfigError, match=r"ring-jax\[data\]"):
        packages.installed("no-such-package-here", licence="MIT")
    with pytest.raises(ConfigError, match=r"ring-jax\[data\]"):
        packages.data_folder("no_such_module_here")


@pytest.mark.parametrize(
    ("kind", "options", "remedy"),
    [
        ("reasoning_gym", {"task": "gcd", "level": "easy"}, "ring-jax[data]"),
        ("countries", {}, "ring-jax[data]"),
        ("elements", {}, "ring-jax[data]"),
        ("dialogue", {}, "ring-jax[data]"),
        ("tool_calls", {}, "--no-deps bfcl-eval"),
    ],
)
def test_a_source_without_its_package_says_what_to_install(
    kind, options, remedy, monkeypatch
):
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(ConfigError) as error:
        sources.read(SourceConfig(kind=kind, **options), name="x", seed=0)
    assert remedy in str(error.value)
