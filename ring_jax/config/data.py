# SPDX-License-Identifier: Apache-2.0
"""Settings of what is read, and how rows become tokens."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from ring_jax.config.errors import ConfigError, require_at_least
from ring_jax.config.tree import flatten_settings

TOKEN_CLASSES = ("padding", "prompt", "think", "answer", "tool", "stop")
"""What a token is for; its index is the class id that batches carry."""


CONVERSATION_KINDS = (
    "single_turn",
    "multi_turn",
    "system",
    "tool_call",
    "tool_result",
    "thinking",
    "empty_thinking",
    "earlier_thinking",
    "tool_thinking",
    "white_space",
)
"""In which chat templates are compared; `data/template_check.py` shows each."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """Where the tokenizer comes from: a file, or training on the run's own text."""

    path: str | None = None
    """A `tokenizer.json` or a folder that holds one; None trains one on the spot."""
    vocab_size: int = 2048
    """Entries of a tokenizer trained on the spot, special tokens included."""
    num_training_rows: int = 20000
    """Rows of the run's own sources that it is trained on."""

    def __post_init__(self):
        require_at_least(self, 1, "vocab_size", "num_training_rows")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """One named source of rows; `kind` names a reader in `ring_jax.data.sources`."""

    kind: str = "jsonl"
    num_rows: int = 1000
    """Training rows to read or generate; a reader with fewer gives what it has."""
    num_heldout: int = 64
    """Held-out rows, disjoint from training rows; 0 keeps it out of evaluations."""
    task: str = ""
    """For generated sources: the task's name, such as `chain_sum`."""
    level: Literal["", "easy", "medium", "hard"] = ""
    path: str | None = None
    """For `jsonl`: the file to read. For `array_record`: shards, by a file, a folder or
    a pattern."""
    first_row: int = 0
    """For `virtual`: number of the first of the `num_rows` rows that are trained."""
    generator_seed: int | None = None
    """For `virtual`: what its rows are generated from; None takes the run's seed."""
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """For `virtual`: settings of reasoning-gym's generator by name, over the level's
    own. Without a level, problem and answer are in the generator's words."""

    def __post_init__(self):
        require_at_least(self, 0, "num_rows", "num_heldout")
        check_virtual(self.first_row, self.parameters)


def check_virtual(first_row: int, parameters: Mapping[str, Any]) -> None:
    """Refuses a row below 0, and parameters that are no plain values.

    Raises:
      ConfigError: names the value.
    """
    if first_row < 0:
        raise ConfigError(f"first_row={first_row} must be at least 0.")
    for name, value in flatten_settings(parameters).items():
        parts = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(part, bool | int | float | str) for part in parts):
            raise ConfigError(
                f"parameters.{name}={value!r} must be a number, a text, True, False, "
                "or a tuple of these."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LongRowsConfig:
    """Training rows longer than a packed row. An answer is never cut."""

    policy: Literal["drop", "move", "split"] = "drop"
    """`drop` leaves them out; `move` keeps them for a run with longer packed rows, as
    shards in the run folder; `split` cuts their reasoning (or a plain text) behind
    paragraphs, lines or sentences; parts begin with the prompt and with the end of the
    reasoning so far."""
    carried_tokens: int = 256
    """Reasoning that `split` repeats before it goes on, at most half of a part."""
    max_loss: float = 0.05
    """Share of the tokens of a source that may be in rows left out; more is refused."""

    def __post_init__(self):
        require_at_least(self, 1, "carried_tokens")
        if not 0 <= self.max_loss <= 1:
            raise ConfigError(f"max_loss={self.max_loss} must be from 0 to 1.")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PackingConfig:
    """How rows are put together into packed rows."""

    algorithm: Literal["best_fit", "first_fit"] = "first_fit"
    """`first_fit` places rows as they come, each where it fits first; `best_fit` places
    the longest of a window first, each where it leaves the least room: a little fuller,
    and steps are less alike."""
    window_rows: int = 256
    """Packed rows that are filled together, moved up to whole batches: more are fuller;
    a change of the mixture begins with the next such window."""
    fill: float | None = None
    """Share of a packed row that tokens take; None measures what the lengths allow."""
    no_room: Literal["drop", "refuse"] = "drop"
    """What becomes of a row that found no room in four windows after its own: left out
    and counted, or the run ends."""

    def __post_init__(self):
        # A row that finds no room waits for a window that has some to spare.
        require_at_least(self, 8, "window_rows")
        if self.fill is not None and not 0 < self.fill <= 1:
            raise ConfigError(f"fill={self.fill} must be above 0 and at most 1.")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSetsConfig:
    """Rows that hold an item of an evaluation set, looked for before the first step.

    Every set that is installed is looked for (`ring_jax/data/evaluation_sets.py`).
    """

    overlap: Literal["refuse", "allow", "ignore"] = "refuse"
    """What a row with such an item does: it ends the command, it is counted and told,
    or nobody looks."""
    overlap_of: Mapping[str, Literal["refuse", "allow", "ignore"]] = dataclasses.field(
        default_factory=dict
    )
    """The same for single sets, such as `{"bfcl": "allow"}`; a set that is named here
    must be installed."""
    ngram: int = 13
    """As in `ContaminationConfig`, and so are the next two."""
    shortest_ngram: int = 6
    max_items_per_ngram: int = 8

    def __post_init__(self):
        check_ngrams(self.shortest_ngram, self.ngram)


def check_ngrams(shortest_ngram: int, ngram: int) -> None:
    """Refuses n-grams of an impossible length.

    Raises:
      ConfigError: names both.
    """
    if not 1 <= shortest_ngram <= ngram:
        raise ConfigError(
            f"shortest_ngram={shortest_ngram} must be from 1 to ngram={ngram}."
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """What is read, and how rows become tokens."""

    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    sources: Mapping[str, SourceConfig] = dataclasses.field(default_factory=dict)
    template: Literal["ling", "ring", "ring_keep_thinking"] = "ring"
    """`ring` puts a reply's reasoning between <think> and </think>, and leaves that of
    earlier turns out; `ring_keep_thinking` keeps it; `ling` drops all."""
    template_differences: str = ""
    """Conversation kinds, comma-separated, in which the chat template that comes with
    the tokenizer may write other tokens than `template` does."""
    class_weights: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {
            "prompt": 0.0,
            "think": 1.0,
            "answer": 1.0,
            "tool": 1.0,
            "stop": 1.0,
        }
    )
    """Loss weight of each token class."""
    long_rows: LongRowsConfig = dataclasses.field(default_factory=LongRowsConfig)
    packing: PackingConfig = dataclasses.field(default_factory=PackingConfig)
    evaluation_sets: EvaluationSetsConfig = dataclasses.field(
        default_factory=EvaluationSetsConfig
    )
    cache_dir: str | None = None
    """Where trained tokenizers are kept; None: the run folder."""
    packed: str | None = None
    """Folder of `ring pack`, from which stages read their packed rows; None packs them
    while training. Batches are the same."""
    num_workers: int = 0
    """Processes that make batches beside the training process; 0 uses a thread of it.
    Batches are the same with any number."""
    on_change: Literal["refuse", "allow"] = "refuse"
    """What a continued run does when it finds other data than it began with; after
    `allow`, rows can come twice or not at all."""

    def __post_init__(self):
        classes = TOKEN_CLASSES[1:]
        if unknown := sorted(set(self.class_weights) - set(classes)):
            raise ConfigError(f"class_weights has {unknown}; classes are {classes}.")
        if bad := {
            k: w for k, w in self.class_weights.items() if not 0 <= w < math.inf
        }:
            raise ConfigError(f"class_weights {bad} must be finite and at least 0.")
        require_at_least(self, 0, "num_workers")
        conversation_kinds(self.template_differences)


def conversation_kinds(names: str) -> tuple[str, ...]:
    """Returns the kinds of conversations that a comma-separated setting names.

    Raises:
      ConfigError: there is no such kind.
    """
    kinds = tuple(filter(None, (name.strip() for name in names.split(","))))
    if unknown := sorted(set(kinds) - set(CONVERSATION_KINDS)):
        raise ConfigError(
            f"template_differences has {unknown}; kinds are {CONVERSATION_KINDS}."
        )
    return kinds
