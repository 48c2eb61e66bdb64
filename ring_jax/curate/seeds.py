# SPDX-License-Identifier: Apache-2.0
"""Problems that others are made of: read, named by their words, chosen in turns."""

import collections
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

from ring_jax.curate.difficulty import band
from ring_jax.curate.forms import normalise
from ring_jax.curate.read import OpenSource
from ring_jax.curate.rows import RawRecord, Rejection, prompt_text, reject
from ring_jax.data.schema import Message, Row
from ring_jax.data.words import words

_TESTING = ("tests", "function", "preamble", "seconds")
"""What the verifier `program` reads of a row, but `check`, which has no inputs."""


def read_seeds(
    opened: Sequence[OpenSource], known: set[str], *, keep: Callable[[Row], Row]
) -> Iterator[Row | Rejection]:
    """Reads the problems of every source, each once.

    Args:
      opened: the sources.
      known: digests of problems; those that are read are added.
      keep: `problem_alone` or `with_tests`; all seeds are held in memory.

    Yields:
      Problems without their replies, and what is none.
    """
    for source in opened:
        for record in source.read(0):
            row = (
                normalise(record, source.config, source=source.name)
                if isinstance(record, RawRecord)
                else record
            )
            yield _as_seed(row, known, keep) if isinstance(row, Row) else row


def _as_seed(row: Row, known: set[str], keep: Callable[[Row], Row]) -> Row | Rejection:
    problem = prompt_text(row).strip()
    if not row.messages or not problem:
        return reject(row, step="seeds", reason="no_problem", detail="it asks nothing")
    if (name := digest(problem)) in known:
        detail = "the same words were read before"
        return reject(row, step="seeds", reason="duplicate", detail=detail)
    known.add(name)
    return keep(row)


def problem_alone(row: Row) -> Row:
    """Keeps what a new problem is made of: the problem, and where it belongs."""
    asked = (*row.messages[:-1], Message("assistant", "?"))
    return dataclasses.replace(row, messages=asked, metadata={})


def with_tests(row: Row) -> Row:
    """Keeps what a problem is answered by: also the tests of a coding task."""
    tests = {name: row.metadata[name] for name in _TESTING if name in row.metadata}
    is_coding = row.verifier == "program"
    return dataclasses.replace(problem_alone(row), metadata=tests if is_coding else {})


def choose_seeds(seeds: Iterable[Row], *, num: int) -> list[Row]:
    """Takes seeds in turns from every task and fifth of difficulty, at most `num`.

    Of a thousand easy problems and ten hard ones come ten of each, then the rest.
    """
    strata: dict[tuple[str, str], list[Row]] = collections.defaultdict(list)
    for seed in seeds:
        strata[seed.task, band(min(1.0, max(0.0, seed.difficulty)))].append(seed)
    turns = itertools.zip_longest(*(strata[name] for name in sorted(strata)))
    chosen = (seed for turn in turns for seed in turn if seed is not None)
    return list(itertools.islice(chosen, num))


def digest(problem: str) -> str:
    """Names a problem by its words alone."""
    return hashlib.sha256(" ".join(words(problem)).encode()).hexdigest()[:16]
