# SPDX-License-Identifier: Apache-2.0
"""Settings of what a teacher makes: traces, and new problems."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from ring_jax.config.curate import RawSourceConfig
from ring_jax.config.errors import ConfigError, require_at_least
from ring_jax.config.server import EmbeddingsConfig, TeacherConfig, check_is_named
from ring_jax.config.verify import VerificationConfig


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TeacherSamplingConfig:
    """How a teacher draws its answers; the defaults are those of arXiv:2504.07158."""

    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 16_384
    seed: int = 0
    """Of the first answer to a prompt; the next one has the next seed."""

    def __post_init__(self):
        if not (self.temperature >= 0 and 0 < self.top_p <= 1 and self.max_tokens > 0):
            raise ConfigError(
                f"temperature={self.temperature} must not be negative, top_p="
                f"{self.top_p} in (0, 1] and max_tokens={self.max_tokens} above 0."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TraceConfig:
    """Answers sampled for training: `ring generate --n=N`, `--config.traces.*`."""

    teacher: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)
    """The server of `--server` and `--model`."""
    sampling: TeacherSamplingConfig = dataclasses.field(
        default_factory=TeacherSamplingConfig
    )
    """Of `max_tokens`, a model of our own has at most `evaluate.max_new_tokens`."""
    asked_as: str = "{prompt}"
    """What is asked; `{prompt}` stands for the last user turn, which the row keeps."""
    choose: Literal["first", "shortest"] = "first"
    """Of the right answers of a row; length is in characters, reasoning included."""
    min_agreement: float = 0.5
    """Without a gold answer, more than this share of the samples must agree."""
    verifier: str = "math"
    """Of rows that name none; it also says which answers are the same."""
    verification: VerificationConfig = dataclasses.field(
        default_factory=VerificationConfig
    )
    domain: str = "reasoning"
    """Of rows that name none, as the licence."""
    licence: str = "NOASSERTION"
    """SPDX identifier."""
    batch_rows: int = 64
    """Rows whose samples are asked for together."""

    def __post_init__(self):
        if "{prompt}" not in self.asked_as:
            raise ConfigError(f"asked_as={self.asked_as!r} must hold {{prompt}}.")
        if not 0.5 <= self.min_agreement < 1.0:
            raise ConfigError(
                f"min_agreement={self.min_agreement} must be from 0.5 to below 1."
            )
        require_at_least(self, 1, "batch_rows")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class NoveltyConfig:
    """New problems that mean what a seed or an earlier problem means."""

    check: Literal["drop", "keep"] = "keep"
    """`drop` asks the server of `embeddings` for a vector of each problem."""
    threshold: float = 0.95
    """Cosine of two vectors from which their problems are the same. Models differ: look
    at the pairs in `rejected.jsonl`."""

    def __post_init__(self):
        if not 0.0 < self.threshold <= 1.0:
            raise ConfigError(f"threshold={self.threshold} must be in (0, 1].")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CodingConfig:
    """New problems whose solutions are programs: those of seeds that are."""

    problem_prompt: str = (
        "Here is a coding task:\n\n{problem}\n\nWrite one new coding task on the same "
        "topic, not easier, that a reader can solve without this one. Its program "
        "reads standard input and prints its answer. Say what it reads and prints, in "
        "which form and within which limits, so that each input has a single right "
        "output. Write the task between <problem> and </problem>. Below it write "
        "{num_inputs} inputs within the limits, small and large ones, and such that "
        "careless programs get wrong, each between <input> and </input>. Write no "
        "outputs."
    )
    """`{problem}` stands for the seed."""
    solution_prompt: str = (
        "{problem}\n\nWrite a program in Python, with the standard library alone; it "
        "reads standard input and prints, unless the task asks for a function. Reason "
        "step by step, and end with the whole program in one ```python block."
    )
    """`{problem}` stands for the problem; the row asks for the problem alone."""
    num_inputs: int = 10
    """That the teacher is asked to write."""
    min_inputs: int = 4
    """On which most programs end well; these become the tests."""

    def __post_init__(self):
        _check_prompts(self)
        if not 2 <= self.min_inputs <= self.num_inputs:
            raise ConfigError(
                f"min_inputs={self.min_inputs} must be from 2 to num_inputs="
                f"{self.num_inputs}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SynthesisConfig:
    """Problems that a teacher makes of problems, kept where its solutions agree.

    Source: arXiv:2504.07158: ten solutions of a new problem, kept when more than five
    agree; accepted problems are seeds again.
    """

    teacher: TeacherConfig = dataclasses.field(default_factory=TeacherConfig)
    seeds: Mapping[str, RawSourceConfig] = dataclasses.field(default_factory=dict)
    """Sources of the first problems; what they reply is not used."""
    max_seeds: int = 1000
    """Seeds at most, in turns from every task and fifth of difficulty."""
    answer_seeds: Literal["yes", "no"] = "no"
    """Whether the teacher also answers the seeds, which become rows as new problems."""
    num_rounds: int = 2
    """Rounds of new problems; each starts from what the one before accepted. With 0
    and `answer_seeds`, the teacher answers seeds alone."""
    problems_per_seed: int = 2
    solutions_per_problem: int = 10
    min_agreement: float = 0.5
    """The most frequent answer must have more than this share of the solutions."""
    max_similarity: float = 0.8
    """Of five-word runs that a problem may share with its seed (Jaccard)."""
    novelty: NoveltyConfig = dataclasses.field(default_factory=NoveltyConfig)
    embeddings: EmbeddingsConfig = dataclasses.field(default_factory=EmbeddingsConfig)
    """Read by `novelty` alone."""
    coding: CodingConfig = dataclasses.field(default_factory=CodingConfig)
    batch_problems: int = 64
    """Problems that are solved together; their solutions are held in memory."""
    problem_prompt: str = (
        "Here is a problem:\n\n{problem}\n\nWrite one new problem on the same topic, "
        "not easier, that a reader can solve without this one and that has a single "
        "final answer. Write nothing but the problem, between <problem> and </problem>."
    )
    """`{problem}` stands for the seed."""
    solution_prompt: str = (
        "{problem}\n\nReason step by step, and put the final answer within \\boxed{}."
    )
    """`{problem}` stands for the problem; the row asks for the problem alone."""
    problem_sampling: TeacherSamplingConfig = dataclasses.field(
        default_factory=TeacherSamplingConfig
    )
    solution_sampling: TeacherSamplingConfig = dataclasses.field(
        default_factory=TeacherSamplingConfig
    )
    domain: str = "reasoning"
    verifier: str = "math"
    """Of the rows; it also says which answers of the solutions are the same."""
    verification: VerificationConfig = dataclasses.field(
        default_factory=VerificationConfig
    )
    """Workers and limits of the verifier."""
    licence: str = "NOASSERTION"
    """SPDX identifier of new problems; seeds keep their own."""
    max_row_bytes: int = 20_000_000
    """Of a seed."""

    def __post_init__(self):
        if not self.seeds:
            raise ConfigError("seeds is empty; name a source of problems.")
        require_at_least(self, 1, "max_seeds", "problems_per_seed", "batch_problems")
        if self.solutions_per_problem < 3:
            raise ConfigError(
                f"solutions_per_problem={self.solutions_per_problem} must be at least "
                "3: fewer have no majority."
            )
        if self.num_rounds < 0 or (self.num_rounds == 0 and self.answer_seeds == "no"):
            raise ConfigError(
                f"num_rounds={self.num_rounds} with answer_seeds={self.answer_seeds!r} "
                "makes nothing; set one of them."
            )
        if self.novelty.check == "drop":
            check_is_named(self.embeddings, wanted_by="novelty.check='drop'")
        _check_prompts(self)


def _check_prompts(config: CodingConfig | SynthesisConfig) -> None:
    """Raises ConfigError where a prompt has no place for its problem."""
    for name in ("problem_prompt", "solution_prompt"):
        if "{problem}" not in getattr(config, name):
            raise ConfigError(f"{name} has no {{problem}}; put it where it goes.")
