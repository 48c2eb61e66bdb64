# SPDX-License-Identifier: Apache-2.0
"""New problems made of problems, kept where a teacher's solutions agree.

  seeds -> candidates -> solutions of each -> a majority -> rows, and the next seeds

  seeds           from every task and fifth of difficulty in turns
  propose         the teacher writes new problems; what is none, known already, or a
                  copy of its seed is turned away
  solve           the teacher solves each `solutions_per_problem` times; a majority
                  keeps it, and gives the answer (`answers.py`)

The folder holds `problems.jsonl` (rows with `metadata.samples`, for `ring curate`),
`rejected.jsonl` (each with its reason), `journal.jsonl` (every answer of the teacher)
and `synthesis.json` (counts and settings; written last). All but the journal are a
function of the settings, the seeds and the journal: an interrupted synthesis goes
through what it has without asking, and ends with the same bytes.

Source: arXiv:2504.07158, section on data synthesis.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

from absl import logging

from ring_jax import __version__
from ring_jax.config import (
    ConfigError,
    ConsistencyConfig,
    SynthesisConfig,
    TeacherConfig,
    TeacherSamplingConfig,
    VerificationConfig,
)
from ring_jax.curate.answers import keep_consistent, pass_rate
from ring_jax.curate.chat_server import ChatServer
from ring_jax.curate.difficulty import band
from ring_jax.curate.forms import normalise, read_reply
from ring_jax.curate.journal import Journal
from ring_jax.curate.quarantine import rejection_to_json
from ring_jax.curate.read import OpenSource, open_source
from ring_jax.curate.rows import RawRecord, Rejection, prompt_text, reject
from ring_jax.data.output_folder import agree_on_plan, own_folder, write_whole
from ring_jax.data.schema import Message, Row, row_to_json
from ring_jax.data.words import hash_ngrams, hash_words, words
from ring_jax.verify import Sandbox

Generate = Callable[[Sequence[str], TeacherSamplingConfig], list[str]]
"""Prompts and sampling -> one text for each prompt, in order."""
Vote = Callable[[Sequence[Row]], Sequence[Row | Rejection]]
"""Rows with `metadata.samples` -> each with its majority's answer, or turned away."""

PROBLEMS = "problems.jsonl"
REJECTED = "rejected.jsonl"
SUMMARY = "synthesis.json"
JOURNAL = "journal.jsonl"
SOURCE = "synthesis"

MIN_WORDS = 5
SHINGLE = 5
"""Words of the runs by which a problem is compared with its seed."""

_PROBLEM = re.compile(r"<problem>(.*?)</problem>", re.DOTALL)


def synthesise(
    config: SynthesisConfig,
    folder: pathlib.Path,
    *,
    open_teacher: Callable[[TeacherConfig, Journal], Generate] = ChatServer,
) -> dict[str, Any]:
    """Makes problems into `folder`, or goes on with what was begun there.

    Args:
      config: see `SynthesisConfig`.
      folder: new, or that of the same synthesis.
      open_teacher: makes the function that answers prompts.

    Returns:
      What `synthesis.json` holds.

    Raises:
      ConfigError: no seeds, the folder belongs to another synthesis, or the teacher
        refuses.
      OSError: the teacher does not answer, or the disk is full.
    """
    opened = [
        open_source(source, name=name, seed=0, max_row_bytes=config.max_row_bytes)
        for name, source in config.seeds.items()
    ]
    with own_folder(folder, kind="synthesis"):
        agree_on_plan(folder, _plan(config, opened))
        if (folder / SUMMARY).exists():
            return json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        with (
            Journal(folder / JOURNAL) as journal,
            _open_sandbox(config.verification) as sandbox,
            _Output(folder) as output,
        ):
            teacher = open_teacher(config.teacher, journal)
            _run(config, opened, teacher, _make_vote(config, sandbox), output)
        summary = {
            "ring_jax": __version__,
            "model": config.teacher.model,
            "problem_sampling": dataclasses.asdict(config.problem_sampling),
            "solution_sampling": dataclasses.asdict(config.solution_sampling),
            "num_problems": sum(output.accepted.values()),
            "accepted": dict(output.accepted),
            "rejected": {
                f"{source}/{step}/{reason}": count
                for (source, step, reason), count in sorted(output.rejected.items())
            },
        }
        write_whole(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def _open_sandbox(config: VerificationConfig) -> Sandbox:
    return Sandbox(
        num_workers=config.num_workers,
        timeout_seconds=config.timeout_seconds,
        max_memory_bytes=config.max_memory_bytes,
    )


def _make_vote(config: SynthesisConfig, sandbox: Sandbox) -> Vote:
    # Every solution counts, and an empty one is for no answer.
    majority = ConsistencyConfig(min_samples=1, min_agreement=config.min_agreement)
    return functools.partial(keep_consistent, sandbox=sandbox, config=majority)


def _plan(config: SynthesisConfig, opened: Sequence[OpenSource]) -> dict[str, Any]:
    """Returns what decides the result: not how fast, and from where, answers come."""
    settings = dataclasses.asdict(config)
    settings["teacher"] = {"model": config.teacher.model}
    del settings["verification"]["num_workers"]
    for source in settings["seeds"].values():
        source["path"] = source["path"] and pathlib.Path(source["path"]).name
    files = {
        f"seeds.{source.name}": {
            f"{number} {file.name}": file.sha256
            for number, file in enumerate(source.files)
        }
        for source in opened
    }
    return {"ring_jax": __version__, "synthesis": settings, "files": files}


class _Output:
    """The two files of results, which take their names when all is done."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self.accepted: collections.Counter[str] = collections.Counter()
        """Round -> problems."""
        self.rejected: collections.Counter[tuple[str, str, str]] = collections.Counter()
        """(source, step, reason) -> records."""

    def __enter__(self) -> Self:
        self._files = {
            name: (self._folder / f".{name}.unfinished").open("w", encoding="utf-8")
            for name in (PROBLEMS, REJECTED)
        }
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for name, file in self._files.items():
            with file:
                file.flush()
                os.fsync(file.fileno())
            if kind is None:
                os.replace(file.name, self._folder / name)

    def accept(self, row: Row, part: str) -> None:
        self._files[PROBLEMS].write(row_to_json(row) + "\n")
        self.accepted[part] += 1

    def reject(self, rejection: Rejection) -> None:
        self._files[REJECTED].write(rejection_to_json(rejection) + "\n")
        self.rejected[rejection.source, rejection.step, rejection.reason] += 1


def _run(
    config: SynthesisConfig,
    opened: Sequence[OpenSource],
    generate: Generate,
    vote: Vote,
    output: _Output,
) -> None:
    known: set[str] = set()
    seeds = choose_seeds(_read_seeds(opened, known, output), num=config.max_seeds)
    if not seeds:
        raise ConfigError(f"seeds {sorted(config.seeds)} hold no problem.")
    if config.answer_seeds == "yes":
        for _ in _solved(config, seeds, generate, vote, output, part="seeds"):
            pass
    for number in range(1, config.num_rounds + 1):
        part = f"round {number}"
        candidates = _proposed(config, seeds, generate, output, known=known)
        named = (_new_row(config, text, seed, number) for text, seed in candidates)
        seeds = list(_solved(config, named, generate, vote, output, part=part))
        logging.info("synthesise: %s, %d problems accepted", part, len(seeds))
        if not seeds:
            return


# Seeds


def _read_seeds(
    opened: Sequence[OpenSource], known: set[str], output: _Output
) -> list[Row]:
    """Reads the problems of every source once; what is none is rejected."""
    seeds = []
    for source in opened:
        for record in source.read(0):
            row = (
                normalise(record, source.config, source=source.name)
                if isinstance(record, RawRecord)
                else record
            )
            if isinstance(row, Row):
                row = _as_seed(row, known)
            if isinstance(row, Rejection):
                output.reject(row)
            else:
                seeds.append(row)
    return seeds


def _as_seed(row: Row, known: set[str]) -> Row | Rejection:
    problem = prompt_text(row).strip()
    if not row.messages or not problem:
        return reject(row, step="seeds", reason="no_problem", detail="it asks nothing")
    if row.verifier == "program":
        detail = "programs are right or wrong by their tests, and have no majority"
        return reject(row, step="seeds", reason="program", detail=detail)
    if (name := _digest(problem)) in known:
        detail = "the same words were read before"
        return reject(row, step="seeds", reason="duplicate", detail=detail)
    known.add(name)
    return _without_reply(row)


def _without_reply(row: Row) -> Row:
    """Keeps what the next round needs: the problem, and where it belongs."""
    asked = (*row.messages[:-1], Message("assistant", "?"))
    return dataclasses.replace(row, messages=asked, metadata={})


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


def _digest(problem: str) -> str:
    """Names a problem by its words alone."""
    return hashlib.sha256(" ".join(words(problem)).encode()).hexdigest()[:16]


# New problems


def _proposed(
    config: SynthesisConfig,
    seeds: Sequence[Row],
    generate: Generate,
    output: _Output,
    *,
    known: set[str],
) -> Iterator[tuple[str, Row]]:
    """Yields new problems with the seed of each."""
    for batch in itertools.batched(seeds, config.batch_problems):
        asked = [seed for seed in batch for _ in range(config.problems_per_seed)]
        prompts = [
            config.problem_prompt.replace("{problem}", prompt_text(seed))
            for seed in asked
        ]
        replies = generate(prompts, config.problem_sampling)
        for seed, reply in zip(asked, replies, strict=True):
            problem = read_problem(reply)
            fault = _fault(problem, seed, known, config.max_similarity)
            if fault:
                reason, detail = fault
                output.reject(
                    dataclasses.replace(
                        reject(seed, step="propose", reason=reason, detail=detail),
                        id=f"{SOURCE}/of/{seed.id}",
                        source=SOURCE,
                        excerpt=(problem or reply)[:400],
                        other=seed.id,
                    )
                )
            else:
                known.add(_digest(problem))
                yield problem, seed


def read_problem(reply: str) -> str:
    """Finds the problem in a teacher's reply; empty where there is none, or two."""
    found = _PROBLEM.findall(read_reply(reply).content)
    return found[0].strip() if len(found) == 1 else ""


def _fault(
    problem: str, seed: Row, known: set[str], max_similarity: float
) -> tuple[str, str] | None:
    if not problem:
        return "no_problem", "the reply holds no single <problem>...</problem>"
    if (count := len(words(problem))) < MIN_WORDS:
        return "too_short", f"{count} words, at least {MIN_WORDS} are asked for"
    if _digest(problem) in known:
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


def _new_row(config: SynthesisConfig, problem: str, seed: Row, number: int) -> Row:
    return Row(
        id=f"{SOURCE}/{_digest(problem)}",
        messages=(Message("user", problem), Message("assistant", "?")),
        source=SOURCE,
        domain=config.domain,
        task=seed.task,
        licence=config.licence,
        package=f"{config.teacher.model}=={SOURCE}",
        metadata={"seed": seed.id, "round": number},
    )


# Solutions


def _solved(
    config: SynthesisConfig,
    problems: Iterable[Row],
    generate: Generate,
    vote: Vote,
    output: _Output,
    *,
    part: str,
) -> Iterator[Row]:
    """Solves problems, writes those with a majority, yields them without replies."""
    for batch in itertools.batched(problems, config.batch_problems):
        num = config.solutions_per_problem
        prompts = [
            config.solution_prompt.replace("{problem}", prompt_text(problem))
            for problem in batch
            for _ in range(num)
        ]
        replies = generate(prompts, config.solution_sampling)
        solutions = zip(batch, itertools.batched(replies, num), strict=True)
        tried = [_try(config, problem, samples) for problem, samples in solutions]
        voted = iter(vote([row for row in tried if isinstance(row, Row)]))
        for row in tried:
            judged = row if isinstance(row, Rejection) else next(voted)
            if isinstance(judged, Rejection):
                output.reject(judged)
            else:
                output.accept(_graded(judged), part)
                yield _without_reply(judged)


def _try(
    config: SynthesisConfig, problem: Row, samples: Sequence[str]
) -> Row | Rejection:
    """Makes a row of a problem and its solutions, with the first one as the reply.

    Its metadata say which model and which sampling made them.
    """
    whole = [reply for reply in map(read_reply, samples) if reply.content.strip()]
    if not whole:
        detail = f"all {len(samples)} solutions are empty, or reasoning alone"
        return reject(problem, step="solve", reason="no_solution", detail=detail)
    return dataclasses.replace(
        problem,
        messages=(*problem.messages[:-1], whole[0]),
        verifier=problem.verifier or config.verifier,
        metadata={
            **problem.metadata,
            "samples": list(samples),
            "model": config.teacher.model,
            "sampling": dataclasses.asdict(config.solution_sampling),
        },
    )


def _graded(row: Row) -> Row:
    rate = pass_rate(row)
    assert rate is not None  # it has samples and an answer
    return dataclasses.replace(row, difficulty=round(1.0 - rate, 4))
