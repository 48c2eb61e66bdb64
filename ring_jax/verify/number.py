# SPDX-License-Identifier: Apache-2.0
"""One number, exact or within a relative tolerance."""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from ring_jax.config import ConfigError
from ring_jax.verify.final_answer import boxed_answer, stated_answer, without_reasoning

# Longer numbers are no answer, and cost quadratic time.
_MAX_DIGITS = 1000
_MAX_EXPONENT = 400

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+"
_NUMBER = re.compile(
    rf"""
    (?P<sign>[-+]?)\s*
    (?:
        \\frac\{{(?P<over>\d+)\}}\{{(?P<under>\d+)\}}
      | (?P<whole>{_DIGITS})
        (?:
            \s*/\s*(?P<divisor>\d+)
          | e(?P<e>[-+]?\d+)
          | \s*(?:\*|x|\\times|\\cdot)\s*10\s*\^\s*\{{?(?P<power>[-+]?\d+)\}}?
        )?
    )
    (?P<percent>\s*(?:%|percent\b))?
    """,
    re.VERBOSE | re.IGNORECASE,
)


def is_number(reply: str, answer: str, metadata: Mapping[str, Any]) -> bool:
    r"""Compares the number that a reply ends in with the gold answer's.

    The number is that of the last `\boxed{}`, of the last "answer is", or the last of
    the reply. Exact unless `metadata["relative_tolerance"]` allows a share of the gold
    number. Where only one of the two is a percentage, 50% is 50 as well as 0.5.

    Raises:
      ConfigError: the gold answer is no number, or the tolerance is none.
    """
    gold = _parse(_NUMBER.search(_plain(answer)))
    if gold is None:
        raise ConfigError(f"verifier 'number': answer={answer!r} holds no number.")
    given = _parse(_said(reply))
    if given is None:
        return False
    tolerance = metadata.get("relative_tolerance", 0)
    if not isinstance(tolerance, int | float) or not 0 <= tolerance < 1:
        raise ConfigError(
            f"relative_tolerance={tolerance!r} must be from 0 to below 1."
        )
    (value, is_percent), (wanted, wants_percent) = given, gold
    readings = [value]
    if is_percent != wants_percent:
        readings.append(value * 100 if is_percent else value / 100)
    allowed = Fraction(tolerance) * abs(wanted)
    return any(abs(reading - wanted) <= allowed for reading in readings)


def _said(reply: str) -> re.Match[str] | None:
    text = without_reasoning(reply)
    if final := boxed_answer(text) or stated_answer(text):
        # "x = 3 + 4 = 7" says 7; "7 apples, 3 of them red" says 7.
        return _NUMBER.search(_plain(final).rpartition("=")[2])
    found = None
    for found in _NUMBER.finditer(_plain(text)):  # noqa: B007  (the last is wanted)
        pass
    return found


def _plain(text: str) -> str:
    """Writes signs, separators and fractions in one way."""
    text = text.replace("\N{MINUS SIGN}", "-").replace("\\%", "%")
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"(?<=\d)(?:\{,\}|\\,|\\!|\u202f|\u00a0|(?<=\d)_)(?=\d)", "", text)
    # Currencies may stand between sign and number; a hyphen after a word is no sign.
    text = re.sub(r"\\?[$€£¥]|\\text\s*\{[^{}]*\}", " ", text)
    return re.sub(r"(?<=[\w)])-(?=\d)", " ", text)


def _parse(found: re.Match[str] | None) -> tuple[Fraction, bool] | None:
    """Returns a number and whether it is a percentage, which is divided by 100."""
    if found is None or len(found[0]) > _MAX_DIGITS:
        return None
    exponent = int(found["e"] or found["power"] or 0)
    over = Fraction((found["over"] or found["whole"]).replace(",", "").rstrip("."))
    under = int(found["under"] or found["divisor"] or 1)
    if under == 0 or abs(exponent) > _MAX_EXPONENT:
        return None
    value = over / under * Fraction(10) ** exponent
    is_percent = found["percent"] is not None
    value = value / 100 if is_percent else value
    return (-value if found["sign"] == "-" else value), is_percent
