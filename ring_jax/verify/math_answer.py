# SPDX-License-Identifier: Apache-2.0
"""Mathematical answers, equal by meaning: 1/2 is 0.5, and 3, -2 is x = -2 or x = 3.

Parsing and comparison are math-verify's. Its time limits rest on signals, which a
thread has none of, so they are off: what hangs is ended by `Sandbox`.
"""

import functools
import logging
import re
from collections.abc import Mapping
from typing import Any

from ring_jax.config import ConfigError
from ring_jax.verify import choice
from ring_jax.verify.final_answer import boxed_answer, stated_answer, without_reasoning
from ring_jax.verify.match import normalize

_MARKED = re.compile(r"\$|\\boxed|\\\(|\\\[|\\begin")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}")
_SPACES = re.compile(r"\\[,;:! ]|\\q?quad\b|\\(?:left|right)\b|[\s$]")
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[\s,'-]+[^\W\d_]+)*")
_FUNCTIONS = re.compile(
    r"\\[a-zA-Z]+|(?<![a-zA-Z])(?:sqrt|pi|infty|sin|cos|tan|ln|log)"
)
_NAMES = {"pi", "infty", "inf", "infinity"}
"""Words that are numbers."""
# Beyond this, a reply's end holds the answer, and its beginning costs parsing time.
_MAX_CHARACTERS = 4000
_MAX_ANSWER_CHARACTERS = 1000


def is_equal(reply: str, answer: str, metadata: Mapping[str, Any]) -> bool:
    r"""Compares what a reply ends in with the gold answer.

    The end of a reply is its last `\boxed{}`, what follows its last "answer is", or
    the last expression. The gold answer is LaTeX with or without dollars, plain text,
    or the letter of an option (then as `choice`; `metadata["choices"]` as there).

    Raises:
      ConfigError: math-verify is missing.
    """
    text = without_reasoning(reply)[-_MAX_CHARACTERS:]
    final = boxed_answer(text) or stated_answer(text)
    gold = boxed_answer(answer) or answer.strip()
    if _canonical(final or text) == _canonical(gold) != "":
        return True
    if re.fullmatch(r"\(?[A-J]\)?", gold):
        return choice.is_chosen(reply, gold, metadata)
    words = _TEXT.sub(r"\1", gold).strip(" .$")
    if _WORDS.fullmatch(words) and words.lower() not in _NAMES:
        # As an expression, "no" is the product n o, and equal to "on".
        said = _TEXT.sub(r"\1", final or text)
        return normalize(said) == normalize(words)
    return _is_same_expression(text, final, gold)


def _is_same_expression(text: str, final: str, gold: str) -> bool:
    wanted = _parse_bare(gold)
    if not wanted:
        return False
    given = _parse_bare(final) if final else _parse_bare_or_last(text)
    library = _library()
    return library.verify(wanted, given, timeout_seconds=None)


def _parse_bare_or_last(text: str) -> list[Any]:
    """Reads a reply that is an expression, or the last expression of prose."""
    is_bare = len(text) < 100 and not _MARKED.search(text) and not _has_words(text)
    return _parse_bare(text) if is_bare else _parse(text)


def _has_words(text: str) -> bool:
    plain = _FUNCTIONS.sub("", _TEXT.sub("", text))
    return re.search(r"[^\W\d_]{3,}|[^\W\d_]{2}\s+[^\W\d_]{2}", plain) is not None


def _parse_bare(expression: str) -> list[Any]:
    """Reads an expression that stands alone, as if it were boxed."""
    if len(expression) > _MAX_ANSWER_CHARACTERS:
        return []
    expression = _without_currency(expression)
    if _MARKED.search(expression) and not expression.startswith("\\begin"):
        return _parse(expression)
    return _parse(f"\\boxed{{{_as_latex(expression)}}}")


def _without_currency(expression: str) -> str:
    text = re.sub(r"\\\$|[€£¥]", "", expression)
    return text.replace("$", "") if text.count("$") == 1 else text


def _as_latex(expression: str) -> str:
    """Writes plain forms that LaTeX has other words for."""
    text = expression.strip().rstrip(".").replace("\N{MINUS SIGN}", "-")
    text = re.sub(r"(?<!\\)\b(sqrt)\s*\(([^()]*)\)", r"\\sqrt{\2}", text)
    text = re.sub(r"(?<!\\)\b(pi|infty|sin|cos|tan|ln|log)\b", r"\\\1", text)
    text = re.sub(r"(?<=\d)[eE]([-+]?\d{1,3})\b", r"\\times 10^{\1}", text)
    text = text.replace("°", "^\\circ").replace("π", "\\pi ").replace("∞", "\\infty ")
    return re.sub(r"(?<!\\)%", r"\\%", text.replace("*", "\\cdot "))


def _parse(text: str) -> list[Any]:
    library = _library()
    configs = [
        library.LatexExtractionConfig(boxed_match_priority=0),
        library.ExprExtractionConfig(),
    ]
    return library.parse(
        text, configs, fallback_mode="no_fallback", parsing_timeout=None
    )


def _canonical(expression: str) -> str:
    """Writes an expression without blanks, sizes and kinds of fraction."""
    text = re.sub(r"\\[dtc]frac", r"\\frac", expression.strip().rstrip("."))
    return _SPACES.sub("", re.sub(r"\{([:,])\}", r"\1", text))


@functools.cache
def _library() -> Any:
    try:
        import math_verify
    except ModuleNotFoundError:
        raise ConfigError(
            "verifier 'math': math-verify is missing; run pip install "
            "'ring-jax[curate]'."
        ) from None
    # It warns that its time limits are off, once a process.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify
