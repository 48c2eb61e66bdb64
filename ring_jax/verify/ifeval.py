# SPDX-License-Identifier: Apache-2.0
"""IFEval: instructions whose fulfilment a program can see, by their published ids.

Source: arXiv:2311.07911, and the behaviour of lm-eval 0.4.13 (`tasks/ifeval`). Three
differences, all where that scorer leaves the instruction: keywords are text and no
patterns; a letter may be any character (there, `#` becomes a random letter); and an
argument that is missing is an error (there, it is drawn at random).
"""

import json
import re
from collections.abc import Mapping

from ring_jax.config import ConfigError
from ring_jax.verify import english
from ring_jax.verify.instructions import Arguments, Checker, InstructionSet


def _compare(count: int, relation: str, limit: int) -> bool:
    if relation == "less than":
        return count < limit
    if relation == "at least":
        return count >= limit
    raise ConfigError(
        f"verifier 'ifeval': relation={relation!r} must be 'less than' or 'at least'."
    )


def _has_keywords(text: str, arguments: Arguments) -> bool:
    lower = text.lower()
    return all(keyword.lower() in lower for keyword in arguments["keywords"])


def _has_keyword_often(text: str, arguments: Arguments) -> bool:
    count = text.lower().count(arguments["keyword"].strip().lower())
    return _compare(count, arguments["relation"], arguments["frequency"])


def _lacks_words(text: str, arguments: Arguments) -> bool:
    return not any(
        re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE)
        for word in arguments["forbidden_words"]
    )


def _has_letter_often(text: str, arguments: Arguments) -> bool:
    count = text.lower().count(arguments["letter"].strip().lower())
    return _compare(count, arguments["let_relation"], arguments["let_frequency"])


def _is_in_language(text: str, arguments: Arguments) -> bool:
    return english.language_of(text) in (arguments["language"], "")


def _is_upper(text: str, arguments: Arguments) -> bool:
    del arguments
    return text.isupper() and english.language_of(text) in ("en", "")


def _is_lower(text: str, arguments: Arguments) -> bool:
    del arguments
    return text.islower() and english.language_of(text) in ("en", "")


def _has_capital_words(text: str, arguments: Arguments) -> bool:
    count = sum(token.isupper() for token in english.tokens(text))
    return _compare(
        count, arguments["capital_relation"], arguments["capital_frequency"]
    )


def _has_sentences(text: str, arguments: Arguments) -> bool:
    count = english.count_sentences(text)
    return _compare(count, arguments["relation"], arguments["num_sentences"])


def _has_words(text: str, arguments: Arguments) -> bool:
    count = len(english.words(text))
    return _compare(count, arguments["relation"], arguments["num_words"])


def _has_paragraphs(text: str, arguments: Arguments) -> bool:
    first, *rest = (part.strip() for part in text.split("***"))
    inner, last = rest[:-1], rest[-1:]
    if not all(inner):
        return False
    ends = [part for part in (first, *last) if part]
    return len(ends) + len(inner) == arguments["num_paragraphs"]


def _has_first_word(text: str, arguments: Arguments) -> bool:
    paragraphs = text.split("\n\n")
    count = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    place = arguments["nth_paragraph"]
    if count != arguments["num_paragraphs"] or not 1 <= place <= count:
        return False
    words = paragraphs[place - 1].split()
    first = words[0].lstrip("'").lstrip('"') if words else ""
    said = re.split(r"[.,?!'\"]", first)[0].lower()
    return bool(words) and said == arguments["first_word"].lower()


def _has_placeholders(text: str, arguments: Arguments) -> bool:
    count = sum(map(_count_brackets, text.split("\n")))
    return count >= arguments["num_placeholders"]


def _count_brackets(line: str) -> int:
    # A pattern would take quadratic time on a line of opening brackets.
    count, place = 0, 0
    while (start := line.find("[", place)) >= 0:
        place = line.find("]", start) + 1
        if not place:
            break
        count += 1
    return count


_POSTSCRIPTS = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}


def _has_postscript(text: str, arguments: Arguments) -> bool:
    marker: str = arguments["postscript_marker"].strip()
    pattern = _POSTSCRIPTS.get(marker, re.escape(marker.lower()))
    return re.search(pattern, text.lower()) is not None


def _has_bullets(text: str, arguments: Arguments) -> bool:
    stars = re.findall(r"^[^\S\n]*\*[^*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^[^\S\n]*-.*$", text, re.MULTILINE)
    return len(stars) + len(dashes) == arguments["num_bullets"]


def _is_one_of_three(text: str, arguments: Arguments) -> bool:
    del arguments
    return any(f"My answer is {said}." in text for said in ("yes", "no", "maybe"))


def _has_highlights(text: str, arguments: Arguments) -> bool:
    single = re.findall(r"\*([^\n*]*)\*", text)
    double = re.findall(r"\*\*([^\n*]*)\*\*", text)
    count = sum(bool(part.strip()) for part in (*single, *double))
    return count >= arguments["num_highlights"]


def _has_sections(text: str, arguments: Arguments) -> bool:
    mark = re.escape(arguments["section_spliter"].strip())
    return len(re.findall(rf"{mark}\s?\d+", text)) >= arguments["num_sections"]


def _is_json(text: str, arguments: Arguments) -> bool:
    del arguments
    inner = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        inner = inner.removeprefix(fence)
    try:
        json.loads(inner.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _has_title(text: str, arguments: Arguments) -> bool:
    del arguments
    return any(map(_is_title, text.split("\n")))


def _is_title(line: str) -> bool:
    start, end = line.find("<<"), line.rfind(">>")
    inside = line[start + 2 : end] if start >= 0 else ""
    return bool(inside.lstrip("<").rstrip(">").strip())


def _has_two_answers(text: str, arguments: Arguments) -> bool:
    del arguments
    parts = [part.strip() for part in text.split("******")]
    given = [part for part in parts if part]
    return all(parts[1:-1]) and len(given) == 2 and given[0] != given[1]


def _repeats_prompt(text: str, arguments: Arguments) -> bool:
    asked = arguments["prompt_to_repeat"].strip().lower()
    return text.strip().lower().startswith(asked)


def _has_end(text: str, arguments: Arguments) -> bool:
    end = arguments["end_phrase"].strip().lower()
    return text.strip().strip('"').lower().endswith(end)


def _is_quoted(text: str, arguments: Arguments) -> bool:
    del arguments
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _lacks_commas(text: str, arguments: Arguments) -> bool:
    del arguments
    return "," not in text


CHECKERS: Mapping[str, Checker] = {
    "keywords:existence": _has_keywords,
    "keywords:frequency": _has_keyword_often,
    "keywords:forbidden_words": _lacks_words,
    "keywords:letter_frequency": _has_letter_often,
    "language:response_language": _is_in_language,
    "length_constraints:number_sentences": _has_sentences,
    "length_constraints:number_paragraphs": _has_paragraphs,
    "length_constraints:number_words": _has_words,
    "length_constraints:nth_paragraph_first_word": _has_first_word,
    "detectable_content:number_placeholders": _has_placeholders,
    "detectable_content:postscript": _has_postscript,
    "detectable_format:number_bullet_lists": _has_bullets,
    "detectable_format:constrained_response": _is_one_of_three,
    "detectable_format:number_highlighted_sections": _has_highlights,
    "detectable_format:multiple_sections": _has_sections,
    "detectable_format:json_format": _is_json,
    "detectable_format:title": _has_title,
    "combination:two_responses": _has_two_answers,
    "combination:repeat_prompt": _repeats_prompt,
    "startend:end_checker": _has_end,
    "startend:quotation": _is_quoted,
    "change_case:capital_word_frequency": _has_capital_words,
    "change_case:english_capital": _is_upper,
    "change_case:english_lowercase": _is_lower,
    "punctuation:no_comma": _lacks_commas,
}
"""The 25 instructions of the published set."""
INSTRUCTIONS = InstructionSet("ifeval", CHECKERS)
