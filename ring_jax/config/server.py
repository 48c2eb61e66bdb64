# SPDX-License-Identifier: Apache-2.0
"""Settings of servers that are asked: for answers, and for vectors of texts."""

import dataclasses

from ring_jax.config.errors import (
    ConfigError,
    require_above,
    require_at_least,
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TeacherConfig:
    """A server with OpenAI's protocol, for answers to prompts or vectors of texts."""

    url: str = ""
    """Up to the version, such as `http://localhost:8000/v1`."""
    model: str = ""
    """As the server calls it."""
    key_variable: str = ""
    """Environment variable that holds the server's key; empty: none is sent."""
    num_parallel: int = 8
    """Requests under way at once."""
    requests_per_minute: float = 0.0
    """At most, tries again included; 0 is any number."""
    timeout_seconds: float = 900.0
    """Without a byte from the server."""
    max_tries: int = 6
    """Of one request that the server fails to answer."""
    first_wait_seconds: float = 1.0
    """Before the second try; doubles with each, up to two minutes."""

    def __post_init__(self):
        require_at_least(self, 1, "num_parallel", "max_tries")
        require_above(self, 0, "timeout_seconds")
        require_at_least(self, 0, "requests_per_minute", "first_wait_seconds")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingsConfig:
    """Vectors of texts, by a server with OpenAI's embeddings protocol.

    vLLM, SGLang, llama.cpp and text-embeddings-inference speak it.
    """

    server: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)
    asked_as: str = "{text}"
    """What is sent; `{text}` stands for the text. Some models want `query: {text}`."""
    max_characters: int = 4000
    """Of a text; the rest is not compared. A model with room for 512 tokens needs
    some 1,500."""
    texts_per_request: int = 32
    """Texts sent together; many servers take no more."""
    folder: str | None = None
    """Where vectors are kept, for other settings and other curations too; where it is
    absent, in the output folder, by a curation until it is complete."""

    def __post_init__(self):
        if "{text}" not in self.asked_as:
            raise ConfigError(f"asked_as={self.asked_as!r} must hold {{text}}.")
        require_at_least(self, 1, "max_characters", "texts_per_request")


def check_is_named(config: EmbeddingsConfig, *, wanted_by: str) -> None:
    """Refuses settings that want vectors and do not say from where.

    Raises:
      ConfigError: names what is missing.
    """
    for field in ("url", "model"):
        if not getattr(config.server, field):
            raise ConfigError(
                f"{wanted_by} needs vectors, but embeddings.server.{field} is empty; "
                "name the server's."
            )
