# SPDX-License-Identifier: Apache-2.0
"""Readers of rows, by the `kind` of a source."""

from collections.abc import Mapping
from typing import Protocol

from ring_jax.config import ConfigError, SourceConfig
from ring_jax.data.sources.dialogue import read_dialogue
from ring_jax.data.sources.instructions import read_instructions
from ring_jax.data.sources.jsonl import read_jsonl
from ring_jax.data.sources.knowledge import read_countries, read_elements
from ring_jax.data.sources.plain import read_code, read_text
from ring_jax.data.sources.reasoning import read_reasoning
from ring_jax.data.sources.shards import read_shards
from ring_jax.data.sources.split import SourceRows
from ring_jax.data.sources.tool_calls import read_tool_calls
from ring_jax.data.sources.virtual import read_virtual

__all__ = ["READERS", "Reader", "SourceRows", "read"]


class Reader(Protocol):
    """Reads the training and held-out rows of one source."""

    def __call__(self, config: SourceConfig, *, name: str, seed: int) -> SourceRows:
        """Reads at most `config.num_rows` and `config.num_heldout` rows."""
        ...


READERS: Mapping[str, Reader] = {
    "reasoning_gym": read_reasoning,
    "countries": read_countries,
    "elements": read_elements,
    "instructions": read_instructions,
    "tool_calls": read_tool_calls,
    "dialogue": read_dialogue,
    "text": read_text,
    "code": read_code,
    "jsonl": read_jsonl,
    "array_record": read_shards,
    "virtual": read_virtual,
}


def read(config: SourceConfig, *, name: str, seed: int) -> SourceRows:
    """Reads one source.

    Args:
      config: what to read and how much.
      name: the source's name, which its rows carry.
      seed: of the run; the same seed gives the same rows.

    Raises:
      ConfigError: the kind is unknown, a package is missing, a row is bad, or there is
        no training row.
    """
    if config.kind not in READERS:
        raise ConfigError(
            f"data.sources.{name}.kind={config.kind!r} must be one of {list(READERS)}."
        )
    rows = READERS[config.kind](config, name=name, seed=seed)
    if not rows.train:
        raise ConfigError(
            f"data.sources.{name}: gives no training row; raise num_rows="
            f"{config.num_rows} or lower num_heldout={config.num_heldout}."
        )
    return rows
