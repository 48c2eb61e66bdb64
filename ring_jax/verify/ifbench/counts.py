# SPDX-License-Identifier: Apache-2.0
"""IFBench's instructions `count:...` and `ratio:...`."""

import re
from collections.abc import Mapping

from ring_jax.verify import english, sentences
from ring_jax.verify.ifbench.punctuation import EDGES, without_punctuation
from ring_jax.verify.ifbench.word_lists import (
    CONJUNCTIONS,
    PERSON_NAMES,
    PRONOUNS,
    STOP_WORDS,
)
from ring_jax.verify.instructions import Arguments, Checker


def _has_words(text: str, arguments: Arguments) -> bool:
    count = len(english.words(text))
    return arguments["min_words"] <= count <= arguments["max_words"]


def _has_unique_words(text: str, arguments: Arguments) -> bool:
    # What is nothing but punctuation counts as one word.
    unique = {word.strip(EDGES) for word in text.lower().split()}
    return len(unique) >= arguments["N"]


def _has_conjunctions(text: str, arguments: Arguments) -> bool:
    # "And", "and" and "and," count as three.
    said = {word for word in text.split() if word.strip(EDGES).lower() in CONJUNCTIONS}
    return len(said) >= arguments["small_n"]


def _has_person_names(text: str, arguments: Arguments) -> bool:
    return sum(name in text for name in PERSON_NAMES) >= arguments["N"]


def _has_numbers(text: str, arguments: Arguments) -> bool:
    # 1,234.5 is one number, and so is 3/4.
    return len(re.findall(r"\d+", without_punctuation(text))) == arguments["N"]


def _has_pronouns(text: str, arguments: Arguments) -> bool:
    words = without_punctuation(text.replace("/", " ").lower()).split()
    return sum(word in PRONOUNS for word in words) >= arguments["N"]


def _has_all_marks(text: str, arguments: Arguments) -> bool:
    del arguments
    if "‽" not in text and "?!" not in text and "!?" not in text:
        return False
    # The interrobang does not count as an exclamation mark and a question mark.
    written = "?!" if "?!" in text else "!?"
    return set(".,!?;:") <= set(text.replace(written, "", 1))


_JAPANESE = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")  # kana, and kanji


def _has_japanese_words(text: str, arguments: Arguments) -> bool:
    words = text.split()
    return all(
        _JAPANESE.search(word)
        for place, word in enumerate((word.strip(EDGES) for word in words), 1)
        if place % arguments["N"] == 0 and word and not word.isdigit()
    )


def _has_keywords_often(text: str, arguments: Arguments) -> bool:
    lower = text.lower()
    keywords = [arguments[f"keyword{place}"].strip().lower() for place in range(1, 6)]
    counts = [lower.count(keyword) for keyword in keywords]
    return counts == [1, 2, 3, 5, 7]


def _has_few_stop_words(text: str, arguments: Arguments) -> bool:
    words = english.words(text)
    count = sum(word.lower() in STOP_WORDS for word in words)
    return bool(words) and count / len(words) * 100 <= arguments["percentage"]


def _overlaps(text: str, arguments: Arguments) -> bool:
    # Three characters in sequence, not three words.
    said, reference = _trigrams(text), _trigrams(arguments["reference_text"])
    if not said:
        return False
    percentage = len(said & reference) / len(said) * 100
    return arguments["percentage"] - 2 <= percentage <= arguments["percentage"] + 2


def _trigrams(text: str) -> set[str]:
    return {text[start : start + 3] for start in range(len(text) - 2)}


def _has_two_statements_per_question(text: str, arguments: Arguments) -> bool:
    del arguments
    statements, questions, _ = _sentence_types(text)
    return statements == 2 * questions


def _has_balanced_sentences(text: str, arguments: Arguments) -> bool:
    del arguments
    return len(set(_sentence_types(text))) == 1


def _sentence_types(text: str) -> tuple[int, int, int]:
    ends = [sentence[-1:] for sentence in sentences.split(text)]
    return ends.count("."), ends.count("?"), ends.count("!")


def _has_three_sentences_alike(text: str, arguments: Arguments) -> bool:
    # That their words differ is not looked at.
    del arguments
    lengths = [len(sentence) for sentence in sentences.split(text)]
    return len(lengths) == 3 and len(set(lengths)) == 1


CHECKERS: Mapping[str, Checker] = {
    "count:word_count_range": _has_words,
    "count:unique_word_count": _has_unique_words,
    "count:conjunctions": _has_conjunctions,
    "count:person_names": _has_person_names,
    "count:numbers": _has_numbers,
    "count:punctuation": _has_all_marks,
    "count:words_japanese": _has_japanese_words,
    "count:pronouns": _has_pronouns,
    "count:keywords_multiple": _has_keywords_often,
    "ratio:stop_words": _has_few_stop_words,
    "ratio:sentence_type": _has_two_statements_per_question,
    "ratio:sentence_balance": _has_balanced_sentences,
    "ratio:sentence_words": _has_three_sentences_alike,
    "ratio:overlap": _overlaps,
}
