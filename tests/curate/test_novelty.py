# SPDX-License-Identifier: Apache-2.0
"""A new problem means nothing that a seed or a problem before means."""

import json
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from ring_jax.cli import status
from ring_jax.cli.main import main
from ring_jax.config import (
    ConfigError,
    EmbeddingsConfig,
    NoveltyConfig,
    RawSourceConfig,
    SynthesisConfig,
    TeacherConfig,
    VerificationConfig,
)
from ring_jax.curate.proposals import Known, Meanings, proposed
from ring_jax.curate.rows import Rejection
from ring_jax.curate.synthesis import synthesise
from ring_jax.data.schema import Message, Row
from tests.embeddings import bag, cosine, embeddings_reply
from tests.loopback_server import Loopback, serving

THRESHOLD = 0.8137
STOCK = [f"word{number}" for number in range(12)]


@pytest.fixture
def server() -> Iterator[Loopback]:
    with serving(embeddings_reply) as state:
        yield state


def vectors_of(texts: Sequence[str]) -> np.ndarray:
    found = np.array([bag(text) for text in texts])
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def make_seed(text: str) -> Row:
    return Row(
        id=f"seed {text}",
        messages=(Message("user", text), Message("assistant", "?")),
        source="s",
        domain="d",
        licence="MIT",
        package="p==1",
    )


def make_config(path: pathlib.Path, server: Loopback, **more) -> SynthesisConfig:
    embedder = TeacherConfig(
        url=server.url, model="bag", first_wait_seconds=0.0, max_tries=2
    )
    settings = {
        "teacher": TeacherConfig(model="writer"),
        "seeds": {"seeds": RawSourceConfig(path=str(path), licence="CC0-1.0")},
        "novelty": NoveltyConfig(check="drop", threshold=THRESHOLD),
        "embeddings": EmbeddingsConfig(server=embedder, texts_per_request=3),
        "problems_per_seed": 3,
        "solutions_per_problem": 3,
        "batch_problems": 4,
        "max_similarity": 1.0,
        "verifier": "match",
        "verification": VerificationConfig(num_workers=1),
    }
    return SynthesisConfig(**{**settings, **more})


def write_seeds(path: pathlib.Path) -> None:
    rng = np.random.default_rng(5)
    texts = [" ".join(rng.choice(STOCK, 8)) for _ in range(6)]
    records = [{"prompt": text, "completion": "1"} for text in texts]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def open_writer(config, journal):
    """A teacher whose problems are random words; each solution is 1."""
    del config, journal
    rng = np.random.default_rng(7)

    def generate(prompts, sampling):
        del sampling
        return [
            f"<problem>{' '.join(rng.choice(STOCK, 8))}</problem>"
            if "new problem" in prompt
            else "\\boxed{1}"
            for prompt in prompts
        ]

    return generate


def read(folder: pathlib.Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def results(folder: pathlib.Path) -> dict[str, bytes]:
    names = ("problems.jsonl", "rejected.jsonl", "synthesis.json", "plan.json")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.parametrize("batch_problems", [1, 4, 50])
def test_problems_are_new_as_the_definition_says(server, tmp_path, batch_problems):
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(STOCK, 8)) for _ in range(60)]
    seeds = [make_seed(text) for text in texts[:10]]
    replies = iter([*texts[10:30], "none", *texts[30:59]])
    config = make_config(
        tmp_path / "s",
        server,
        problems_per_seed=5,
        batch_problems=batch_problems,
    )
    known = Known(words=set(), meanings=Meanings(vectors_of, config.novelty))
    assert known.meanings
    known.meanings.add(seeds)

    def generate(prompts, sampling):
        del sampling
        return [f"<problem>{next(replies)}</problem>" for _ in prompts]

    found = proposed(config, seeds, generate, known=known, round_number=1)
    before = list(texts[:10])
    num_near = 0
    for text, result in zip([*texts[10:30], "none", *texts[30:59]], found, strict=True):
        cosines = [cosine(text, other) for other in before]
        assert abs(max(cosines) - THRESHOLD) > 1e-3, "too near to tell"
        if text == "none":
            assert isinstance(result, Rejection) and result.reason == "too_short"
        elif max(cosines) > THRESHOLD:
            num_near += 1
            assert isinstance(result, Rejection) and result.reason == "near_in_meaning"
            assert f"cosine {max(cosines):.2f}" in result.detail
            name, _, shown = result.other.partition(": ")
            assert cosine(text, shown) == pytest.approx(max(cosines))
            assert name.startswith("seed " if shown in texts[:10] else "synthesis/")
            assert result.excerpt == text
        else:
            assert isinstance(result, Row)
            before.append(text)
    assert 5 < num_near < 45


def test_a_synthesis_turns_away_what_is_near_and_pays_for_no_vector_twice(
    server, tmp_path
):
    write_seeds(tmp_path / "s.jsonl")
    config = make_config(tmp_path / "s.jsonl", server)
    summary = synthesise(config, tmp_path / "whole", open_teacher=open_writer)
    near = summary["rejected"]["synthesis/propose/near_in_meaning"]
    assert near > 3 and summary["num_problems"] > 3
    made = [
        row["messages"][0]["content"]
        for row in read(tmp_path / "whole", "problems.jsonl")
    ]
    for number, one in enumerate(made):
        assert all(cosine(one, other) < THRESHOLD for other in made[:number])
    sent = [text for body in server.asked for text in body["input"]]
    assert len(sent) == len(set(sent))
    out = tmp_path / "out"
    for allowed in (1, 3):
        last = len(server.asked) + allowed
        server.misbehave = lambda number, body, last=last: (
            (500, b"down") if number >= last else None
        )
        with pytest.raises(OSError, match=r"embeddings.server .*2 tries failed"):
            synthesise(config, out, open_teacher=open_writer)
        assert not (out / "problems.jsonl").exists()
    server.misbehave = lambda number, body: None
    before = len(server.asked)
    synthesise(config, out, open_teacher=open_writer)
    assert results(out) == results(tmp_path / "whole")
    again = [text for body in server.asked[before:] for text in body["input"]]
    assert 0 < len(again) < len(sent)
    before = len(server.asked)
    synthesise(config, out, open_teacher=open_writer)
    assert len(server.asked) == before, "a finished folder asks nothing"
    other = EmbeddingsConfig(server=TeacherConfig(url=server.url, model="other"))
    with pytest.raises(ConfigError, match="embeddings.server.model='bag'"):
        synthesise(make_config(tmp_path / "s.jsonl", server, embeddings=other), out)


def test_it_is_off_by_default(server, tmp_path):
    write_seeds(tmp_path / "s.jsonl")
    config = make_config(tmp_path / "s.jsonl", server, novelty=NoveltyConfig())
    synthesise(config, tmp_path / "out", open_teacher=open_writer)
    assert not server.asked and not (tmp_path / "out" / "vectors").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--config.novelty.threshold=0"], "threshold=0.0"),
        (["--config.novelty.check=drop"], "embeddings.server.url is empty"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, words, part):
    write_seeds(tmp_path / "s.jsonl")
    file = f"--config=configs/data/synthesis.py:{tmp_path / 's.jsonl'}"
    teacher = ["--config.teacher.url=http://127.0.0.1:9/v1", "--config.teacher.model=m"]
    command = ["synthesise", file, f"--workdir={tmp_path / 'out'}", *teacher, *words]
    assert main(command) == status.MISTAKE
    error = capsys.readouterr().err
    assert part in error and error.count("\n") == 1
