# SPDX-License-Identifier: Apache-2.0
"""Virtual rows: functions of task, settings, seed and number, and nothing is listed."""

import contextlib
import dataclasses
import pickle
import random
import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
import reasoning_gym
from hypothesis import given, settings
from hypothesis import strategies as st

from ring_jax.batch import Batch
from ring_jax.config import (
    ConfigError,
    CurateConfig,
    DataConfig,
    ModelConfig,
    RawSourceConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TokenizerConfig,
    TrainConfig,
    VerificationConfig,
    from_config_dict,
    to_config_dict,
)
from ring_jax.curate import curate
from ring_jax.data import pipeline, prepared, sources
from ring_jax.data.schema import row_to_json
from ring_jax.data.sources.reasoning_tasks import TASKS
from ring_jax.data.sources.shards import read_shards
from ring_jax.data.sources.split import is_heldout, prompt_of
from ring_jax.data.sources.virtual import OWN_FORM, UNFIT, VirtualRows
from ring_jax.verify import grade


def virtual(**changes) -> SourceConfig:
    options: dict[str, Any] = {"task": "chain_sum", "level": "medium", "num_rows": 40}
    options |= {"num_heldout": 8} | changes
    return SourceConfig(kind="virtual", **options)


def read(seed: int = 0, **changes) -> sources.SourceRows:
    return sources.read(virtual(**changes), name="sums", seed=seed)


def texts(rows) -> list[str]:
    return [row_to_json(row) for row in rows]


@settings(max_examples=30, deadline=None, database=None)
@given(
    first=st.integers(0, 10**9),
    count=st.integers(1, 20),
    shift=st.integers(0, 19),
    task=st.sampled_from(["chain_sum", "gsm_symbolic", "number_sorting"]),
)
def test_a_row_is_the_same_in_whatever_range_and_order_it_is_read(
    first, count, shift, task
):
    options = {"task": task, "level": "hard", "num_heldout": 0}
    rows = read(first_row=first, num_rows=count, **options).train
    wider = read(first_row=max(0, first - shift), num_rows=count + shift, **options)
    there = {row.id: row for row in wider.train}
    backwards = [rows[place] for place in reversed(range(count))]
    assert texts(reversed(backwards)) == texts(rows)
    shared = min(count, count + shift - (first - max(0, first - shift)))
    assert texts(there[row.id] for row in rows[:shared]) == texts(rows[:shared])


def test_the_problems_are_those_of_the_package():
    rows = read(level="", parameters={"min_terms": 5, "max_terms": 5}).train
    chosen = random.Random(0).sample(range(40), 10)
    for row in (rows[place] for place in chosen):
        entry = row.metadata["entry"]
        expression = entry["metadata"]["expression"]
        assert row.messages[0].content.rstrip("= ").endswith(expression)
        assert len(expression.split()) == 9
        # Somebody else's arithmetic.
        assert int(row.answer) == eval(expression, {"__builtins__": {}})
        checker = reasoning_gym.create_dataset("chain_sum", size=1, seed=1)
        assert checker.score_answer(row.answer, {"question": "", **entry}) == 1.0


def test_seeds_and_ranges_that_differ_give_other_rows():
    base = [prompt_of(row) for row in read(level="hard").train]
    options = [{"generator_seed": 1}, {"generator_seed": 41}, {"first_row": 40}]
    for other in options:
        its = [prompt_of(row) for row in read(level="hard", **other).train]
        assert len(set(its) & set(base)) <= 1, other
    same = read(seed=7, generator_seed=0, level="hard").train
    assert [prompt_of(row) for row in same] == base


@pytest.mark.parametrize("task", sorted(TASKS))
def test_rows_pass_their_verifier_and_no_heldout_problem_is_trained(task):
    for level in ("", *TASKS[task].levels):
        rows = read(task=task, level=level, num_rows=20)
        for row in [*rows.train, *rows.heldout]:
            is_apart = is_heldout(f"{task}:{prompt_of(row).removeprefix('user:')}")
            assert is_apart == ("/heldout/" in row.id)
            if not level and task in OWN_FORM:
                assert not row.verifier
                continue
            assert grade(
                verifier=row.verifier,
                reply=row.reply.content,
                answer=row.answer,
                metadata=row.metadata,
            ).is_correct
            assert row.reply.think or not level
        assert 0 < len({prompt_of(row) for row in rows.heldout}) == len(rows.heldout)


def test_a_task_that_we_have_no_wording_for_is_read_but_not_graded():
    rows = read(task="knights_knaves", level="", parameters={"n_people": 3})
    assert len({prompt_of(row) for row in rows.train}) > 30
    assert {row.verifier for row in rows.train} == {""}
    assert all(row.answer for row in rows.train)


def test_another_process_generates_the_same_rows():
    tasks = ("gsm_symbolic", "word_sorting", "letter_counting")
    script = (
        "from ring_jax.config import SourceConfig\n"
        "from ring_jax.data import sources\n"
        f"for task in {tasks}:\n"
        "    c = SourceConfig(kind='virtual', task=task, level='hard', num_rows=5)\n"
        "    print(sources.read(c, name='sums', seed=3).digest)\n"
    )
    there = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONHASHSEED": "12345", "PATH": "/usr/bin", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    here = [read(seed=3, task=t, level="hard", num_rows=5).digest for t in tasks]
    assert there == here
    assert len(set(here)) == 3


def test_ten_million_rows_take_no_memory_and_a_part_of_them_is_indexed(tmp_path):
    read()  # what the generator's package keeps of itself is not the rows'
    tracemalloc.start()
    rows = read(num_rows=10**7, first_row=10**8).train
    assert len(rows) == 10**7
    last = rows[-1]
    part = rows[5_000_000:5_000_500]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert last.id == f"sums/train/{11 * 10**7 - 1}"
    assert len(part) == 500
    assert part[0].id == "sums/train/105000000"
    assert peak < 2**20
    config = run_config(virtual(num_rows=300, first_row=10**8 + 5_000_000))
    data = prepared.read(config)
    assert data.indexes["sums"].num_rows == 300
    assert texts(data.sources["sums"].train)[:9] == texts(part[:9])


def test_rows_are_sent_to_workers_without_their_generator():
    rows = read(num_rows=10**7).train
    before = texts([rows[9]])  # its generator is made now
    sent = pickle.dumps(rows)
    assert len(sent) < 2000
    assert texts([pickle.loads(sent)[9]]) == before


def run_config(source: SourceConfig, **changes) -> RunConfig:
    other = SourceConfig(kind="elements", num_rows=60, num_heldout=0)
    settings: dict[str, Any] = {
        "model": ModelConfig(vocab_size=512, eos_id=1, pad_id=1),
        "data": DataConfig(
            tokenizer=TokenizerConfig(vocab_size=300),
            sources={"sums": source, "facts": other},
        ),
        "train": TrainConfig(global_batch_size=2, seq_len=128),
        "stages": {"base": StageConfig(mixture={"sums": 0.7, "facts": 0.3})},
    }
    return RunConfig(**(settings | changes))


def batches_of(config, data, count: int, state=None) -> tuple[list[Batch], dict]:
    opened = pipeline.TrainBatches(config, data, stage="base")
    if state is not None:
        opened.set_state(state)
    with contextlib.closing(opened):
        return [next(opened) for _ in range(count)], opened.get_state()


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    for one, another in zip(left, right, strict=True):
        for field in dataclasses.fields(Batch):
            np.testing.assert_array_equal(
                getattr(one, field.name), getattr(another, field.name)
            )


def test_virtual_rows_train_as_the_same_rows_in_a_file(tmp_path):
    config = run_config(virtual(num_rows=200))
    data = pipeline.prepare(config, tmp_path / "virtual")
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(texts(data.sources["sums"].train)) + "\n")
    listed = run_config(SourceConfig(kind="jsonl", path=str(path), num_heldout=0))
    other = pipeline.prepare(listed, tmp_path / "listed")
    assert data.indexes["sums"].digest == other.indexes["sums"].digest
    assert_same(batches_of(config, data, 20)[0], batches_of(listed, other, 20)[0])


def test_a_run_goes_on_to_the_same_bytes_in_a_new_process_and_with_workers(tmp_path):
    config = run_config(virtual(num_rows=150))
    data = pipeline.prepare(config, tmp_path)
    whole, _ = batches_of(config, data, 12)
    _, state = batches_of(config, data, 5)
    again = prepared.read(config, tmp_path)
    assert again.digest == data.digest
    assert_same(batches_of(config, again, 7, state)[0], whole[5:])
    workers = dataclasses.replace(
        config, data=dataclasses.replace(config.data, num_workers=1)
    )
    assert_same(batches_of(workers, again, 3, state)[0], whole[5:8])


@pytest.mark.parametrize(
    "changes",
    [
        {"first_row": 1},
        {"generator_seed": 5},
        {"parameters": {"max_digits": 3}},
        {"num_rows": 151},
    ],
)
def test_a_run_refuses_to_go_on_with_another_range_seed_or_parameter(changes, tmp_path):
    config = run_config(virtual(num_rows=150))
    data = pipeline.prepare(config, tmp_path / "a")
    _, state = batches_of(config, data, 1)
    tokenizer = TokenizerConfig(path=str(tmp_path / "a" / "tokenizer"))
    changed = run_config(virtual(**({"num_rows": 150} | changes)))
    changed = dataclasses.replace(
        changed, data=dataclasses.replace(changed.data, tokenizer=tokenizer)
    )
    other = pipeline.prepare(changed, tmp_path / "b")
    with pytest.raises(ConfigError, match=r"sources\.sums\.tokens: .* -> "):
        batches_of(changed, other, 1, state)


def test_a_second_start_generates_no_row_but_those_of_the_digest(tmp_path, monkeypatch):
    config = run_config(virtual(num_rows=400))
    pipeline.prepare(config, tmp_path)
    tokenizer = TokenizerConfig(path=str(tmp_path / "tokenizer"))
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, tokenizer=tokenizer)
    )
    made = []
    true_row = VirtualRows._row

    def counted(rows, number):
        made.append(number)
        return true_row(rows, number)

    monkeypatch.setattr(VirtualRows, "_row", counted)
    data = prepared.read(config, tmp_path)
    assert data.indexes["sums"].num_rows == 400
    assert len(made) < 100


def test_a_curation_writes_virtual_rows_and_goes_on_behind_them(tmp_path):
    raw = RawSourceConfig(
        kind="virtual", task="products", level="hard", num_rows=60, first_row=1000
    )
    config = CurateConfig(
        sources={"sums": raw},
        chunk_rows=16,
        verification=VerificationConfig(num_workers=1),
    )
    off = dataclasses.replace(config.duplicates, near="keep")
    manifest = curate(dataclasses.replace(config, duplicates=off), tmp_path / "out")
    removed = manifest["num_quarantined"]
    assert manifest["num_rows"] + removed == 60
    assert removed < 4  # the same problem, twice
    shards = SourceConfig(path=str(tmp_path / "out"), num_heldout=0)
    written = read_shards(shards, name="sums", seed=0).train
    by_id = {row.id: row for row in read(**_of(raw)).train}
    for row in written:
        assert row.messages == by_id[row.id].messages
        assert row.package.startswith("reasoning-gym==")


def _of(raw: RawSourceConfig) -> dict:
    return {
        key: getattr(raw, key) for key in ("task", "level", "num_rows", "first_row")
    }


def test_parameters_pass_through_a_file_of_settings_and_back():
    config = run_config(
        virtual(parameters={"min_terms": 3, "operators": ("+",)}, level="")
    )
    tree: Any = to_config_dict(config)
    tree.data.sources.sums.parameters.min_terms = 2
    tree.data.sources.sums.parameters.operators = ["+", "-"]
    back = from_config_dict(RunConfig, tree)
    expected = {"min_terms": 2, "operators": ("+", "-")}
    assert back.data.sources["sums"].parameters == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "chain_sums"}, "did you mean 'chain_sum'"),
        ({"task": "composite"}, "is no task"),
        ({"task": sorted(UNFIT)[0], "level": ""}, "cannot be virtual"),
        ({"task": "gsm_symbolic", "level": "easy"}, r"gsm_symbolic has \['hard'\]"),
        ({"parameters": {"min_term": 2}}, r"chain_sum has no \['min_term'\]"),
        ({"parameters": {"seed": 2}}, r"chain_sum has no \['seed'\]"),
        ({"parameters": {"min_terms": 9}}, "makes no problem of .*correct them"),
        ({"task": "pool_matrix", "level": ""}, "makes no problem of .*Seed must be"),
    ],
)
def test_a_mistake_is_told_in_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        read(**changes)
    assert "data.sources.sums" in str(error.value)
    assert "\n" not in str(error.value)


def test_values_that_are_not_plain_are_refused():
    with pytest.raises(ConfigError, match=r"parameters\.a=None must be"):
        virtual(parameters={"a": None})
    with pytest.raises(ConfigError, match="first_row=-1"):
        virtual(first_row=-1)
