# SPDX-License-Identifier: Apache-2.0
"""Vectors come from a server in order, once each, or one line says why not."""

import time
from collections.abc import Iterator

import numpy as np
import pytest

from ring_jax.cli import status
from ring_jax.config import ConfigError, EmbeddingsConfig, TeacherConfig
from ring_jax.curate.embeddings import open_embedder
from tests.embeddings import bag, embeddings_reply
from tests.loopback_server import Loopback, serving

TEXTS = [f"Question {number} of {number * 7}?" for number in range(25)]


@pytest.fixture
def server() -> Iterator[Loopback]:
    with serving(embeddings_reply) as state:
        yield state


def settings(server: Loopback, *, asked_as: str = "{text}", **more) -> EmbeddingsConfig:
    teacher = {"url": server.url, "model": "org/bag", "first_wait_seconds": 0.0, **more}
    return EmbeddingsConfig(
        server=TeacherConfig(**teacher),
        asked_as=asked_as,
        texts_per_request=4,
        max_characters=60,
    )


def expected(texts) -> np.ndarray:
    vectors = np.array([bag(text) for text in texts])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_vectors_come_in_order_and_no_text_is_asked_for_twice(server, tmp_path):
    with open_embedder(settings(server), tmp_path) as embed:
        found = embed([*TEXTS, TEXTS[3]])
        assert found == pytest.approx(expected([*TEXTS, TEXTS[3]]), abs=1e-3)
        assert embed(TEXTS[5:9]) == pytest.approx(expected(TEXTS[5:9]), abs=1e-3)
    assert set(server.paths) == {"/embeddings"}
    assert {body["model"] for body in server.asked} == {"org/bag"}
    assert {body["encoding_format"] for body in server.asked} == {"float"}
    sent = [text for body in server.asked for text in body["input"]]
    assert sorted(sent) == sorted(TEXTS)
    assert max(len(body["input"]) for body in server.asked) == 4
    with open_embedder(settings(server), tmp_path) as embed:
        again = embed(TEXTS)
        assert (again == found[:-1]).all(), "a restart has the very same numbers"
        embed(["A new one?"])
    assert len(server.asked) == 7 + 1


def test_a_text_is_sent_as_the_model_wants_it_and_cut(server, tmp_path):
    asked_as = "query: {text}"
    with open_embedder(settings(server, asked_as=asked_as), tmp_path) as embed:
        long = "word " * 50
        assert embed([long]) == pytest.approx(
            expected([f"query: {long[:60]}"]), abs=1e-3
        )
    assert server.asked[0]["input"] == [f"query: {long[:60]}"]
    with open_embedder(settings(server), tmp_path) as embed:
        embed([long])
    assert server.asked[1]["input"] == [long[:60]], "sent otherwise, it is another text"


def test_models_have_folders_of_their_own(server, tmp_path):
    for model in ("a/b", "a_b", "a/b"):
        with open_embedder(settings(server, model=model), tmp_path) as embed:
            embed(["A question?"])
    assert [body["model"] for body in server.asked] == ["a/b", "a_b"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_server_that_fails_often_changes_nothing(server, tmp_path):
    def misbehave(number: int, body: dict):
        good = embeddings_reply(body)[1]["data"]
        bad = [
            (503, b"busy"),
            (200, b'{"data": ['),
            (200, {"data": good[1:]}),
            (200, {"data": [{**good[0], "index": 7}, *good[1:]]}),
            (200, {"data": [{**item, "embedding": []} for item in good]}),
            (200, {"data": [{**item, "embedding": ["a"]} for item in good]}),
            (200, {"data": [{**item, "embedding": [0.0, 0.0]} for item in good]}),
            (200, {"data": [{**item, "embedding": [10**400]} for item in good]}),
            (200, {"data": [{**item, "embedding": [float("nan")]} for item in good]}),
            (200, {"error": "out of memory"}),
            (200, b"[3]"),
        ]
        return bad[number // 2 % len(bad)] if number % 2 else None

    server.misbehave = misbehave
    patient = settings(server, max_tries=50, num_parallel=3)
    with open_embedder(patient, tmp_path) as embed:
        assert embed(TEXTS) == pytest.approx(expected(TEXTS), abs=1e-3)


def test_a_server_that_stays_away_ends_in_one_line_and_the_rest_is_asked_for_later(
    server, tmp_path
):
    server.misbehave = lambda number, body: (500, b"down") if number >= 3 else None
    config = settings(server, max_tries=2, num_parallel=2)
    with (
        open_embedder(config, tmp_path) as embed,
        pytest.raises(
            OSError, match=r"^embeddings.server http.*2 tries.*500"
        ) as caught,
    ):
        embed(TEXTS)
    assert status.status_of(caught.value) == status.ENVIRONMENT
    server.misbehave = lambda number, body: None
    before = len(server.asked)
    with open_embedder(config, tmp_path) as embed:
        assert embed(TEXTS) == pytest.approx(expected(TEXTS), abs=1e-3)
    assert len(server.asked) - before == 7 - 3


@pytest.mark.parametrize(
    ("code", "said", "words"),
    [
        (404, "no such model", r"refuses model='org/bag'.*embeddings.server.model"),
        (400, "maximum context length is 512", r"lower embeddings.max_characters"),
        (413, "the context size is 8", r"max_characters=60"),
    ],
)
def test_a_refusal_is_one_line_and_not_tried_again(server, tmp_path, code, said, words):
    server.misbehave = lambda number, body: (code, {"error": said})
    one = settings(server, num_parallel=1)
    with (
        open_embedder(one, tmp_path) as embed,
        pytest.raises(ConfigError, match=words),
    ):
        embed(TEXTS)
    assert len(server.asked) == 1


def test_another_model_behind_the_name_is_told(server, tmp_path):
    with open_embedder(settings(server), tmp_path) as embed:
        embed(TEXTS[:1])
        narrow = {"data": [{"index": 0, "embedding": [1.0, 2.0]}]}
        server.misbehave = lambda number, body: (200, narrow)
        with pytest.raises(ConfigError, match="of 96 numbers.*of 2: another model"):
            embed(TEXTS[1:2])


@pytest.mark.parametrize("field", ["url", "model", "key_variable"])
def test_a_server_that_is_not_named_is_told_before_anything_is_made(
    server, tmp_path, field
):
    value = "NO_SUCH" if field == "key_variable" else ""
    with (
        pytest.raises(ConfigError, match=rf"embeddings\.server\.{field}"),
        open_embedder(settings(server, **{field: value}), tmp_path / "new"),
    ):
        pass
    assert not (tmp_path / "new").exists()


def test_vectors_under_way_when_another_request_fails_are_kept(server, tmp_path):
    def misbehave(number: int, body: dict):
        if number == 0:
            time.sleep(0.3)
            return None
        return 404, b"no"

    server.misbehave = misbehave
    config = settings(server, num_parallel=2)
    with open_embedder(config, tmp_path) as embed:
        with pytest.raises(ConfigError):
            embed(TEXTS)
        server.misbehave = lambda number, body: None
        before = len(server.asked)
        embed(TEXTS)
    assert len(server.asked) - before == 7 - 1
