# SPDX-License-Identifier: Apache-2.0
"""Multiple choice by likelihood: which option the model finds likeliest, unsaid.

It is teacher-forced and needs no generation, so that models that cannot follow a format
can be compared; it is no accuracy of what a model says, and never stands for one.
"""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jax.typing import DTypeLike

from ring_jax.config import ConfigError
from ring_jax.data.tokenizer import Tokenizer
from ring_jax.evaluate.token_likelihood import Continuation, score
from ring_jax.model import Transformer


@dataclasses.dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """A context, what may follow it, and which of these is right."""

    context: str
    """Text in front of the options; a blank at its end goes to the options."""
    options: Sequence[str]
    """As they follow the context, with the blank between, if one is wanted."""
    answer: int
    """Place of the right option."""


@dataclasses.dataclass(frozen=True, slots=True)
class ChoiceScores:
    """What the model thinks of each option."""

    log_likelihoods: tuple[float, ...]
    """Sum of the log-probabilities of an option's tokens, nats."""
    is_right: bool
    """The likeliest option is the right one: lm-eval's `acc`."""
    is_right_by_character: bool
    """The option likeliest per character is the right one: lm-eval's `acc_norm`."""


def score_choices(
    model: Transformer,
    questions: Sequence[ChoiceQuestion],
    *,
    tokenizer: Tokenizer,
    dtype: DTypeLike,
    max_rows: int,
) -> list[ChoiceScores]:
    """Scores the options of each question; a mesh is in force.

    Args:
      model: the parameters, float32.
      questions: with two options or more each.
      tokenizer: of the model; context and option are tokenized together, as lm-eval
        0.4.13 does, and parted where the context's own tokens end.
      dtype: compute type of the layers.
      max_rows: options that are read at once, see `token_likelihood.score`.

    Raises:
      ConfigError: a question with its option is longer than the model's positions, or
        an option or a context has no token.
    """
    continuations = [
        _continuation_of(question, option, tokenizer)
        for question in questions
        for option in question.options
    ]
    scored = score(model, continuations, dtype=dtype, max_rows=max_rows)
    sums = [one.log_likelihood for one in scored]
    counts = [len(question.options) for question in questions]
    edges = np.cumsum([0, *counts]).tolist()
    return [
        _scores(question, tuple(sums[start:end]))
        for question, (start, end) in zip(questions, pairwise(edges), strict=True)
    ]


def _continuation_of(
    question: ChoiceQuestion, option: str, tokenizer: Tokenizer
) -> Continuation:
    context = question.context.rstrip()
    blank = question.context[len(context) :]
    ids = tokenizer.encode(context + blank + option)
    num_context = len(tokenizer.encode(context))
    if not option.strip() or not 0 < num_context < len(ids):
        raise ConfigError(
            f"choice {question.context[-40:]!r} + {option[:40]!r}: {num_context} of "
            f"{len(ids)} tokens are context; both parts need a token."
        )
    return Continuation(ids, num_context)


def _scores(question: ChoiceQuestion, likelihoods: tuple[float, ...]) -> ChoiceScores:
    per_character = [
        likelihood / len(option.strip())  # the blank in front is no choice's own
        for likelihood, option in zip(likelihoods, question.options, strict=True)
    ]
    return ChoiceScores(
        log_likelihoods=likelihoods,
        is_right=int(np.argmax(likelihoods)) == question.answer,
        is_right_by_character=int(np.argmax(per_character)) == question.answer,
    )
