# SPDX-License-Identifier: Apache-2.0
"""IFBench's instructions `format:...`."""

import collections
import itertools
import re
import string
from collections.abc import Mapping

from ring_jax.verify import english, sentences
from ring_jax.verify.ifbench.punctuation import EDGES, without_punctuation
from ring_jax.verify.instructions import Arguments, Checker

_CLOSES = {")": "(", "]": "[", "}": "{"}


def _nests_brackets(text: str, arguments: Arguments) -> bool:
    """Tells whether a bracket closes while five are open, or after five were open.

    A bracket that closes none, or another one, begins anew.
    """
    del arguments
    is_open: list[str] = []
    depth = 0
    for mark in text:
        if mark in _CLOSES.values():
            is_open.append(mark)
            depth = max(depth, len(is_open))
        elif mark in _CLOSES:
            if not is_open or is_open.pop() != _CLOSES[mark]:
                is_open, depth = [], 0
            elif depth >= 5:
                return True
    return False


def _nests_quotes(text: str, arguments: Arguments) -> bool:
    """Tells whether quotes of both kinds are three levels deep and close again.

    Apostrophes count as quotes.
    """
    del arguments
    is_open: list[str] = []
    depth = 0
    for mark in text:
        if is_open and mark == is_open[-1]:
            is_open.pop()
            if depth - len(is_open) >= 3:
                return True
        elif mark in "\"'":
            is_open.append(mark)
            depth = max(depth, len(is_open))
    return False


def _is_option(text: str, arguments: Arguments) -> bool:
    options: str = arguments["options"]
    separator = next((mark for mark in ("/", "or") if mark in options), ",")
    known = [option.strip() for option in options.split(separator)]
    if re.match(r"\W*[aA]\W*[bB]\W*[cC]", options):
        return text in known  # letters as they are written, with their bracket
    return text.strip(EDGES).lower() in {
        option.strip(EDGES).lower() for option in known
    }


def _has_a_word_a_line(text: str, arguments: Arguments) -> bool:
    # Lines of white space inside count as lines.
    del arguments
    text = without_punctuation(text).strip()
    return sum(map(bool, text.split("\n"))) == len(text.split())


def _has_emoji_behind_sentences(text: str, arguments: Arguments) -> bool:
    # A sentence's emoji may stand behind its mark, where the next one begins.
    del arguments
    plain = [without_punctuation(part).strip() for part in sentences.split(text)]
    return all(
        _has_emoji(part[-2:]) or (bool(part) and _has_emoji(following[:1]))
        for part, following in itertools.pairwise([*plain, ""])
    )


def _has_emoji(characters: str) -> bool:
    return any(map(english.is_emoji, characters))


def _indents_stairs(text: str, arguments: Arguments) -> bool:
    del arguments
    lines = _without_blank_lines(text.split("\n"))
    indents = [len(line) - len(line.lstrip(" ")) for line in lines]
    return all(one < other for one, other in itertools.pairwise(indents))


def _without_blank_lines(lines: list[str]) -> list[str]:
    """Leaves out blank lines, though not one that stands behind a blank line.

    As published: who removes from a list that is walked over steps over the next item.
    """
    found: collections.Counter[str] = collections.Counter()
    is_next_seen = True
    for line in lines:
        is_found = is_next_seen and not line.strip()
        found[line] += is_found
        is_next_seen = not is_found
    kept = []
    for line in lines:
        if found[line]:
            found[line] -= 1  # the first equal one is removed, whichever was found
        else:
            kept.append(line)
    return kept


_NO_QUOTES = string.digits + string.punctuation.replace('"', "")


def _explains_quotes(text: str, arguments: Arguments) -> bool:
    del arguments
    straight = text.replace("“", '"').replace("”", '"').replace("'\"'", "")
    said = "".join(straight.split())
    end = said.strip(_NO_QUOTES)[-1:]
    return '""' not in said and end not in ("", '"')


def _has_special_bullets(text: str, arguments: Arguments) -> bool:
    # Anywhere in the text.
    return text.count(arguments["sep"]) >= 2


def _has_thesis_in_italics(text: str, arguments: Arguments) -> bool:
    # Once, somewhere. Tags are three and four characters long, so that of <em> and
    # </em> their last ones are text.
    del arguments
    text = text[_find_first(text, "<i>", "<em>") :]
    end = _find_first(text, "</i>", "</em>")
    return bool(text[3:end].strip()) and bool(text[end + 4 :].strip())


def _find_first(text: str, preferred: str, other: str) -> int:
    """Finds one of two marks; the end where neither is."""
    places = (text.find(preferred), text.find(other))
    return next((place for place in places if place >= 0), len(text))


def _has_sub_bullets(text: str, arguments: Arguments) -> bool:
    # Anywhere in the text, and none is fine.
    del arguments
    return all("-" in bullet for bullet in text.split("*")[1:])


def _has_sentences_then_bullets(text: str, arguments: Arguments) -> bool:
    """Tells whether two sentences are followed by two or more bullets to the end.

    A line without a sentence ends the sentences, so that it may stand once, in front of
    the bullets.
    """
    del arguments
    num_sentences = num_bullets = 0
    is_in_sentences = True
    for line in map(str.strip, text.split("\n")):
        if line.startswith("*"):
            is_in_sentences = False
            num_bullets += 1
            if num_sentences < 2:
                return False
        elif is_in_sentences:
            found = sentences.split(line)
            num_sentences += len(found)
            is_in_sentences = bool(found)
        else:
            return False
    return num_bullets >= 2


def _is_title_case(text: str, arguments: Arguments) -> bool:
    # A word of one letter is in any case.
    del arguments
    return not any(
        word[0].islower() and (word[1:].islower() or word[1:].isupper())
        for word in english.tokens(text)
    )


def _has_template(text: str, arguments: Arguments) -> bool:
    # In any order, with anything around it.
    del arguments
    parts = ("My Answer:", "My Conclusion:", "Future Outlook:")
    return all(part in text for part in parts)


def _has_no_white_space(text: str, arguments: Arguments) -> bool:
    del arguments
    return not any(map(str.isspace, text))


CHECKERS: Mapping[str, Checker] = {
    "format:parentheses": _nests_brackets,
    "format:quotes": _nests_quotes,
    "format:options": _is_option,
    "format:newline": _has_a_word_a_line,
    "format:emoji": _has_emoji_behind_sentences,
    "format:line_indent": _indents_stairs,
    "format:quote_unquote": _explains_quotes,
    "format:list": _has_special_bullets,
    "format:thesis": _has_thesis_in_italics,
    "format:sub-bullets": _has_sub_bullets,
    "format:no_bullets_bullets": _has_sentences_then_bullets,
    "format:title_case": _is_title_case,
    "format:output_template": _has_template,
    "format:no_whitespace": _has_no_white_space,
}
