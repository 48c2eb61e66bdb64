# SPDX-License-Identifier: Apache-2.0
"""New problems in a teacher's words: which of its replies hold one, and a new one.

A problem is new by its words (no problem had the same, few runs of them are its
seed's), and, where a server makes vectors, by its meaning.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ring_jax.config import NoveltyConfig, SynthesisConfig, TeacherSamplingConfig
from ring_jax.curate.coding_tasks import VERIFIER as PROGRAM
from ring_jax.curate.coding_tasks import read_inputs
from ring_jax.curate.forms import read_reply
from ring_jax.curate.rows import Rejection, prompt_text, reject
from ring_jax.curate.seeds import digest
from ring_jax.curate.vectors import nearest
from ring_jax.data.schema import Message, Row
from ring_jax.data.words import hash_ngrams, hash_words, words

SOURCE = "synthesis"
MIN_WORDS = 5
SHINGLE = 5
"""Words of the runs by which a problem is compared with its seed."""
_SHOWN_CHARACTERS = 300
"""Of the problem that another one is too near to."""
_BATCH_TEXTS = 4096
_PROBLEM = re.compile(r"<problem>(.*?)</problem>", re.DOTALL)

Generate = Callable[[Sequence[str], TeacherSamplingConfig], list[str]]
"""Prompts and sampling -> one text for each prompt, in order."""
Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts, none blank -> vectors of length 1: f32[texts, dim]."""
Fault = tuple[str, str, str]
"""Reason, detail, and what a problem collides with."""


class Meanings:
    """Seeds and problems so far, by their vectors; 2 bytes a number in memory."""

    def __init__(self, embed: Embed, config: NoveltyConfig):
        self._embed = embed
        self._threshold = config.threshold
        self._vectors = np.empty((0, 0), np.float16)
        self._told: list[str] = []
        self._batch: dict[str, np.ndarray] = {}
        self._nearest: dict[str, tuple[float, int]] = {}

    def add(self, problems: Sequence[Row]) -> None:
        """Takes problems that new ones must differ from."""
        for batch in itertools.batched(problems, _BATCH_TEXTS):
            self._keep(self._embed([prompt_text(row) for row in batch]))
            self._told += [_told(row.id, prompt_text(row)) for row in batch]

    def look_at(self, problems: Sequence[str]) -> None:
        """Makes the vectors of problems, together, for `fault` and `accept`."""
        texts = list(dict.fromkeys(filter(None, problems)))
        self._batch = {}
        if texts:
            vectors = self._embed(texts)
            self._batch = dict(zip(texts, vectors, strict=True))
            found = nearest(vectors, self._vectors)
            pairs = zip(*(part.tolist() for part in found), strict=True)
            self._nearest = dict(zip(texts, pairs, strict=True))

    def fault(self, problem: str) -> Fault | None:
        """Returns why a problem that was looked at is not new, if it is not."""
        cosine, which = self._nearest[problem]
        if cosine < self._threshold:
            return None
        detail = f"cosine {cosine:.2f} between it and a seed or a problem before"
        return "near_in_meaning", detail, self._told[which]

    def accept(self, name: str, problem: str) -> None:
        """Takes a problem that was looked at; the rest of its batch must differ."""
        vector = self._batch[problem]
        self._keep(vector[None])
        self._told.append(_told(name, problem))
        number = len(self._told) - 1
        for text, other in self._batch.items():
            cosine = float(vector @ other)
            if cosine > self._nearest[text][0]:
                self._nearest[text] = cosine, number

    def _keep(self, vectors: np.ndarray) -> None:
        kept = vectors.astype(np.float16)
        before = [self._vectors] if len(self._vectors) else []
        self._vectors = np.concatenate([*before, kept])


def _told(name: str, problem: str) -> str:
    return f"{name}: {problem[:_SHOWN_CHARACTERS]}"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What new problems are held against."""

    words: set[str]
    """Digests of all seeds that were read, and of all problems so far."""
    meanings: Meanings | None
    """Of the seeds that were chosen, and of all problems so far."""


def proposed(
    config: SynthesisConfig,
    seeds: Sequence[Row],
    generate: Generate,
    *,
    known: Known,
    round_number: int,
) -> Iterator[Row | Rejection]:
    """Yields new problems of each seed, and why others are none."""
    for batch in itertools.batched(seeds, config.batch_problems):
        asked = [seed for seed in batch for _ in range(config.problems_per_seed)]
        prompts = [_prompt(config, seed) for seed in asked]
        replies = generate(prompts, config.problem_sampling)
        problems = [read_problem(reply) for reply in replies]
        if known.meanings:
            known.meanings.look_at(problems)
        for seed, reply, problem in zip(asked, replies, problems, strict=True):
            row = _new_row(config, problem, seed, reply, round_number)
            fault = _fault(config, row, seed, known)
            yield _reject(seed, fault, problem or reply) if fault else row
            if not fault:
                known.words.add(digest(problem))
                if known.meanings:
                    known.meanings.accept(row.id, problem)


def _prompt(config: SynthesisConfig, seed: Row) -> str:
    if seed.verifier != PROGRAM:
        return config.problem_prompt.replace("{problem}", prompt_text(seed))
    asked = config.coding.problem_prompt
    asked = asked.replace("{num_inputs}", str(config.coding.num_inputs))
    return asked.replace("{problem}", prompt_text(seed))


def read_problem(reply: str) -> str:
    """Finds the problem in a teacher's reply; empty where there is none, or two."""
    found = _PROBLEM.findall(read_reply(reply).content)
    return found[0].strip() if len(found) == 1 else ""


def _new_row(
    config: SynthesisConfig, problem: str, seed: Row, reply: str, number: int
) -> Row:
    metadata: dict[str, object] = {"seed": seed.id, "round": number}
    is_coding = seed.verifier == PROGRAM
    if is_coding:
        metadata["tests"] = [{"input": text} for text in read_inputs(reply)]
    return Row(
        id=f"{SOURCE}/{digest(problem)}",
        messages=(Message("user", problem), Message("assistant", "?")),
        source=SOURCE,
        domain=config.domain,
        task=seed.task,
        licence=config.licence,
        package=f"{config.teacher.model}=={SOURCE}",
        verifier=PROGRAM if is_coding else config.verifier,
        metadata=metadata,
    )


def _fault(config: SynthesisConfig, row: Row, seed: Row, known: Known) -> Fault | None:
    problem = row.messages[0].content
    fault = _fault_of_words(problem, seed, known.words, config.max_similarity)
    if not fault and row.verifier == PROGRAM:
        count, least = len(row.metadata["tests"]), config.coding.min_inputs
        if count < least:
            fault = "few_inputs", f"{count} different inputs, min_inputs={least}"
    if fault:
        reason, detail = fault
        return reason, detail, seed.id
    return known.meanings.fault(problem) if known.meanings else None


def _fault_of_words(
    problem: str, seed: Row, known: set[str], max_similarity: float
) -> tuple[str, str] | None:
    if not problem:
        return "no_problem", "the reply holds no single <problem>...</problem>"
    if (count := len(words(problem))) < MIN_WORDS:
        return "too_short", f"{count} words, at least {MIN_WORDS} are asked for"
    if digest(problem) in known:
        return "duplicate", "the same words were a seed or a problem before"
    shared = _similarity(problem, prompt_text(seed))
    if shared > max_similarity:
        return "copies_seed", f"{shared:.2f} of its runs of {SHINGLE} words are shared"
    return None


def _similarity(one: str, other: str) -> float:
    """Computes the Jaccard similarity of two texts' runs of words."""
    runs = [
        set(hash_ngrams(hash_words(text), SHINGLE).tolist()) for text in (one, other)
    ]
    union = runs[0] | runs[1]
    return len(runs[0] & runs[1]) / len(union) if union else 0.0


def _reject(seed: Row, fault: Fault, excerpt: str) -> Rejection:
    reason, detail, other = fault
    return dataclasses.replace(
        reject(seed, step="propose", reason=reason, detail=detail),
        id=f"{SOURCE}/of/{seed.id}",
        source=SOURCE,
        excerpt=excerpt[:400],
        other=other,
    )
