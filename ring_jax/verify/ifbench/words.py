# SPDX-License-Identifier: Apache-2.0
"""IFBench's instructions `words:...` and `sentence:...`."""

import collections
import itertools
import re
import string
from collections.abc import Mapping, Sequence

from ring_jax.verify import english, sentences
from ring_jax.verify.ifbench.punctuation import EDGES, without_punctuation
from ring_jax.verify.instructions import Arguments, Checker

PRIMES = frozenset(
    number
    for number in range(2, 98)  # a word of 101 letters is refused
    if all(number % factor for factor in range(2, number))
)


def _plain_words(text: str) -> list[str]:
    return without_punctuation(text.lower()).split()


def _follows_alphabet(text: str, arguments: Arguments) -> bool:
    del arguments
    words = without_punctuation(text).split()
    if not words or words[0][0].lower() not in string.ascii_lowercase:
        return False
    initials = [word.lower()[0] for word in words]
    start = string.ascii_lowercase.index(initials[0])
    expected = itertools.islice(
        itertools.cycle(string.ascii_lowercase), start, start + len(initials)
    )
    return initials == list(expected)


def _has_three_vowels(text: str, arguments: Arguments) -> bool:
    # Of the whole reply, not of each word, and in one paragraph.
    del arguments
    text = text.strip().lower()
    return "\n" not in text and len(set(text) & set("aeiou")) <= 3


_CLUSTER = re.compile("[bcdfghjklmnpqrstvwxyz]{2}")


def _has_clusters(text: str, arguments: Arguments) -> bool:
    del arguments
    return all(map(_CLUSTER.search, text.lower().split()))


def _has_palindromes(text: str, arguments: Arguments) -> bool:
    del arguments
    words = _plain_words(text)
    return sum(len(word) >= 5 and word == word[::-1] for word in words) >= 10


def _has_prime_lengths(text: str, arguments: Arguments) -> bool:
    del arguments
    return all(len(word) in PRIMES for word in without_punctuation(text).split())


def _begins_with_verb(text: str, arguments: Arguments) -> bool:
    del arguments
    return english.begins_with_verb(text)


def _repeats_few_words(text: str, arguments: Arguments) -> bool:
    counts = collections.Counter(_plain_words(text))
    return max(counts.values(), default=0) <= arguments["small_n"]


def _alternates_syllables(text: str, arguments: Arguments) -> bool:
    del arguments
    words = without_punctuation(text).lower().split()
    parities = [english.count_syllables(word) % 2 for word in words]
    return all(one != other for one, other in itertools.pairwise(parities))


def _links_sentences(text: str, arguments: Arguments) -> bool:
    del arguments
    # What is behind the last sentence and before the first is nobody's link.
    pairs = itertools.pairwise(sentences.split(text))
    return all(_is_linked(one, other) for one, other in pairs)


def _is_linked(sentence: str, following: str) -> bool:
    words, others = sentence.rstrip(EDGES).split(), following.lstrip(EDGES).split()
    return bool(words and others) and words[-1].lower() == others[0].lower()


def _frames_paragraphs(text: str, arguments: Arguments) -> bool:
    del arguments
    paragraphs = [line.strip().lower() for line in text.split("\n")]
    return all(_is_framed(paragraph) for paragraph in paragraphs if paragraph)


def _is_framed(paragraph: str) -> bool:
    words = paragraph.strip(EDGES).split()
    return bool(words) and words[0] == words[-1]


def _changes_initials(text: str, arguments: Arguments) -> bool:
    del arguments
    initials = [word[0] for word in _plain_words(text)]
    return all(one != other for one, other in itertools.pairwise(initials))


def _has_keyword_at(text: str, arguments: Arguments) -> bool:
    found, place = sentences.split(text), int(arguments["n"])
    if len(found) < place:
        return False
    return _is_at(english.tokens(found[place - 1]), int(arguments["m"]), arguments)


def _is_at(tokens: Sequence[str], place: int, arguments: Arguments) -> bool:
    # Punctuation marks are words here.
    return len(tokens) >= place and tokens[place - 1] == arguments["keyword"].strip()


def _has_keyword_at_both_ends(text: str, arguments: Arguments) -> bool:
    # A full stop is the last word.
    tokens = english.tokens(text)
    keyword = arguments["keyword"].strip()
    return len(tokens) >= 2 and tokens[1] == tokens[-2] == keyword


def _has_keyword_in_sentence(text: str, arguments: Arguments) -> bool:
    found, place = sentences.split(text), int(arguments["N"])
    if len(found) < place:
        return False
    return arguments["word"].lower() in found[place - 1].lower()


def _grows_alliteration(text: str, arguments: Arguments) -> bool:
    del arguments
    counts = [_count_alliterating(sentence) for sentence in sentences.split(text)]
    return all(one < other for one, other in itertools.pairwise(counts))


def _count_alliterating(sentence: str) -> int:
    """Counts words that begin as a neighbour does, in all runs together."""
    words = [word.lstrip(EDGES) for word in sentence.lower().split()]
    runs = itertools.groupby(word[0] for word in words if word)
    lengths = [len(list(run)) for _, run in runs]
    return sum(length for length in lengths if length > 1)


def _grows_by_words(text: str, arguments: Arguments) -> bool:
    counts = [
        len(without_punctuation(sentence).split()) for sentence in sentences.split(text)
    ]
    step = arguments["small_n"]
    return all(other == one + step for one, other in itertools.pairwise(counts))


CHECKERS: Mapping[str, Checker] = {
    "words:alphabet": _follows_alphabet,
    "words:vowel": _has_three_vowels,
    "words:consonants": _has_clusters,
    "words:palindrome": _has_palindromes,
    "words:prime_lengths": _has_prime_lengths,
    "words:start_verb": _begins_with_verb,
    "words:repeats": _repeats_few_words,
    "words:odd_even_syllables": _alternates_syllables,
    "words:last_first": _links_sentences,
    "words:paragraph_last_first": _frames_paragraphs,
    "words:no_consecutive": _changes_initials,
    "words:keywords_specific_position": _has_keyword_at,
    "words:words_position": _has_keyword_at_both_ends,
    "sentence:alliteration_increment": _grows_alliteration,
    "sentence:keyword": _has_keyword_in_sentence,
    "sentence:increment": _grows_by_words,
}
