# SPDX-License-Identifier: Apache-2.0
"""Settings of a curation: from raw files to shards of rows."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

from ring_jax.config.data import check_ngrams, check_virtual
from ring_jax.config.errors import ConfigError, require_at_least
from ring_jax.config.server import EmbeddingsConfig, check_is_named
from ring_jax.config.verify import VerificationConfig


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RawSourceConfig:
    """Where a curation reads raw rows: files, or a package of `ring_jax.data`."""

    kind: str = "jsonl"
    """`jsonl`, `parquet`, `array_record`, or a kind of `SourceConfig`; of an evaluation
    set also one that a package ships, such as `aime24`."""
    path: str | None = None
    """For files: one file, a folder, or a pattern such as `raw/*.parquet`."""
    form: Literal[
        "auto",
        "row",
        "messages",
        "sharegpt",
        "alpaca",
        "prompt_completion",
        "preference",
        "program",
        "transcript",
        "tool_query",
        "text",
    ] = "auto"
    """How a record says its conversation; `auto` looks at the names of its fields."""
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Field of the form -> column of the files, where a set has names of its own;
    `a.b` is the field b of column a. With any, columns that are not named are left
    out."""
    only: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Column -> its value, as text, in records that are wanted; others are turned away
    as `not_selected`."""
    answer_in: str = ""
    r"""Column that ends in the gold answer: `\boxed{7}`, `#### 7`, "answer is 7"."""
    difficulties: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Word of the field `difficulty` -> difficulty from 0 to 1; 0 says nothing."""
    share: float = 1.0
    """Of the records of files, drawn by a hash of their place; the rest is not read."""
    origin: str = ""
    """Where the files are published; told where they are missing."""
    licence: str = ""
    """SPDX identifier; files must name one (`NOASSERTION` where nobody knows)."""
    version: str = ""
    """What the manifest calls this state of the files, beside their sha256."""
    domain: str = ""
    """Domain of rows that name none; empty: the source's name."""
    verifier: str = ""
    """Verifier of rows that name none but have an answer."""
    num_rows: int = 1000
    """For packages: rows to read or generate. Files are read whole."""
    task: str = ""
    """For packages: as in `SourceConfig`, and so are the next four."""
    level: Literal["", "easy", "medium", "hard"] = ""
    first_row: int = 0
    generator_seed: int | None = None
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_virtual(self.first_row, self.parameters)
        if not 0.0 < self.share <= 1.0:
            raise ConfigError(f"share={self.share} must be above 0 and at most 1.")
        for word, difficulty in self.difficulties.items():
            if not 0.0 <= difficulty <= 1.0:
                raise ConfigError(
                    f"difficulties.{word}={difficulty} must be from 0 to 1."
                )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ScreenConfig:
    """Rows that try to steer the model, or that hide text from a reader's eye."""

    control_tokens: Literal["drop", "keep"] = "drop"
    """Tokens of chat templates inside a turn that is not the assistant's."""
    invisible_text: Literal["drop", "keep"] = "drop"
    prompt_injection: Literal["drop", "keep"] = "drop"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PurifyConfig:
    """Defects of generated replies (the purification of arXiv:2506.14731's data)."""

    repetition: Literal["drop", "keep"] = "drop"
    truncation: Literal["drop", "keep"] = "drop"
    broken_latex: Literal["drop", "keep"] = "drop"
    missing_image: Literal["drop", "keep"] = "drop"
    empty_think: Literal["drop", "strip", "keep"] = "drop"
    """A think block without text; `strip` keeps the row without the block."""
    mixed_languages: Literal["drop", "keep"] = "drop"
    """A reply in a script that its prompt does not use."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ContaminationConfig:
    """Overlap with the evaluation sets by n-grams of words."""

    check: Literal["drop", "keep"] = "drop"
    ngram: int = 13
    """Words that a row and an evaluation item must share in sequence."""
    shortest_ngram: int = 6
    """Items of fewer words than `ngram` are looked for whole, down to this length;
    still shorter ones must equal the row's whole prompt."""
    max_items_per_ngram: int = 8
    """An n-gram of more items of one set than this is a template's wording, and says
    nothing; items made of such n-grams alone are compared by their whole prompt."""

    def __post_init__(self):
        check_ngrams(self.shortest_ngram, self.ngram)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SimilarityConfig:
    """Questions that mean what an evaluation item means, in other words."""

    check: Literal["drop", "keep"] = "keep"
    """`drop` asks the server of `embeddings` for a vector of each question."""
    threshold: float = 0.9
    """Cosine of two vectors from which their questions mean the same. Models differ:
    look at the pairs of a small curation first."""
    max_items_alike: int = 8
    """An item that more other items of its set are as near to is told from them by its
    numbers or names alone, which vectors hardly see; it is compared by words only."""

    def __post_init__(self):
        if not 0.0 < self.threshold <= 1.0:
            raise ConfigError(f"threshold={self.threshold} must be in (0, 1].")
        require_at_least(self, 0, "max_items_alike")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ConsistencyConfig:
    """Agreement among sampled answers, where a row has `metadata.samples`."""

    check: Literal["drop", "keep"] = "drop"
    min_samples: int = 3
    """Rows with fewer samples are left as they are."""
    min_agreement: float = 0.5
    """The most frequent answer must have more than this share of the samples."""

    def __post_init__(self):
        if not 0.0 <= self.min_agreement < 1.0:
            raise ConfigError(
                f"min_agreement={self.min_agreement} must be from 0 to below 1."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DuplicatesConfig:
    """Rows that were there before; the first in the order of the sources is kept."""

    exact: Literal["drop", "keep"] = "drop"
    near: Literal["drop", "keep"] = "drop"
    compare: Literal["conversation", "prompt"] = "conversation"
    """`prompt` keeps one reply for each prompt."""
    threshold: float = 0.8
    """Share of common n-grams (Jaccard) from which two rows are near duplicates."""
    ngram: int = 5
    """Words of a shingle."""
    num_hashes: int = 128
    """Of a MinHash signature; the estimate's standard error is about
    sqrt(J (1 - J) / num_hashes)."""
    max_same_reply: int = 100
    """Rows that may have one and the same long reply; more is how a poisoned set
    looks. 0 allows any number."""

    def __post_init__(self):
        if not 0.0 < self.threshold <= 1.0:
            raise ConfigError(f"threshold={self.threshold} must be in (0, 1].")
        require_at_least(self, 1, "ngram")
        require_at_least(self, 16, "num_hashes")
        if self.num_hashes % 16:
            raise ConfigError(f"num_hashes={self.num_hashes} must be a multiple of 16.")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DifficultyConfig:
    """How hard a row is, from 0 to 1."""

    by: Literal["auto", "pass_rate", "level", "length", "keep"] = "auto"
    """1 - pass rate of `metadata.samples` or `metadata.pass_rate`, the generator's
    level, or the reply's length; `auto` takes the first of these that a row has."""
    longest_reply: int = 32_000
    """Characters of a reply whose length counts as difficulty 1."""

    def __post_init__(self):
        require_at_least(self, 1, "longest_reply")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TaxonomyConfig:
    """Topics by keywords; the counts show what is missing."""

    check: Literal["tag", "off"] = "tag"
    nodes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Node, such as `maths/algebra`, -> keywords, comma-separated; added to the nodes
    of `ring_jax/curate/taxonomy.json`."""
    min_rows: int = 10
    """A node with fewer rows is listed as a gap."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ScaleConfig:
    """Where chunks are made and shards written; it decides nothing of the result."""

    engine: Literal["process", "ray"] = "process"
    """`process` is the command's own; `ray` needs the extra [scale]."""
    num_workers: int = 2
    """Ray workers, of one CPU each; each has `verification.num_workers` of its own."""
    address: str | None = None
    """Of a Ray cluster, such as `10.0.0.1:6379`; where it is absent, one is started on
    this machine for as long as the command runs."""

    def __post_init__(self):
        require_at_least(self, 1, "num_workers")
        if self.address and not re.fullmatch(r"[^\s:/]+:\d{1,5}", self.address):
            raise ConfigError(
                f"address={self.address!r} must be HOST:PORT of the cluster's head."
            )
        if self.address and self.engine != "ray":
            raise ConfigError(
                f"address={self.address!r} is of no use to engine={self.engine!r}; "
                "choose engine=ray, or leave it out."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CurateConfig:
    """A curation: from raw files to shards of rows that can be trusted."""

    seed: int = 0
    """Of generated sources."""
    output_dir: str | None = None
    """Where `--workdir` is not given."""
    shard_rows: int = 10_000
    """Rows of an output shard."""
    chunk_rows: int = 2_000
    """Raw rows that are held in memory and finished together; an interrupted curation
    goes on behind the last finished chunk."""
    max_row_bytes: int = 1_000_000
    """Of a raw row; larger ones are quarantined."""
    num_examples: int = 3
    """Removed rows shown for each reason in the manifest."""
    sources: Mapping[str, RawSourceConfig] = dataclasses.field(default_factory=dict)
    evaluation_sets: Mapping[str, RawSourceConfig] = dataclasses.field(
        default_factory=dict
    )
    """What must not be trained on; of a package, its held-out rows."""
    screen: ScreenConfig = dataclasses.field(default_factory=ScreenConfig)
    purify: PurifyConfig = dataclasses.field(default_factory=PurifyConfig)
    contamination: ContaminationConfig = dataclasses.field(
        default_factory=ContaminationConfig
    )
    embeddings: EmbeddingsConfig = dataclasses.field(default_factory=EmbeddingsConfig)
    """Read by `similarity` alone."""
    similarity: SimilarityConfig = dataclasses.field(default_factory=SimilarityConfig)
    consistency: ConsistencyConfig = dataclasses.field(
        default_factory=ConsistencyConfig
    )
    verification: VerificationConfig = dataclasses.field(
        default_factory=VerificationConfig
    )
    duplicates: DuplicatesConfig = dataclasses.field(default_factory=DuplicatesConfig)
    difficulty: DifficultyConfig = dataclasses.field(default_factory=DifficultyConfig)
    taxonomy: TaxonomyConfig = dataclasses.field(default_factory=TaxonomyConfig)
    scale: ScaleConfig = dataclasses.field(default_factory=ScaleConfig)

    def __post_init__(self):
        if not self.sources:
            raise ConfigError("sources is empty; a curation needs at least one.")
        if self.similarity.check == "drop" and not self.evaluation_sets:
            raise ConfigError(
                "similarity.check='drop' has nothing to compare with; name a set in "
                "evaluation_sets, or set it to 'keep'."
            )
        if self.similarity.check == "drop":
            check_is_named(self.embeddings, wanted_by="similarity.check='drop'")
        require_at_least(self, 1, "shard_rows", "chunk_rows", "max_row_bytes")
        require_at_least(self, 0, "num_examples")
        for name in [*self.sources, *self.evaluation_sets]:
            if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII):
                raise ConfigError(
                    f"source {name!r} names files; use letters, digits, _ . and -."
                )
