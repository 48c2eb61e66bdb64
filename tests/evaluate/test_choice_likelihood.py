# SPDX-License-Identifier: Apache-2.0
"""Options are scored as a softmax of the logits, token after token, says."""

import functools

import jax
import numpy as np
import pytest

from ring_jax.config import ConfigError, ModelConfig
from ring_jax.data import tokenizer as tokenizers
from ring_jax.evaluate.choice_likelihood import ChoiceQuestion, score_choices
from ring_jax.model import Transformer, init_transformer
from tests.small_model import small_model

MODEL = small_model(vocab_size=384, max_positions=64)
QUESTIONS = [
    ChoiceQuestion("The sky is", [" blue", " a long green road", " 7"], 0),
    ChoiceQuestion("Two and two are ", ["four", "five"], 1),
    ChoiceQuestion("Answer:", [" A", " B", " C", " D"], 3),
]


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["The sky is blue and green", "Two and two are four", "Answer: A B C D"]
    return tokenizers.train(texts * 5, vocab_size=320)


@functools.partial(jax.jit, static_argnums=0)
def create(config: ModelConfig, seed: int) -> Transformer:
    return init_transformer(config, jax.random.key(seed))


@jax.jit
def logits_of(model: Transformer, ids_BT: jax.Array) -> jax.Array:
    positions_BT = jax.numpy.arange(ids_BT.shape[1])[None]
    hidden_BTD, _ = model(
        ids_BT, segments_BT=jax.numpy.ones_like(ids_BT), positions_BT=positions_BT
    )
    return model.logits(hidden_BTD)[0]


def plain_likelihood(model, tokenizer, context, option) -> float:
    """Multiplies the softmax of each of the option's tokens, in float64."""
    blank = context[len(context.rstrip()) :]
    ids = tokenizer.encode(context.rstrip() + blank + option)
    start = len(tokenizer.encode(context.rstrip()))
    # One shape for all, so that the definition compiles once.
    ids_BT = np.zeros((1, MODEL.max_positions), np.int32)
    ids_BT[0, : len(ids)] = ids
    logits_TV = np.asarray(logits_of(model, ids_BT), np.float64)
    total = 0.0
    for place in range(start, len(ids)):
        powers_V = np.exp(logits_TV[place - 1] - logits_TV[place - 1].max())
        total += np.log(powers_V[ids[place]] / powers_V.sum())
    return total


def score(model, tokenizer, questions):
    return score_choices(
        model, questions, tokenizer=tokenizer, dtype="float32", max_rows=4
    )


def test_likelihoods_are_those_of_a_plain_softmax_loop(mesh, tokenizer):
    model = create(MODEL, 0)
    scores = score(model, tokenizer, QUESTIONS)
    for question, found in zip(QUESTIONS, scores, strict=True):
        wanted = [
            plain_likelihood(model, tokenizer, question.context, option)
            for option in question.options
        ]
        # float32 against float64 of the same logits.
        np.testing.assert_allclose(found.log_likelihoods, wanted, rtol=1e-4, atol=1e-4)
        assert found.is_right == (np.argmax(wanted) == question.answer)
        lengths = [len(option.strip()) for option in question.options]
        shares = np.divide(wanted, lengths)
        assert found.is_right_by_character == (np.argmax(shares) == question.answer)


def test_every_answer_is_right_for_exactly_one_option(mesh, tokenizer):
    model = create(MODEL, 1)
    context, options = QUESTIONS[0].context, QUESTIONS[0].options
    asked = [ChoiceQuestion(context, options, place) for place in range(3)]
    scores = score(model, tokenizer, asked)
    assert sum(found.is_right for found in scores) == 1
    assert sum(found.is_right_by_character for found in scores) == 1


def test_a_long_option_can_win_by_character_and_lose_by_sum(mesh, tokenizer):
    model = create(MODEL, 0)
    assert model.head_DV is not None
    # Each token is as likely as any other: fewer tokens win, and tokens per character.
    model.head_DV[...] = jax.numpy.zeros_like(model.head_DV[...])
    options = [" 7", " blue and green"]
    (found,) = score(model, tokenizer, [ChoiceQuestion("The sky is", options, 1)])
    num_tokens = [
        len(tokenizer.encode("The sky is" + option))
        - len(tokenizer.encode("The sky is"))
        for option in options
    ]
    even = -np.log(MODEL.vocab_size)
    np.testing.assert_allclose(
        found.log_likelihoods, [even * count for count in num_tokens], rtol=1e-5
    )
    assert num_tokens[0] < num_tokens[1]
    assert not found.is_right
    assert found.is_right_by_character


@pytest.mark.parametrize(
    ("context", "options"),
    [("The sky is", ["", " blue"]), ("", ["blue"]), ("The sky is", [" blue" * 100])],
)
def test_an_option_that_cannot_be_scored_is_refused(mesh, tokenizer, context, options):
    question = ChoiceQuestion(context, options, 0)
    with pytest.raises(ConfigError, match="both parts need a token"):
        score(create(MODEL, 0), tokenizer, [question])
