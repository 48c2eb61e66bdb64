# SPDX-License-Identifier: Apache-2.0
"""Multiple choice by likelihood: which option the model finds likeliest, unsaid.

It is teacher-forced and needs no generation, so that models that cannot follow a format
can be compared; it is no accuracy of what a model says, and never stands for one.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import batched, pairwise
from typing import Any

import jax
import numpy as np

from ring_jax.batch import Batch
from ring_jax.config import ConfigError, TrainConfig
from ring_jax.data.tokenizer import Tokenizer
from ring_jax.evaluate.heldout_loss import on_mesh, source_sums
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
    config: TrainConfig,
    pad_id: int,
) -> list[ChoiceScores]:
    """Scores the options of each question; a mesh is in force.

    log p(option | context) = sum over the option's tokens t of log p(t | all before).

    Args:
      model: the parameters, float32.
      questions: with two options or more each.
      tokenizer: of the model; context and option are tokenized together, as lm-eval
        0.4.13 does, and parted where the context's own tokens end.
      config: `global_batch_size` options are scored at once, in rows of `seq_len`
        tokens, with `compute_dtype`.
      pad_id: token of the padding.

    Raises:
      ConfigError: a question with its option is longer than a row, or an option or a
        context has no token.
    """
    rows = [
        _row_of(question, option, tokenizer, config.seq_len)
        for question in questions
        for option in question.options
    ]
    batches = batched(rows, config.global_batch_size)
    sums = [
        likelihood
        for part in batches
        for likelihood in _likelihoods(model, part, config, pad_id)
    ]
    counts = [len(question.options) for question in questions]
    edges = np.cumsum([0, *counts]).tolist()
    return [
        _scores(question, tuple(sums[start:end]))
        for question, (start, end) in zip(questions, pairwise(edges), strict=True)
    ]


@dataclasses.dataclass(frozen=True, slots=True)
class _OptionRow:
    ids: list[int]
    num_context: int


def _row_of(
    question: ChoiceQuestion, option: str, tokenizer: Tokenizer, seq_len: int
) -> _OptionRow:
    context = question.context.rstrip()
    blank = question.context[len(context) :]
    ids = tokenizer.encode(context + blank + option)
    num_context = len(tokenizer.encode(context))
    if not option.strip() or not 0 < num_context < len(ids) <= seq_len:
        raise ConfigError(
            f"choice {question.context[-40:]!r} + {option[:40]!r}: {num_context} of "
            f"{len(ids)} tokens are context; both parts need a token, and the whole "
            f"may have train.seq_len={seq_len}. Raise seq_len or leave the item out."
        )
    return _OptionRow(ids, num_context)


def _likelihoods(
    model: Transformer, rows: Sequence[_OptionRow], config: TrainConfig, pad_id: int
) -> Iterator[float]:
    # Each option is a source of its own: the held-out loss by source is its sum.
    shape = (config.global_batch_size, config.seq_len)
    ids_BT = np.full(shape, pad_id, np.int32)
    segments_BT, weights_BT = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    for place, row in enumerate(rows):
        ids_BT[place, : len(row.ids)] = row.ids
        segments_BT[place, : len(row.ids)] = 1
        weights_BT[place, row.num_context : len(row.ids)] = 1
    numbers_B, positions_T = (np.arange(size, dtype=np.int32) for size in shape)
    arrays: dict[str, Any] = {
        "ids_BT": ids_BT,
        "segments_BT": segments_BT,
        "positions_BT": np.where(segments_BT, positions_T, 0),
        "classes_BT": np.zeros(shape, np.int32),
        "sources_BT": np.broadcast_to(numbers_B[:, None], shape),
        "weights_BT": weights_BT,
    }
    batch = Batch(**arrays)
    sums_2B = jax.device_get(source_sums(model, on_mesh(batch), config, shape[0]))
    yield from (-float(total) for total in sums_2B[0, : len(rows)])


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
