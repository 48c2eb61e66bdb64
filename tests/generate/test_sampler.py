# SPDX-License-Identifier: Apache-2.0
"""Every filter against a slow definition in numpy, and draws against their shares."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from ring_jax.config import ConfigError
from ring_jax.generate import Sampling
from ring_jax.generate.sampler import Choices, choose, kept_weights, log_probability

NUM_ROWS, NUM_TOKENS = 3, 7


def choices_of(samplings: list[Sampling]) -> Choices:
    def column(name: str, dtype: jax.typing.DTypeLike) -> jax.Array:
        return jnp.asarray([getattr(s, name) for s in samplings], dtype)

    return Choices(
        temperature=column("temperature", jnp.float32),
        top_k=column("top_k", jnp.int32),
        top_p=column("top_p", jnp.float32),
        min_p=column("min_p", jnp.float32),
        repetition_penalty=column("repetition_penalty", jnp.float32),
        seed=column("seed", jnp.uint32),
    )


def penalised(logits: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    weaker = [x / penalty if x > 0 else x * penalty for x in logits]
    return np.where(seen, weaker, logits)


def kept_by_definition(logits: np.ndarray, sampling: Sampling) -> tuple[set, float]:
    """Returns the tokens that are left, and how near a filter came to another answer.

    Sorted, one token at a time; equals stay together.
    """
    # In float32, where two logits may become equals.
    logits = (logits - logits.max()) / np.float32(sampling.temperature)
    weights = np.exp(logits.astype(np.float64))
    left, margin = set(np.flatnonzero(np.isfinite(logits))), np.inf
    if sampling.top_k:
        last = np.sort(logits)[::-1][: sampling.top_k][-1]
        left = {v for v in left if logits[v] >= last}
    if sampling.top_p < 1:
        needed = sampling.top_p * sum(weights[v] for v in left)
        mass, kept = 0.0, set[int]()
        for level in sorted({logits[v] for v in left}, reverse=True):
            if mass >= needed:
                break
            kept |= {v for v in left if logits[v] == level}
            mass = sum(weights[v] for v in kept)
            margin = min(margin, abs(mass - needed))
        left = kept
    margin = min([margin, *(abs(weights[v] - sampling.min_p) for v in left)])
    return {v for v in left if weights[v] >= sampling.min_p}, margin


LOGITS = st.lists(
    st.one_of(
        # XLA takes subnormal numbers for 0 on a CPU, numpy does not.
        st.floats(-8, 8, width=32, allow_subnormal=False),
        st.sampled_from([0.0, 1.0, -1.0, 2.5, float("-inf")]),
    ),
    min_size=NUM_TOKENS,
    max_size=NUM_TOKENS,
)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.floats(0.1, 5),
    top_k=st.integers(0, NUM_TOKENS + 2),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 1)),
    min_p=st.one_of(st.just(0.0), st.floats(0, 1)),
    seed=st.integers(0, 2**32 - 1),
)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(
    rows=st.lists(st.tuples(LOGITS, SAMPLINGS), min_size=NUM_ROWS, max_size=NUM_ROWS)
)
def test_filters_keep_what_the_definition_keeps(rows):
    logits_BV = np.array([logits for logits, _ in rows], np.float32)
    hypothesis.assume(np.isfinite(logits_BV).any(axis=1).all())
    samplings = [sampling for _, sampling in rows]
    weights_BV = np.asarray(weights_of(logits_BV, choices_of(samplings)))
    for logits, sampling, weights in zip(logits_BV, samplings, weights_BV, strict=True):
        wanted, margin = kept_by_definition(logits, sampling)
        # A float32 sum may fall on the other side of a border that is this near.
        if margin > 1e-5:
            # Weights below the smallest float32 are 0, and are never drawn anyway.
            scaled = (logits - logits.max()) / sampling.temperature
            wanted = {v for v in wanted if scaled[v] > -80}
            kept = {v for v in np.flatnonzero(weights) if scaled[v] > -80}
            assert kept == wanted


weights_of = jax.jit(kept_weights)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    logits=LOGITS,
    seen=st.lists(st.booleans(), min_size=NUM_TOKENS, max_size=NUM_TOKENS),
    penalty=st.floats(0.25, 4, width=32),
)
def test_the_penalty_makes_seen_tokens_less_probable(logits, seen, penalty):
    logits_V, seen_V = np.array(logits, np.float32), np.array(seen)
    hypothesis.assume(np.isfinite(logits_V).any())
    wanted_V = penalised(logits_V, seen_V, penalty)
    greedy = choices_of([Sampling(repetition_penalty=penalty)])
    chosen = choose_once(logits_V[None], seen_V[None], greedy, np.zeros(1, np.int32))
    assert wanted_V[int(chosen[0])] == wanted_V.max()


choose_once = jax.jit(choose)


@pytest.mark.parametrize(
    ("sampling", "shares"),
    [
        (Sampling(temperature=1.0), [0.5, 0.3, 0.2, 0.0]),
        (Sampling(temperature=2.0), np.sqrt([0.5, 0.3, 0.2, 0.0])),
        (Sampling(temperature=1.0, top_k=2), [0.5, 0.3, 0.0, 0.0]),
        (Sampling(temperature=1.0, top_p=0.6), [0.5, 0.3, 0.0, 0.0]),
        (Sampling(temperature=1.0, min_p=0.5), [0.5, 0.3, 0.0, 0.0]),
        (Sampling(temperature=1.0, top_k=1), [1.0, 0.0, 0.0, 0.0]),
        (Sampling(), [1.0, 0.0, 0.0, 0.0]),
    ],
    ids=["plain", "warm", "top_k", "top_p", "min_p", "one", "greedy"],
)
def test_draws_follow_what_the_filters_leave(sampling, shares):
    # The tokens lie far apart, in blocks of their own.
    size, places = 4000, np.array([3, 300, 700, 900])
    logits_V = np.full(1000, -np.inf, np.float32)
    logits_V[places] = np.log(np.maximum([0.5, 0.3, 0.2, 0.0], 1e-30))
    rows = jax.tree.map(lambda x: jnp.broadcast_to(x, (size,)), choices_of([sampling]))
    drawn_B = choose_once(
        jnp.broadcast_to(jnp.asarray(logits_V)[None], (size, 1000)),
        jnp.zeros((size, 1000), bool),
        rows,
        jnp.arange(size),
    )
    counts = np.bincount(np.asarray(drawn_B), minlength=1000)
    assert counts[places].sum() == size
    wanted = np.array(shares) / np.sum(shares)
    # Four standard deviations of a share of 0.5 of 4000 draws.
    np.testing.assert_allclose(counts[places] / size, wanted, atol=2 / size**0.5)
    assert not counts[places][wanted == 0].any()


def test_a_row_is_chosen_as_if_it_were_alone():
    logits_BV = np.random.default_rng(0).normal(size=(4, 600)).astype(np.float32)
    samplings = [
        Sampling(temperature=0.7, top_k=40, seed=1),
        Sampling(),
        Sampling(temperature=1.0, top_p=0.9, min_p=0.01, seed=2),
        Sampling(temperature=1.3, repetition_penalty=1.2, seed=3),
    ]
    seen_BV, index_B = logits_BV > 1, np.arange(4, dtype=np.int32)
    together = choose_once(logits_BV, seen_BV, choices_of(samplings), index_B)
    for row, sampling in enumerate(samplings):
        # The same number of rows, the others of another kind.
        others = choices_of([sampling] * 4)
        rows = [np.repeat(x[row : row + 1], 4, axis=0) for x in (logits_BV, seen_BV)]
        alone = choose_once(*rows, others, np.full(4, row, np.int32))
        assert int(alone[0]) == int(together[row])


def test_log_probabilities_are_those_of_the_softmax():
    logits_BV = np.random.default_rng(1).normal(size=(5, 50)).astype(np.float32)
    ids_B = np.arange(5)
    wanted_BV = logits_BV - np.log(np.exp(logits_BV).sum(axis=1, keepdims=True))
    found_B = log_probability(jnp.asarray(logits_BV), jnp.asarray(ids_B))
    np.testing.assert_allclose(found_B, wanted_BV[ids_B, ids_B], rtol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"seed": -1},
        {"seed": 2**32},
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_is_named(fields):
    ((name, value),) = fields.items()
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        Sampling(**fields)
