# SPDX-License-Identifier: Apache-2.0
"""What a reply answers in the end."""

import re

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_STATED = re.compile(
    r"(?:(?:final answer|the answer|answer|答案)\s*(?:is|:|\uff1a|=|为|是)+|####)"
    r"\s*(.+)",
    re.IGNORECASE,
)
_THINK = re.compile(r"\A\s*<think>(.*?)</think>", re.DOTALL)


def split_reasoning(text: str) -> tuple[str, str]:
    """Splits a reply into the reasoning at its beginning, and the rest."""
    found = _THINK.match(text)
    return (found[1].strip(), text[found.end() :]) if found else ("", text)


def without_reasoning(text: str) -> str:
    """Returns what follows the reasoning at the beginning of a reply."""
    return split_reasoning(text)[1]


def final_answer(text: str) -> str:
    r"""Returns the last `\boxed{...}`, what follows the last "answer is", or all."""
    text = without_reasoning(text)
    return boxed_answer(text) or stated_answer(text) or text.strip()


def boxed_answer(text: str) -> str:
    r"""Returns what the last `\boxed{...}` holds; empty where there is none."""
    starts = list(_BOXED.finditer(text))
    return _in_braces(text, starts[-1].end()) if starts else ""


def stated_answer(text: str) -> str:
    """Returns what follows the last "answer is"; empty where nothing does."""
    stated = _STATED.findall(text)
    return stated[-1].strip().rstrip(".").strip("*$ ") if stated else ""


def _in_braces(text: str, start: int) -> str:
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place].strip()
    return text[start:].strip()
