# SPDX-License-Identifier: Apache-2.0
"""Rows that are nowhere until they are asked for: a generator, a seed and a range.

Row i is a pure function of the task, its settings, the seed and i: no row needs another
one, none is listed, and a range of ten million costs what its length index costs. The
problems are reasoning-gym's; the wording and the derivation are those of
`reasoning_tasks` where a level is named, and the package's own where none is.

Training and held-out rows never meet. Each row is the first acceptable one of some
draws of its own, and an eighth of all problems, chosen by their text alone, is
acceptable for held-out rows only (`split.is_heldout`), in every range, seed and run.
"""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

from ring_jax.config import ConfigError, SourceConfig
from ring_jax.data.schema import Message, Row, row_to_json
from ring_jax.data.sources import packages
from ring_jax.data.sources.reasoning import (
    DIFFICULTY,
    UNGRADED_KEYS,
    level_settings,
)
from ring_jax.data.sources.reasoning_tasks import TASKS, Problem
from ring_jax.data.sources.split import SourceRows, digest, is_heldout

DRAWS = 256
"""Problems that a row is chosen from. One in eight is held out, so that a held-out row
finds none among so many once in 10^14."""
NUM_SAMPLED = 16
"""Rows whose text is part of what the source is: another Python or another wording
shows itself in them."""

RENEWED = frozenset({"acre", "gsm_symbolic"})
"""Generators that draw when they are made, and not when they are asked."""
UNFIT = frozenset(
    {
        "isomorphic_strings",
        "knight_swap",
        "list_functions",
        "polynomial_multiplication",
        "ransom_note",
        "word_ladder",
    }
)
"""Generators that give another process other problems (they walk through sets, whose
order it chooses anew), or that draw all their problems at once."""
OWN_FORM = frozenset({"number_filtering", "number_sorting"})
"""Tasks whose verifier of ours reads our wording of an answer only."""

Entry = dict[str, Any]


def read_virtual(config: SourceConfig, *, name: str, seed: int) -> SourceRows:
    """Opens `num_rows` virtual rows from `first_row` on; held-out rows are generated.

    Raises:
      ConfigError: the task, the level or a parameter is unknown, the generator does not
        give the same problems everywhere, or reasoning-gym is missing.
    """
    package = packages.installed("reasoning-gym", licence="Apache-2.0")
    generator = _generator(config, name=name, seed=seed)
    origin = {"source": name, **dataclasses.asdict(package)}
    numbers = range(config.first_row, config.first_row + config.num_rows)
    train = VirtualRows(generator, numbers, part="train", origin=origin)
    first = config.first_row
    heldout = _distinct(
        VirtualRows(
            generator,
            range(first, first + 4 * config.num_heldout),
            part="heldout",
            origin=origin,
        ),
        config.num_heldout,
    )
    return SourceRows(train, heldout, _identity(train, package.package))


@dataclasses.dataclass(frozen=True, slots=True)
class Generator:
    """A reasoning-gym data set without end, asked by number."""

    task: str
    level: str
    settings: Mapping[str, Any]
    seed: int
    where: str
    """The source, as errors name it."""

    def identity(self) -> str:
        """Returns all that its problems follow from beside the package, as JSON."""
        return json.dumps([self.task, self.level, self.settings, self.seed])

    def open(self) -> Callable[[int], tuple[Entry, Any]]:
        """Returns what gives the entry of a draw, and the data set that grades it.

        Items are functions of seed + index. Seeds are hashed, so that neighbouring ones
        do not walk through the same problems.
        """
        import reasoning_gym  # an optional dependency; the reader has checked it

        start = digest(self.identity()) >> 16

        def make(shift: int) -> Any:
            return reasoning_gym.create_dataset(
                self.task, size=1, seed=start + shift, **self.settings
            )

        if self.task in RENEWED:

            def renewed(draw: int) -> tuple[Entry, Any]:
                return (dataset := make(draw))[0], dataset

            return renewed
        dataset = make(0)

        def asked(draw: int) -> tuple[Entry, Any]:
            return dataset[draw], dataset

        return asked


class VirtualRows(Sequence[Row]):
    """Rows of a generator by number; each is generated when it is asked for."""

    def __init__(
        self,
        generator: Generator,
        numbers: range,
        *,
        part: str,
        origin: Mapping[str, Any],
    ):
        """Takes a range of numbers.

        Args:
          generator: of the problems.
          numbers: of the rows, one after the other.
          part: `train` or `heldout`.
          origin: source, package and licence, in the names of `Row`'s fields.
        """
        self.generator, self.numbers = generator, numbers
        self._part, self._origin = part, dict(origin)
        self._draw: Callable[[int], tuple[Entry, Any]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A worker process makes a generator of its own.
        return vars(self) | {"_draw": None}

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, number: int) -> Row: ...
    @overload
    def __getitem__(self, number: slice) -> "VirtualRows": ...

    def __getitem__(self, number: int | slice) -> "Row | VirtualRows":
        if isinstance(number, slice):
            return VirtualRows(
                self.generator,
                self.numbers[number],
                part=self._part,
                origin=self._origin,
            )
        return self._row(self.numbers[number])

    def _row(self, number: int) -> Row:
        if self._draw is None:
            self._draw = self.generator.open()
        for draw in range(number * DRAWS, (number + 1) * DRAWS):
            entry, dataset = self._draw(draw)
            problem = _problem(self.generator, entry, dataset)
            if problem is None:
                continue
            item = f"{self.generator.task}:{problem.prompt}"
            if is_heldout(item) == (self._part == "heldout"):
                return self._made(number, entry, problem)
        raise ConfigError(
            f"{self.generator.where}: row {number} finds no {self._part} problem among "
            f"{DRAWS} of {self.generator.task}; widen its parameters, or name no level."
        )

    def _made(self, number: int, entry: Entry, problem: Problem) -> Row:
        task, level = self.generator.task, self.generator.level
        is_graded = task in TASKS and (level or task not in OWN_FORM)
        graded = {k: v for k, v in entry["metadata"].items() if k not in UNGRADED_KEYS}
        read = {"entry": {"answer": entry["answer"], "metadata": graded}}
        return Row(
            id=f"{self._origin['source']}/{self._part}/{number}",
            messages=(
                Message("user", problem.prompt),
                Message("assistant", problem.answer, think=problem.think),
            ),
            domain="reasoning",
            task=task,
            level=level,
            difficulty=DIFFICULTY.get(level, 0.0),
            answer=problem.answer,
            verifier=f"reasoning_gym/{task}" if is_graded else "",
            metadata=read if is_graded else {},
            **self._origin,
        )


def _problem(generator: Generator, entry: Entry, dataset: Any) -> Problem | None:
    """Words an entry; None where its answer cannot be taught."""
    if not generator.level:
        think = entry["metadata"].get("answer_cot", "")
        answer = str(entry["answer"] or "").strip()
        return Problem(entry["question"], think, answer) if answer else None
    try:
        problem = TASKS[generator.task].write(entry)
    except (ValueError, KeyError, IndexError, TypeError):
        # Parameters may ask for problems that our derivation was not written for.
        return None
    if problem is None:
        return None
    answer = problem.native_answer or problem.answer
    return problem if dataset.score_answer(answer, entry) >= 1.0 else None


def _generator(config: SourceConfig, *, name: str, seed: int) -> Generator:
    import reasoning_gym.factory  # an optional dependency; the reader has checked it

    where = f"data.sources.{name}"
    known = reasoning_gym.factory.DATASETS
    if config.task not in known or config.task == "composite":
        near = difflib.get_close_matches(config.task, known, n=1)
        advice = f"did you mean {near[0]!r}?" if near else "reasoning-gym lists them."
        raise ConfigError(f"{where}.task={config.task!r} is no task; {advice}")
    if config.task in UNFIT:
        raise ConfigError(
            f"{where}.task={config.task!r} cannot be virtual: its problems are no "
            "function of seed and number; choose another task."
        )
    settings = dict(config.parameters)
    if config.level:
        settings = level_settings(config, name) | settings
    _, schema = known[config.task]
    fields = {field.name for field in dataclasses.fields(schema)} - {"seed", "size"}
    if unknown := sorted(set(settings) - fields):
        raise ConfigError(
            f"{where}.parameters: {config.task} has no {unknown}; it has "
            f"{sorted(fields)}."
        )
    chosen = seed if config.generator_seed is None else config.generator_seed
    generator = Generator(config.task, config.level, settings, chosen, where)
    try:
        generator.open()(config.first_row * DRAWS)
    except (AssertionError, ValueError, TypeError, ArithmeticError, LookupError) as e:
        what = " ".join(f"{type(e).__name__}: {e}".split())[:200]
        raise ConfigError(
            f"{where}.parameters: {config.task} makes no problem of {settings} "
            f"({what}); correct them."
        ) from None
    return generator


def _distinct(rows: Sequence[Row], count: int) -> list[Row]:
    by_prompt: dict[str, Row] = {}
    for row in rows:
        if len(by_prompt) == count:
            break
        by_prompt.setdefault(row.messages[0].content, row)
    return list(by_prompt.values())


def _identity(rows: VirtualRows, package: str) -> str:
    """Hashes what the rows follow from, and the text of some of them."""
    total = hashlib.blake2b(digest_size=16)
    numbers = rows.numbers
    total.update(f"{package} {rows.generator.identity()} {numbers}".encode())
    for place in range(0, len(rows), max(1, len(rows) // NUM_SAMPLED)):
        total.update(row_to_json(rows[place]).encode())
    return total.hexdigest()
