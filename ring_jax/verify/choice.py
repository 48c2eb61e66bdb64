# SPDX-License-Identifier: Apache-2.0
"""Multiple choice: one letter, in any of its usual spellings, or the option's text."""

import re
import string
from collections.abc import Mapping
from typing import Any

from ring_jax.config import ConfigError
from ring_jax.verify.final_answer import boxed_answer, stated_answer, without_reasoning
from ring_jax.verify.match import normalize

_LETTERS = string.ascii_uppercase[:10]

# A letter and nothing else, whatever is around it: "(b)", "**B.**", "Option B".
_ALONE = re.compile(r"\W*(?:(?:option|choice|answer)\W+|选项\W*)?([A-Za-z])\W*")
# A letter in front of something: "(B) Paris", "B. Paris", "B because ...".
_LEADING = re.compile(
    r"[^\w(]*(?:\(([A-Za-z])\)(?!\s*(?:or|and)\b)"
    r"|([A-Z])(?:[.):,;]|\s+(?:because|since)\b))"
)
# Somewhere in prose; only forms that are no words.
_INSIDE = re.compile(r"\(([A-Z])\)|(?i:option|choice)\s+\(?([A-Z])\b")


def is_chosen(reply: str, answer: str, metadata: Mapping[str, Any]) -> bool:
    """Compares the chosen letter with the gold one.

    Args:
      reply: in which the letter is looked for at the end, then anywhere.
      answer: a letter, or the text of an option.
      metadata: `choices` lists the options' texts, or maps letters to them; without
        it, letters go from A to J.

    Raises:
      ConfigError: the gold answer is none of the options.
    """
    options = _options(metadata.get("choices"))
    gold = _letter(answer.strip(), options)
    if not gold:
        raise ConfigError(
            f"verifier 'choice': answer={answer!r} is none of {list(options)}."
        )
    return chosen_letter(reply, options) == gold


def chosen_letter(reply: str, options: Mapping[str, str]) -> str:
    """Returns the letter that a reply decides for; empty where it does not."""
    text = without_reasoning(reply).strip()
    for said in (boxed_answer(text), stated_answer(text), text):
        if letter := _letter(said, options):
            return letter
    inside = {one or two for one, two in _INSIDE.findall(text)} & set(options)
    return inside.pop() if len(inside) == 1 else ""


def _options(choices: Any) -> Mapping[str, str]:
    if choices is None:
        return dict.fromkeys(_LETTERS, "")
    if isinstance(choices, Mapping):
        return {letter.upper(): text for letter, text in choices.items()}
    return dict(zip(string.ascii_uppercase, choices, strict=False))


def _letter(said: str, options: Mapping[str, str]) -> str:
    plain = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*", "", said).strip()
    same = [letter for letter, text in options.items() if _is_text(plain, text)]
    if len(same) == 1:
        return same[0]
    if found := _ALONE.fullmatch(plain):
        letter = found[1].upper()
    elif found := _LEADING.match(plain):
        letter = (found[1] or found[2]).upper()
    else:
        return ""
    return letter if letter in options else ""


def _is_text(said: str, option: str) -> bool:
    return bool(option) and normalize(said.strip("{}$ ")) == normalize(option) != ""
