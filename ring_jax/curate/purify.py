# SPDX-License-Identifier: Apache-2.0
"""Defects of generated replies: loops, cuts, broken LaTeX, absent images, and others.

The rules are plain properties of the text, each with the value that decided in its
detail; they prefer to keep a doubtful row.
"""

import dataclasses
import re
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from ring_jax.config import PurifyConfig
from ring_jax.curate.rows import Rejection, prompt_text, reject, reply_text
from ring_jax.data import words
from ring_jax.data.schema import Row

STEP = "purify"

REPEATED_NGRAM = 8
MAX_REPEATED_SHARE = 0.5
"""Of a reply's 8-grams that it said before. Long derivations stay far below."""
MIN_WORDS = 80
TAIL_CHARACTERS = 2000
MIN_TAIL_RATIO = 0.08
"""Compressed size of a loop of the last 2,000 characters; prose has about 0.4."""
LONG_REPLY = 400
"""Characters from which a reply is expected to end as sentences do."""
MIN_FOREIGN_LETTERS = 10
MIN_FOREIGN_SHARE = 0.02

_EMPTY_THINK = re.compile(r"<think>\s*</think>\s*")
_OPEN_END = re.compile(
    r"(?:[,(\[{=+*/&]|\b(?:the|a|an|of|and|or|to|is|are|that|which|with|for|in|on|by|so"
    r"|because|if|then|we|let|but))\s*\Z"
)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_ENVIRONMENT = re.compile(r"\\(begin|end)\s*\{([^}]*)\}")
_IMAGE = re.compile(
    r"""
      !\[[^\]]*\]\([^)]*\) | <img\b | <image> | \[image\] | \\includegraphics
    | \b(?:in|from|see|shown[ ]in|as[ ]in|on)[ ]the[ ]
        (?:figure|diagram|picture|image|photo|graph[ ]shown)
        [ ]?(?:below|above|shown|on[ ]the[ ](?:left|right)|\d)
    | \bthe[ ](?:figure|diagram|picture|image)[ ]
        (?:below|above|on[ ]the[ ](?:left|right))
    | \bas[ ]shown[ ](?:in[ ]the[ ](?:figure|diagram|picture|image)|below)
    | 如图|下图|上图|图中所示
    """,
    re.VERBOSE | re.IGNORECASE,
)
_TRANSLATION = re.compile(r"translat|language|翻译|übersetz|tradu[iz]", re.IGNORECASE)
_SCRIPTS = {
    "Han": re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]"),
    "kana": re.compile(r"[\u3040-\u30ff]"),
    "Hangul": re.compile(r"[\uac00-\ud7af]"),
    "Cyrillic": re.compile(r"[\u0400-\u04ff]"),
    "Arabic": re.compile(r"[\u0600-\u06ff]"),
    "Hebrew": re.compile(r"[\u0590-\u05ff]"),
    "Thai": re.compile(r"[\u0e00-\u0e7f]"),
    "Devanagari": re.compile(r"[\u0900-\u097f]"),
}


def purify(rows: Sequence[Row], *, config: PurifyConfig) -> list[Row | Rejection]:
    """Turns away rows by the first of the checks that `config` asks for.

    Plain texts pass: they have no reply.
    """
    checks = {
        reason: check
        for reason, check in CHECKS.items()
        if getattr(config, reason) == "drop"
    }
    if config.empty_think == "strip":
        rows = [_without_empty_think(row) for row in rows]
    return [_purify(row, checks) if row.messages else row for row in rows]


def _purify(row: Row, checks: dict[str, Callable[[Row], str]]) -> Row | Rejection:
    for reason, check in checks.items():
        if detail := check(row):
            return reject(row, step=STEP, reason=reason, detail=detail)
    return row


def _without_empty_think(row: Row) -> Row:
    if not row.messages or not _EMPTY_THINK.search(row.reply.content):
        return row
    content = _EMPTY_THINK.sub("", row.reply.content)
    if not content.strip():
        return row
    reply = dataclasses.replace(row.reply, content=content)
    return dataclasses.replace(row, messages=(*row.messages[:-1], reply))


def _empty_think(row: Row) -> str:
    is_empty = _EMPTY_THINK.search(row.reply.content)
    return "the think block holds nothing" if is_empty else ""


def _truncation(row: Row) -> str:
    reply = row.reply.content
    prose = _CODE.sub("", reply)
    if row.metadata.get("finish_reason") == "length":
        return "its generator stopped at the length limit"
    if "<think>" in prose and "</think>" not in prose:
        return "its think block never ends"
    if reply.count("```") % 2:
        return "its last code block never ends"
    if len(reply) >= LONG_REPLY and (found := _OPEN_END.search(prose)):
        return f"it ends in the middle of a sentence: {prose[-40:]!r} ({found[0]!r})"
    return ""


def _repetition(row: Row) -> str:
    reply = reply_text(row)
    tail = reply[-TAIL_CHARACTERS:].encode()
    if len(tail) >= TAIL_CHARACTERS:
        ratio = len(zlib.compress(tail, 6)) / len(tail)
        if ratio < MIN_TAIL_RATIO:
            return f"its end is a loop: it compresses to {ratio:.3f}, below 0.08"
    ngrams = words.hash_ngrams(words.hash_words(reply), REPEATED_NGRAM)
    if len(ngrams) < MIN_WORDS:
        return ""
    share = 1.0 - len(np.unique(ngrams)) / len(ngrams)
    if share <= MAX_REPEATED_SHARE:
        return ""
    return f"{share:.0%} of its 8-grams were there before; at most 50% may"


def _broken_latex(row: Row) -> str:
    # Reasoning may break off a formula; the answer may not.
    text = _CODE.sub("", row.reply.content)
    opened: list[str] = []
    for kind, name in _ENVIRONMENT.findall(text):
        if kind == "begin":
            opened.append(name)
        elif not opened or opened.pop() != name:
            return f"\\end{{{name}}} closes what was not opened"
    if opened:
        return f"\\begin{{{opened[-1]}}} is never closed"
    for left, right in ((r"\[", r"\]"), (r"\(", r"\)"), (r"\left", r"\right")):
        if (count := _count(text, left)) != (closed := _count(text, right)):
            return f"{count} times {left} and {closed} times {right}"
    if len(re.findall(r"(?<!\\)\$\$", text)) % 2:
        return "an odd number of $$"
    if broken := re.search(r"\\(?:boxed|frac|sqrt|text)\s*\{", text):
        depth = _depth(text[broken.start() :])
        if depth > 0:
            return f"{depth} braces are open at the end, from {broken[0]!r} on"
    return ""


def _count(text: str, command: str) -> int:
    # Not \\[2pt] (a line end with a gap), and not \leftarrow for \left.
    suffix = r"(?![a-zA-Z])" if command[-1].isalpha() else ""
    return len(re.findall(r"(?<!\\)" + re.escape(command) + suffix, text))


def _depth(text: str) -> int:
    plain = re.sub(r"\\[{}]", "", text)
    return plain.count("{") - plain.count("}")


def _missing_image(row: Row) -> str:
    found = _IMAGE.search(prompt_text(row))
    return f"{found[0]!r} points at an image that the row lacks" if found else ""


def _mixed_languages(row: Row) -> str:
    prompt, reply = prompt_text(row), reply_text(row)
    if reply.isascii() or _TRANSLATION.search(prompt):
        return ""
    num_letters = sum(map(str.isalpha, reply))
    for name, script in _SCRIPTS.items():
        count = len(script.findall(reply))
        is_foreign = count >= max(MIN_FOREIGN_LETTERS, MIN_FOREIGN_SHARE * num_letters)
        if is_foreign and not script.search(prompt):
            return f"{count} letters of the reply are {name}, none of the prompt"
    return ""


CHECKS: dict[str, Callable[[Row], str]] = {
    "empty_think": _empty_think,
    "truncation": _truncation,
    "repetition": _repetition,
    "broken_latex": _broken_latex,
    "missing_image": _missing_image,
    "mixed_languages": _mixed_languages,
}
"""Reason, a field of `PurifyConfig` -> what is wrong; empty where nothing is."""
