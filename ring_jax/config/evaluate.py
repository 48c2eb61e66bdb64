# SPDX-License-Identifier: Apache-2.0
"""Settings of generation, of held-out rows, and of suites of questions."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from ring_jax.config.errors import ConfigError, require_at_least
from ring_jax.config.teacher import TeacherConfig
from ring_jax.config.verify import VerificationConfig


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Held-out rows as suites, and the room of the engine that answers."""

    items_per_source: int = 64
    """Held-out rows that are asked of each source that a verifier grades."""
    max_prompt_tokens: int = 96
    """Rows with a longer prompt are not asked."""
    max_new_tokens: int = 96
    """Of a reply, reasoning included."""
    batch_size: int = 64
    """Prompts that are answered at a time."""

    def __post_init__(self):
        require_at_least(self, 0, "items_per_source")
        require_at_least(self, 1, "max_prompt_tokens", "max_new_tokens", "batch_size")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GenerateConfig:
    """How `ring generate` draws, and how the engine goes about it (`generation.md`)."""

    temperature: float = 0.0
    """Divides the logits before drawing; 0 takes the most probable token."""
    top_k: int = 0
    """How many of the most probable tokens are kept; 0 keeps all."""
    top_p: float = 1.0
    """Keeps the most probable tokens that together reach this probability."""
    min_p: float = 0.0
    """Keeps tokens at least this share as probable as the most probable one."""
    repetition_penalty: float = 1.0
    max_think_tokens: int | None = None
    """Tokens between <think> and </think>, which then is closed; None: no limit."""
    stop: str | None = None
    """A text that ends an answer, and is not in it."""
    steps_per_dispatch: int = 8
    """Tokens of each answer between two looks of the host."""
    prefill_chunk_tokens: int = 256
    """Most tokens of a prompt that are read at once; rounded up to a power of two."""
    prefix_cache_tokens: int = 4096
    """Tokens of prompts whose keys and values are kept for others that begin alike."""

    def __post_init__(self):
        require_at_least(self, 1, "steps_per_dispatch", "prefill_chunk_tokens")
        require_at_least(self, 0, "prefix_cache_tokens")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SuiteConfig:
    """A suite of `ring evaluate`: its items, how they are asked, what is counted."""

    kind: str = "rows"
    """`rows` of a file, `heldout` rows of the run, `reasoning_gym`, a set that a
    package ships, or a published set of which you have the files."""
    path: str | None = None
    """Of `rows`: a JSONL file of the row schema, each row with a verifier. Of a
    published set: its file, or the folder of its files; None: its place below
    `suites.published_sets_dir`."""
    task: str = ""
    """Of `reasoning_gym`."""
    sources: str = ""
    """Of `heldout`: sources of the run, with commas, whose held-out rows are asked."""
    group: Literal["reasoning", "general"] = "general"
    capability: str = ""
    """Such as mathematics, code, science, instruction, tool use, knowledge."""
    prompt: str = "{question}"
    """What the user says; `{question}` stands for the item's own last turn."""
    num_items: int | None = None
    """At most, the same ones each time; of `reasoning_gym` per level, of `heldout` per
    source. None: all."""
    num_samples: int = 1
    """Replies to each item."""
    metric: Literal["avg", "pass", "maj"] = "avg"
    """Over the samples of an item: share of right ones, whether any is right, or
    whether the most frequent answer is."""
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 1024
    """Of a reply, reasoning included."""
    seed: int = 0
    """Of the items chosen, the draws and the intervals."""

    def __post_init__(self):
        if "{question}" not in self.prompt:
            raise ConfigError("prompt has no {question}; put it where it goes.")
        require_at_least(self, 1, "num_samples", "max_new_tokens")
        if self.num_items is not None:
            require_at_least(self, 1, "num_items")
        if not (self.temperature >= 0 and 0 < self.top_p <= 1):
            raise ConfigError(
                f"temperature={self.temperature} must not be negative and "
                f"top_p={self.top_p} in (0, 1]."
            )
        if self.num_samples > 1 and self.temperature == 0:
            raise ConfigError(
                f"num_samples={self.num_samples} at temperature=0 are the same reply; "
                "raise the temperature, or set num_samples=1."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LmEvalConfig:
    """How `ring evaluate --lm-eval` asks the tasks of lm-eval."""

    prompts: Literal["chat", "text"] = "chat"
    """`chat`: under the model's chat template, each example a turn; `text`: as a task
    writes it."""
    num_fewshot: int | None = None
    """Examples in front of an item; None: as the task says."""
    group: Literal["reasoning", "general"] = "general"
    """Of all tasks of a command, for comparisons; so is the next."""
    capability: str = "lm-eval"

    def __post_init__(self):
        if self.num_fewshot is not None:
            require_at_least(self, 0, "num_fewshot")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SuitesConfig:
    """What is asked, beside or instead of the settings of the suites."""

    at_stage_end: str = "heldout"
    """Suites and groups, with commas, that `ring train` asks when a stage has ended,
    and `ring evaluate` where it is given no others. `heldout` stands for the held-out
    rows of all sources."""
    own: Mapping[str, SuiteConfig] = dataclasses.field(default_factory=dict)
    """More suites, or others under known names."""
    published_sets_dir: str = "evaluation_sets"
    """Holds a file or a folder of each published set, under the set's name."""
    num_items: int | None = None
    """Instead of each suite's; None: as the suite says. So are the next three."""
    num_samples: int | None = None
    temperature: float | None = None
    max_new_tokens: int | None = None
    server: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)
    """Who answers, where `--server` names a server; its pace and key."""
    verification: VerificationConfig = dataclasses.field(
        default_factory=VerificationConfig
    )
    """Workers that grade, and their limits."""
    lm_eval: LmEvalConfig = dataclasses.field(default_factory=LmEvalConfig)
