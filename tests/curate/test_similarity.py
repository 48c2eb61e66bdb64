# SPDX-License-Identifier: Apache-2.0
"""Paraphrases go, by the definition; a server that fails costs nothing twice."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from ring_jax.cli import status
from ring_jax.cli.main import main
from ring_jax.config import (
    ConfigError,
    CurateConfig,
    EmbeddingsConfig,
    RawSourceConfig,
    SimilarityConfig,
    TeacherConfig,
    VerificationConfig,
)
from ring_jax.curate import curate, similarity
from ring_jax.curate.contamination import EvaluationSet
from ring_jax.curate.rows import Rejection
from ring_jax.curate.similarity import find_similar, open_items, questions_of
from ring_jax.data.schema import Message, Row, ToolCall
from tests.curate.test_pipeline import contents, quarantine, shard_rows
from tests.embeddings import bag, cosine, embeddings_reply
from tests.loopback_server import Loopback, serving

EXAM = [
    "A farmer counts sheep, goats and geese; legs are 84, heads are 30, geese are 12.",
    "How far does light travel inside glass during seven nanoseconds?",
    "Name the largest planet whose moons include Titan and Rhea.",
]
PARAPHRASE = "Geese are 12, heads are 30, legs are 84: a farmer counts goats and sheep!"
"""The same words in another order: no run of words is shared."""
THRESHOLD = 0.8
SIMILARITY = SimilarityConfig(check="drop", threshold=THRESHOLD)


@pytest.fixture
def server() -> Iterator[Loopback]:
    with serving(embeddings_reply) as state:
        yield state


def embeddings(server: Loopback, **more) -> EmbeddingsConfig:
    teacher = TeacherConfig(
        url=server.url, model="bag", first_wait_seconds=0.0, max_tries=2
    )
    return EmbeddingsConfig(server=teacher, **{"texts_per_request": 3, **more})


@pytest.fixture
def make_config(server, tmp_path) -> Callable[..., CurateConfig]:
    """A curation of thirty rows; every tenth is a paraphrase of the first exam item."""
    rng = np.random.default_rng(0)
    stock = [f"noun{number}" for number in range(300)]
    records = []
    for number in range(30):
        prompt = " ".join(rng.choice(stock, 12)) + "?"
        if number % 10 == 4:
            prompt = f"{PARAPHRASE} {number}"
        records.append({"prompt": prompt, "completion": f"It is {number}."})
    path = tmp_path / "raw.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    exam = tmp_path / "exam.jsonl"
    exam.write_text("".join(json.dumps({"problem": text}) + "\n" for text in EXAM))

    def make(**more) -> CurateConfig:
        known = RawSourceConfig(path=str(exam), licence="CC0-1.0")
        settings = {
            "sources": {"raw": RawSourceConfig(path=str(path), licence="CC0-1.0")},
            "evaluation_sets": {"exam": known},
            "chunk_rows": 8,
            "verification": VerificationConfig(num_workers=1),
            "embeddings": embeddings(server),
            "similarity": SIMILARITY,
        }
        return CurateConfig(**{**settings, **more})

    return make


def make_row(*asked: str, reply: Message | None = None) -> Row:
    roles = ("user", "assistant")
    turns = [Message(roles[n % 2], text) for n, text in enumerate(asked)]
    return Row(
        id=f"r{hash(asked)}",
        messages=(*turns, reply or Message("assistant", "Yes.")),
        source="s",
        domain="d",
        licence="MIT",
        package="p==1",
    )


def vectors_of(texts) -> np.ndarray:
    """Makes vectors without a server."""
    found = np.array([bag(text) for text in texts])
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def items_of(server, tmp_path, *sets: EvaluationSet, **more) -> similarity.Items:
    config = CurateConfig(
        sources={"raw": RawSourceConfig()},
        evaluation_sets={known.name: RawSourceConfig() for known in sets},
        similarity=dataclasses.replace(SIMILARITY, **more),
        embeddings=embeddings(server),
    )
    return open_items(config, sets, work=tmp_path)


def exam_of(
    texts, *, name: str = "exam", asks_for_calls: bool = False
) -> EvaluationSet:
    items = [(str(number), text) for number, text in enumerate(texts)]
    return EvaluationSet(
        name=name, files=(), items=items, asks_for_calls=asks_for_calls
    )


# One comparison


def test_rows_go_that_the_definition_says(server, tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    stock = [f"w{number}" for number in range(9)]
    exam = [" ".join(rng.choice(stock, 6)) for _ in range(7)]
    items = items_of(server, tmp_path, exam_of(exam), max_items_alike=100)
    rows = [
        make_row(*(" ".join(rng.choice(stock, 6)) for _ in range(2 * size - 1)))
        for size in rng.integers(1, 4, 60)
    ]
    monkeypatch.setattr(similarity, "_BATCH_TEXTS", 17)
    config = dataclasses.replace(SIMILARITY, threshold=0.8137)  # of no pair of counts
    found = find_similar(rows, items=items, embed=vectors_of, config=config)
    num_rejected = 0
    for row, result in zip(rows, found, strict=True):
        turns = [turn.content for turn in row.messages[:-1]]
        asked = ["\n".join(turns), *turns[::2]]
        best = max(cosine(text, item) for text in asked for item in exam)
        assert abs(best - config.threshold) > 1e-3, "too near to tell"
        assert isinstance(result, Rejection) == (best > config.threshold)
        if isinstance(result, Rejection):
            num_rejected += 1
            assert f"cosine {best:.2f}" in result.detail
            nearest = result.other.partition(": ")[2].partition(": ")[2]
            assert max(cosine(text, nearest) for text in asked) == pytest.approx(best)
    assert 5 < num_rejected < 55


def test_each_user_turn_is_a_question_and_no_other_turn_is():
    system = Message("system", "Be brief.")
    row = make_row("One?", EXAM[0], "Two?")
    row = dataclasses.replace(row, messages=(system, *row.messages))
    assert questions_of(row) == [f"One?\n{EXAM[0]}\nTwo?", "One?", "Two?"]
    assert questions_of(make_row("One?")) == ["One?"]
    assert questions_of(make_row("  ")) == []
    text = dataclasses.replace(row, messages=(), text="A page.")
    assert questions_of(text) == ["A page."]


def test_a_template_is_compared_by_words_only(server, tmp_path):
    story = "Count all the legs of {n} hens and every cow in the old red barn today"
    texts = [story.format(n=number) for number in range(12)]
    known = exam_of([*texts, EXAM[0]])
    items = items_of(server, tmp_path, known, max_items_alike=8)
    assert items.texts == [EXAM[0]] and items.num_left_out == {"exam": 12}
    rows = [make_row(story.format(n=99)), make_row(PARAPHRASE)]
    found = find_similar(rows, items=items, embed=vectors_of, config=SIMILARITY)
    assert found[0] is rows[0] and isinstance(found[1], Rejection)
    items = items_of(server, tmp_path, known, max_items_alike=11)
    assert len(items.texts) == 13
    found = find_similar(rows, items=items, embed=vectors_of, config=SIMILARITY)
    assert isinstance(found[0], Rejection)


def test_questions_for_calls_count_in_rows_that_call(server, tmp_path):
    known = exam_of(EXAM[:1], name="calls", asks_for_calls=True)
    call = Message("assistant", "", tool_calls=(ToolCall("count", {"n": 1}),))
    rows = [make_row(PARAPHRASE), make_row(PARAPHRASE, reply=call)]
    for sets, ends in (([known], [False, True]), ([known, exam_of(EXAM)], [True] * 2)):
        items = items_of(server, tmp_path, *sets)
        found = find_similar(rows, items=items, embed=vectors_of, config=SIMILARITY)
        assert [isinstance(result, Rejection) for result in found] == ends
    assert found[0].reason == "exam"  # pyright: ignore[reportAttributeAccessIssue]  # a Rejection


def test_a_set_without_a_question_to_compare_takes_no_row(server, tmp_path):
    items = items_of(server, tmp_path, exam_of(["  "]))
    assert items.num_left_out == {"exam": 1}
    rows = [make_row(PARAPHRASE)]
    assert find_similar(rows, items=items, embed=vectors_of, config=SIMILARITY) == rows


# A curation


def test_paraphrases_of_an_exam_are_removed_counted_and_shown(
    make_config, server, tmp_path
):
    out = tmp_path / "out"
    manifest = curate(make_config(), out)
    removed = [item for item in quarantine(out) if item["step"] == "similarity"]
    ids = [item["id"] for item in removed]
    assert ids == ["raw/raw.jsonl:5", "raw/raw.jsonl:15", "raw/raw.jsonl:25"]
    by_name = {step["name"]: step for step in manifest["steps"]}
    assert by_name["contamination"]["removed"] == {}
    step = by_name["similarity"]
    assert (step["rows_in"], step["rows_out"]) == (30, 27)
    reason = step["removed"]["exam"]
    assert reason["count"] == 3
    shown = reason["examples"][0]
    best = cosine(f"{PARAPHRASE} 4", EXAM[0])
    assert f"cosine {best:.2f}" in shown["detail"] and PARAPHRASE in shown["detail"]
    assert shown["other"] == f"exam: exam.jsonl:1: {EXAM[0]}"
    page = (out / "report.html").read_text("utf-8")
    assert "A farmer counts sheep" in page and "3 items, 0 of them by words" in page
    assert manifest["evaluation_sets"]["exam"]["num_by_words_only"] == 0
    assert len(shard_rows(out)) == 27
    texts = [text for body in server.asked for text in body["input"]]
    assert len(texts) == len(set(texts)) == 33, "a vector each, exam and rows"
    assert not (out / ".work").exists()
    told = json.dumps(manifest["settings"]["embeddings"])
    assert "bag" in told and server.url not in told


def test_it_is_off_by_default(make_config, server, tmp_path):
    manifest = curate(make_config(similarity=SimilarityConfig()), tmp_path / "out")
    assert "similarity" not in {step["name"] for step in manifest["steps"]}
    assert manifest["evaluation_sets"]["exam"]["num_by_words_only"] == 3
    assert not server.asked


def test_a_server_that_fails_ends_the_curation_and_the_same_command_goes_on(
    make_config, server, tmp_path
):
    curate(make_config(), tmp_path / "whole")
    num_requests = len(server.asked)
    out = tmp_path / "out"
    for allowed in (1, 4):  # in the exam's own vectors, and in the second chunk
        before = len(server.asked)
        server.misbehave = lambda number, body, last=before + allowed: (
            (503, b"gone") if number >= last else None
        )
        with pytest.raises(OSError, match="2 tries failed.*run the command again"):
            curate(make_config(), out)
        assert not (out / "manifest.json").exists()
    answered = 1 + 4
    server.misbehave = lambda number, body: None
    before = len(server.asked)
    curate(make_config(), out)
    assert contents(out) == contents(tmp_path / "whole")
    assert len(server.asked) - before <= num_requests - answered + 2


def test_vectors_of_a_folder_of_their_own_serve_other_settings(
    make_config, server, tmp_path
):
    kept = embeddings(server, folder=str(tmp_path / "vectors"))
    curate(make_config(embeddings=kept), tmp_path / "one")
    num_asked = len(server.asked)
    strict = dataclasses.replace(SIMILARITY, threshold=0.99)
    manifest = curate(
        make_config(embeddings=kept, similarity=strict, chunk_rows=11), tmp_path / "two"
    )
    assert manifest["num_rows"] == 30
    assert len(server.asked) == num_asked, "another threshold asks for nothing"
    elsewhere = embeddings(server, texts_per_request=1)
    again = make_config(embeddings=elsewhere, similarity=strict, chunk_rows=11)
    assert curate(again, tmp_path / "two")["num_rows"] == 30, "how it asks may change"
    other = dataclasses.replace(kept, asked_as="query: {text}")
    with pytest.raises(ConfigError, match="embeddings.asked_as"):
        curate(make_config(embeddings=other), tmp_path / "one")


def write_config(folder: pathlib.Path, url: str) -> str:
    path = folder / "curation.py"
    path.write_text(f"""
from ring_jax.config import *
def get_config():
    source = RawSourceConfig(path={str(folder / "raw.jsonl")!r}, licence="CC0-1.0")
    exam = RawSourceConfig(path={str(folder / "exam.jsonl")!r}, licence="CC0-1.0")
    server = TeacherConfig(url={url!r}, model="bag", max_tries=1)
    return to_config_dict(CurateConfig(
        sources={{"raw": source}}, evaluation_sets={{"exam": exam}},
        embeddings=EmbeddingsConfig(server=server),
        similarity=SimilarityConfig(check="drop"),
    ))
""")
    return f"--config={path}"


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["--config.embeddings.server.url="], 2, "embeddings.server.url is empty"),
        (["--config.embeddings.server.model="], 2, "embeddings.server.model is empty"),
        (["--config.similarity.threshold=1.5"], 2, "threshold=1.5"),
        (["--config.embeddings.asked_as=x"], 2, "must hold {text}"),
        (["--config.embeddings.texts_per_request=0"], 2, "texts_per_request=0"),
        (["--config.embeddings.server.url=http://127.0.0.1:9"], 4, "1 tries failed"),
    ],
)
def test_a_mistake_is_one_line(
    make_config, server, tmp_path, capsys, words, code, part
):
    config = write_config(tmp_path, server.url)
    assert main(["curate", config, f"--workdir={tmp_path / 'out'}", *words]) == code
    errors = capsys.readouterr().err.splitlines()
    assert part in errors[-1] and (code == status.ENVIRONMENT or len(errors) == 1)
    assert (tmp_path / "out").exists() == (code == status.ENVIRONMENT)


def test_comparing_with_no_set_is_a_mistake(make_config):
    with pytest.raises(ConfigError, match="similarity.check='drop'.*evaluation_sets"):
        make_config(evaluation_sets={})
