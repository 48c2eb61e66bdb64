# SPDX-License-Identifier: Apache-2.0
"""Several processes answer as one: the first asks and grades, the others follow.

The arrays of a model belong to all processes, so that all must compute what one wants.
The first tells what it asks; who follows computes the same answers and drops them.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging

from ring_jax import processes
from ring_jax.config import ConfigError
from ring_jax.data.schema import Row, row_from_json, row_to_json
from ring_jax.evaluate.complete import Ask, Completer, Said, Unsaid


class LeadingCompleter:
    """Answers by a completer of all processes; the first process has this one."""

    def __init__(self, completer: Completer):
        """Keeps the completer of this process."""
        self._completer = completer

    def max_new_tokens(self, rows: Sequence[Row], wanted: int) -> int:
        """Returns how many tokens of a reply there is room for, `wanted` at most."""
        return self._completer.max_new_tokens(rows, wanted)

    def complete(self, asked: Sequence[Ask]) -> Iterator[Said | Unsaid]:
        """Tells the others what is asked, and answers with them."""
        processes.json_from_first([_to_json(ask) for ask in asked])
        yield from self._completer.complete(asked)

    def end(self) -> None:
        """Tells the others that nothing more is asked."""
        processes.json_from_first([])


def follow(completer: Completer) -> None:
    """Answers with the first process, whatever that asks, until it ends.

    Errors that the first process meets as well are its own to tell.
    """
    while asked := processes.json_from_first(None):
        try:
            for _ in completer.complete([_from_json(fields) for fields in asked]):
                pass
        except (ConfigError, OSError) as error:
            logging.info("followed until: %s", error)


def _to_json(ask: Ask) -> dict[str, Any]:
    fields = {field.name: getattr(ask, field.name) for field in dataclasses.fields(ask)}
    return fields | {"row": row_to_json(ask.row)}


def _from_json(fields: dict[str, Any]) -> Ask:
    row = row_from_json(fields.pop("row"), where="asked", defaults={})
    return Ask(row=row, **fields)
