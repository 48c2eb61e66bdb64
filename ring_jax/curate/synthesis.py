# SPDX-License-Identifier: Apache-2.0
"""New problems made of problems, kept where a teacher's solutions agree.

  seeds -> candidates -> solutions of each -> a majority -> rows, and the next seeds

  seeds           from every task and fifth of difficulty in turns (`seeds.py`)
  propose         the teacher writes new problems; what is none, known already, or a
                  copy of its seed is turned away (`proposals.py`)
  solve           the teacher solves each `solutions_per_problem` times; a majority
                  keeps it: of answers, which gives the answer (`answers.py`), or of
                  what programs print, which gives the tests (`coding_tasks.py`)

The folder holds `problems.jsonl` (rows with `metadata.samples`, for `ring curate`),
`rejected.jsonl` (each with its reason), `journal.jsonl` (every answer of the teacher),
`vectors/` where problems are compared by meaning, and `synthesis.json` (counts and
settings; written last). All results are a function of the settings, the seeds, the
journal and the vectors: an interrupted synthesis goes through what it has without
asking, and ends with the same bytes.

Source: arXiv:2504.07158, section on data synthesis.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

from absl import logging

from ring_jax import __version__
from ring_jax.config import (
    ConfigError,
    ConsistencyConfig,
    SynthesisConfig,
    TeacherConfig,
    VerificationConfig,
)
from ring_jax.curate import coding_tasks
from ring_jax.curate.answers import keep_consistent, pass_rate
from ring_jax.curate.chat_server import ChatServer
from ring_jax.curate.embeddings import deciding_settings, open_embedder
from ring_jax.curate.forms import read_reply
from ring_jax.curate.journal import Journal
from ring_jax.curate.proposals import Generate, Known, Meanings, proposed
from ring_jax.curate.quarantine import rejection_to_json
from ring_jax.curate.read import OpenSource, open_source
from ring_jax.curate.rows import Rejection, prompt_text, reject
from ring_jax.curate.seeds import choose_seeds, problem_alone, read_seeds, with_tests
from ring_jax.data.output_folder import agree_on_plan, own_folder, write_whole
from ring_jax.data.schema import Row, row_to_json
from ring_jax.verify import Sandbox

Vote = Callable[[Sequence[Row]], Sequence[Row | Rejection]]
"""Rows with `metadata.samples` -> each with what its majority says, or turned away."""

PROBLEMS = "problems.jsonl"
REJECTED = "rejected.jsonl"
SUMMARY = "synthesis.json"
JOURNAL = "journal.jsonl"
VECTORS = "vectors"


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
            _open_meanings(config, folder) as meanings,
            _Output(folder) as output,
        ):
            known = Known(words=set(), meanings=meanings)
            teacher = open_teacher(config.teacher, journal)
            _Synthesis(
                config=config,
                generate=teacher,
                vote=_make_vote(config, sandbox),
                known=known,
                output=output,
            ).run(opened)
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


@contextlib.contextmanager
def _open_meanings(
    config: SynthesisConfig, folder: pathlib.Path
) -> Iterator[Meanings | None]:
    if config.novelty.check == "keep":
        yield None
        return
    kept = config.embeddings.folder
    where = pathlib.Path(kept) if kept else folder / VECTORS
    with open_embedder(config.embeddings, where) as embed:
        yield Meanings(embed, config.novelty)


def _make_vote(config: SynthesisConfig, sandbox: Sandbox) -> Vote:
    # Every solution counts, and an empty one is for no answer.
    majority = ConsistencyConfig(min_samples=1, min_agreement=config.min_agreement)
    of_answers = functools.partial(keep_consistent, sandbox=sandbox, config=majority)
    of_programs = functools.partial(
        coding_tasks.keep_agreeing,
        sandbox=sandbox,
        config=config.coding,
        min_agreement=config.min_agreement,
    )

    def vote(rows: Sequence[Row]) -> list[Row | Rejection]:
        coding = [row for row in rows if row.verifier == coding_tasks.VERIFIER]
        others = [row for row in rows if row.verifier != coding_tasks.VERIFIER]
        judged = {True: iter(of_programs(coding)), False: iter(of_answers(others))}
        return [next(judged[row.verifier == coding_tasks.VERIFIER]) for row in rows]

    return vote


def _plan(config: SynthesisConfig, opened: Sequence[OpenSource]) -> dict[str, Any]:
    """Returns what decides the result: not how fast, and from where, answers come."""
    settings = dataclasses.asdict(config)
    settings["teacher"] = {"model": config.teacher.model}
    settings["embeddings"] = deciding_settings(config.embeddings)
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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Synthesis:
    """Rounds of problems, from seeds to rows."""

    config: SynthesisConfig
    generate: Generate
    vote: Vote
    known: Known
    output: _Output

    def run(self, opened: Sequence[OpenSource]) -> None:
        config = self.config
        keep = with_tests if config.answer_seeds == "yes" else problem_alone
        read = self._taken(read_seeds(opened, self.known.words, keep=keep))
        seeds = choose_seeds(read, num=config.max_seeds)
        if not seeds:
            raise ConfigError(f"seeds {sorted(config.seeds)} hold no problem.")
        if config.answer_seeds == "yes":
            answerable = self._taken(map(_answerable, seeds))
            for _ in self._solved(answerable, part="seeds"):
                pass
        if self.known.meanings and config.num_rounds:
            self.known.meanings.add(seeds)
        for number in range(1, config.num_rounds + 1):
            part = f"round {number}"
            problems = proposed(
                config, seeds, self.generate, known=self.known, round_number=number
            )
            seeds = list(self._solved(self._taken(problems), part=part))
            logging.info("synthesise: %s, %d problems accepted", part, len(seeds))
            if not seeds:
                return

    def _taken(self, results: Iterable[Row | Rejection]) -> Iterator[Row]:
        """Writes what was turned away, and yields the rest."""
        for result in results:
            if isinstance(result, Rejection):
                self.output.reject(result)
            else:
                yield result

    def _solved(self, problems: Iterable[Row], *, part: str) -> Iterator[Row]:
        """Solves problems, writes those with a majority, and yields them as seeds."""
        config = self.config
        for batch in itertools.batched(problems, config.batch_problems):
            num = config.solutions_per_problem
            prompts = [_prompt(config, row) for row in batch for _ in range(num)]
            replies = self.generate(prompts, config.solution_sampling)
            solutions = zip(batch, itertools.batched(replies, num), strict=True)
            tried = [_try(config, problem, samples) for problem, samples in solutions]
            voted = iter(self.vote([row for row in tried if isinstance(row, Row)]))
            for row in tried:
                judged = row if isinstance(row, Rejection) else next(voted)
                if isinstance(judged, Rejection):
                    self.output.reject(judged)
                else:
                    self.output.accept(_graded(judged), part)
                    yield problem_alone(judged)


def _answerable(seed: Row) -> Row | Rejection:
    if seed.verifier != coding_tasks.VERIFIER or coding_tasks.has_tests(seed):
        return seed
    detail = "it has no inputs and outputs that programs could be compared by"
    return reject(seed, step="solve", reason="no_tests", detail=detail)


def _prompt(config: SynthesisConfig, problem: Row) -> str:
    is_coding = problem.verifier == coding_tasks.VERIFIER
    asked = config.coding.solution_prompt if is_coding else config.solution_prompt
    return asked.replace("{problem}", prompt_text(problem))


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
