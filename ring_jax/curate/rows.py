# SPDX-License-Identifier: Apache-2.0
"""What passes between the steps of a curation: rows, and rows that were turned away."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ring_jax.data.schema import Row, conversation_text

EXCERPT_CHARACTERS = 400
"""Of a removed row's text, as the quarantine and the manifest show it."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RawRecord:
    """A record as its file has it; nothing of it was checked."""

    where: str
    """File and line, or file and record; the row's id when it brings none."""
    fields: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """One row that was turned away, and the one reason why."""

    step: str
    reason: str
    id: str
    source: str
    detail: str
    """One sentence with the values that decided."""
    excerpt: str
    """The beginning of the row's text."""
    other: str = ""
    """What it collides with: the kept row's id, or the evaluation item."""


Step = Callable[[Sequence[Row]], Sequence[Row | Rejection]]
"""A pure function of rows: it returns each row, changed or not, or its rejection."""


def reject(
    row: Row, *, step: str, reason: str, detail: str, other: str = ""
) -> Rejection:
    """Turns a row away, for a reason in one word and a detail in one sentence."""
    return Rejection(
        step=step,
        reason=reason,
        id=row.id,
        source=row.source,
        detail=" ".join(detail.split()),
        excerpt=excerpt(conversation_text(row)),
        other=other,
    )


def excerpt(text: str) -> str:
    """Returns the beginning of a text, with what JSON cannot carry made visible."""
    head = text[:EXCERPT_CHARACTERS].encode("utf-8", "backslashreplace").decode("utf-8")
    return head + ("…" if len(text) > EXCERPT_CHARACTERS else "")


def prompt_text(row: Row) -> str:
    """Returns what a row asks: all turns before the reply, or a plain text whole."""
    return row.text or "\n".join(turn.content for turn in row.messages[:-1])


def reply_text(row: Row) -> str:
    """Returns the reply with its reasoning; empty for a plain text."""
    return (
        "\n".join(filter(None, (row.reply.think, row.reply.content)))
        if (row.messages)
        else ""
    )
