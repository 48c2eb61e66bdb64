# SPDX-License-Identifier: Apache-2.0
"""A server that makes vectors of texts; what it made once is on disk.

Source: https://platform.openai.com/docs/api-reference/embeddings/create
"""

import contextlib
import hashlib
import itertools
import json
import pathlib
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from ring_jax.chat_client import NoAnswerError, ServerClient, TooLongError, ask_all
from ring_jax.config import ConfigError, EmbeddingsConfig
from ring_jax.curate.vectors import VectorStore

NAME = "embeddings.server"
"""Of the server's settings, for messages."""


@contextlib.contextmanager
def open_embedder(
    config: EmbeddingsConfig, folder: pathlib.Path
) -> Iterator["Embedder"]:
    """Gives what makes vectors, with those that `folder` has of the same model.

    Raises:
      ConfigError: no server or model is named, or the folder is of no use.
    """
    client = ServerClient(config.server, name=NAME)
    with VectorStore(folder / _folder_name(config.server.model)) as store:
        yield Embedder(config, client, store)


def deciding_settings(config: EmbeddingsConfig) -> dict[str, Any]:
    """Returns what decides the vectors: not how fast, and from where, they come."""
    return {
        "server": {"model": config.server.model},
        "asked_as": config.asked_as,
        "max_characters": config.max_characters,
    }


def _folder_name(model: str) -> str:
    """Names a model by what a file may be called, and by a hash of its whole name."""
    told = re.sub(r"[^\w.-]", "_", model, flags=re.ASCII)[-60:]
    return f"{told}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"


class Embedder:
    """Makes vectors of texts, of which none is blank."""

    def __init__(
        self, config: EmbeddingsConfig, client: ServerClient, store: VectorStore
    ):
        self._config = config
        self._client = client
        self._store = store

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns a vector of length 1 of each text: f32[texts, dim].

        Raises:
          ConfigError: the server refuses a text, or is of another model.
          OSError: it failed `max_tries` times; what it made is on disk.
        """
        config = self._config
        asked = [
            config.asked_as.replace("{text}", text[: config.max_characters])
            for text in texts
        ]
        is_known, _ = self._store.find(asked)
        known = zip(asked, is_known, strict=True)
        missing = list(dict.fromkeys(text for text, is_there in known if not is_there))
        if missing:
            logging.info("embeddings: asking for %d vectors", len(missing))
        batches = list(itertools.batched(missing, config.texts_per_request))
        for _ in ask_all(batches, self._ask, num_threads=config.server.num_parallel):
            pass
        is_known, vectors = self._store.find(asked)
        assert is_known.all()
        return vectors

    def _ask(self, texts: Sequence[str], stop: threading.Event) -> None:
        asked = {"input": list(texts), "encoding_format": "float"}
        try:
            vectors = self._client.post(
                "embeddings", asked, lambda said: _read(said, len(texts)), stop
            )
        except TooLongError as error:
            raise ConfigError(
                f"{NAME} {self._config.server.url} refuses a text of up to "
                f"max_characters={self._config.max_characters} with {error}; lower "
                "embeddings.max_characters."
            ) from None
        if vectors is not None:
            self._store.add(texts, vectors)


def _read(response: bytes, num_texts: int) -> np.ndarray:
    """Finds the vectors in a response: f64[num_texts, dim], in order of the texts."""
    try:
        items = sorted(json.loads(response)["data"], key=lambda item: item["index"])
        if [item["index"] for item in items] != list(range(num_texts)):
            raise ValueError(f"it has {len(items)} vectors for {num_texts} texts")
        vectors = np.array([item["embedding"] for item in items], np.float64)
        if vectors.ndim != 2 or not np.isfinite(vectors).all():
            raise ValueError("its vectors are no lists of numbers")
        if not np.abs(vectors).max(axis=1, initial=0.0).all():
            raise ValueError("a vector is zero")
        return vectors
    except (ValueError, LookupError, TypeError, ArithmeticError) as error:
        said = response[:80].decode("utf-8", "replace")
        raise NoAnswerError(f"a response that is none ({said!r}: {error!r})") from None
