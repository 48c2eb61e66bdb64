# SPDX-License-Identifier: Apache-2.0
"""Instructions whose fulfilment is a property of the text."""

import re
from collections.abc import Mapping
from typing import Any

from ring_jax.config import ConfigError


def are_met(reply: str, answer: str, metadata: Mapping[str, Any]) -> bool:
    """Checks every constraint of `metadata["constraints"]`.

    Kinds: `words` (these words, in order), `choices` (so many different ones of these),
    `form` (count, separator, case, ending).

    Raises:
      ConfigError: a constraint has an unknown kind.
    """
    del answer  # one example of many
    return all(_is_met(reply, constraint) for constraint in metadata["constraints"])


def _is_met(reply: str, constraint: Mapping[str, Any]) -> bool:
    match constraint:
        case {"kind": "words", "words": words}:
            return _words(reply) == list(words)
        case {"kind": "choices", "choices": choices, "count": count}:
            given = _words(reply)
            is_distinct = len(set(given)) == len(given) == count
            return is_distinct and set(given) <= set(choices)
        case {"kind": "form"}:
            return _has_form(reply, constraint)
    raise ConfigError(f"constraint {constraint!r} has no kind that is known.")


def _words(reply: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", reply.lower())


def _has_form(reply: str, form: Mapping[str, Any]) -> bool:
    pieces = reply.removesuffix(form["ending"]).split(form["separator"])
    is_plain = all(piece.isalpha() for piece in pieces)
    is_case = reply == (reply.upper() if form["case"] == "upper" else reply.lower())
    has_ending = reply.endswith(form["ending"])
    return has_ending and is_plain and is_case and len(pieces) == form["count"]
