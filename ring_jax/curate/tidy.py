# SPDX-License-Identifier: Apache-2.0
"""Characters: one form of Unicode, one end of line, none that steers a terminal."""

import dataclasses
import re
import unicodedata

from ring_jax.config import ConfigError
from ring_jax.data.schema import Row

# All of C0 and C1 but tab and line feed; carriage returns are gone by then.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def tidy(row: Row) -> Row:
    """Brings a row's texts into NFC with line feeds alone.

    Raises:
      ConfigError: a text holds control characters or half a surrogate pair.
    """
    messages = tuple(
        dataclasses.replace(
            turn,
            content=_tidy_text(turn.content, row.id),
            think=_tidy_text(turn.think, row.id),
        )
        for turn in row.messages
    )
    return dataclasses.replace(
        row,
        id=_tidy_text(row.id, row.id),
        messages=messages,
        text=_tidy_text(row.text, row.id),
        answer=_tidy_text(row.answer, row.id),
    )


def _tidy_text(text: str, where: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    if found := _CONTROL.search(text):
        raise ConfigError(
            f"row {where!a}: control character U+{ord(found[0]):04X} at "
            f"{found.start()}."
        )
    return unicodedata.normalize("NFC", text)
