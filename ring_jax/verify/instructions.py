# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of instructions whose fulfilment a program can see: IFEval and IFBench.

A row names its instructions by their published ids, with the arguments of each. Strict
accuracy reads a reply as it is. Loose accuracy takes an instruction as followed where
any of eight readings follows it: the reply without its first line, its last line or
both, each also without asterisks.

Source: arXiv:2311.07911, section 2.2.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ring_jax.config import ConfigError
from ring_jax.verify.final_answer import without_reasoning

type Arguments = Mapping[str, Any]
type Checker = Callable[[str, Arguments], bool]


@dataclasses.dataclass(frozen=True, slots=True)
class InstructionSet:
    """The instructions of one benchmark.

    Every method takes `metadata` with `instruction_id_list` and `kwargs`, one mapping
    per id, as published, and raises `ConfigError` where an id is unknown, an argument
    is missing or has another value than the checker knows, or a package for languages
    and sentences is missing.
    """

    name: str
    """Of its verifier, for errors."""
    checkers: Mapping[str, Checker]

    def first_failure(self, reply: str, answer: str, metadata: Arguments) -> str:
        """Checks all instructions of a row on the reply as it is.

        Args:
          reply: any text; reasoning at its beginning is left out.
          answer: not read; many replies are right.
          metadata: of the row.

        Returns:
          Which instructions are not followed, in one line; empty where all are.
        """
        del answer
        text = without_reasoning(reply)
        return _failure(metadata, self.followed(text, metadata))

    def first_loose_failure(self, reply: str, answer: str, metadata: Arguments) -> str:
        """As `first_failure`, on eight readings of the reply."""
        del answer
        text = without_reasoning(reply)
        return _failure(metadata, self.followed_loosely(text, metadata))

    def followed(self, text: str, metadata: Arguments) -> list[bool]:
        """Tells of each instruction whether a text follows it."""
        return [self._is_followed(text, *pair) for pair in self._pairs(metadata)]

    def followed_loosely(self, text: str, metadata: Arguments) -> list[bool]:
        """Tells of each instruction whether a reading of a text follows it."""
        lines = text.split("\n")
        whole = [text, *("\n".join(part).strip() for part in _inner(lines))]
        readings = [*whole, *(reading.replace("*", "") for reading in whole)]
        return [
            any(self._is_followed(reading, *pair) for reading in readings)
            for pair in self._pairs(metadata)
        ]

    def _pairs(self, metadata: Arguments) -> list[tuple[str, Arguments]]:
        names, arguments = metadata["instruction_id_list"], metadata["kwargs"]
        if not names or len(names) != len(arguments):
            raise ConfigError(
                f"verifier {self.name!r}: {len(names)} ids and {len(arguments)} kwargs;"
                " a row has one kwargs per id, and at least one."
            )
        return list(zip(names, arguments, strict=True))

    def _is_followed(self, text: str, name: str, arguments: Arguments) -> bool:
        if name not in self.checkers:
            raise ConfigError(
                f"verifier {self.name!r}: instruction {name!r} must be one of "
                f"{list(self.checkers)}."
            )
        # Published files list all arguments of all instructions, most of them null.
        known = {key: value for key, value in arguments.items() if value is not None}
        try:
            return bool(text.strip()) and self.checkers[name](text, known)
        except KeyError as missing:
            raise ConfigError(
                f"verifier {self.name!r}: instruction {name} has arguments {known}, "
                f"and lacks {missing}."
            ) from None


def _inner(lines: Sequence[str]) -> tuple[Sequence[str], ...]:
    return lines[1:], lines[:-1], lines[1:-1]


def _failure(metadata: Arguments, verdicts: Sequence[bool]) -> str:
    names = metadata["instruction_id_list"]
    failed = [name for name, is_met in zip(names, verdicts, strict=True) if not is_met]
    if not failed:
        return ""
    return f"{len(failed)} of {len(names)} not followed: {', '.join(failed)}"
