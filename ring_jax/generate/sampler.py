# SPDX-License-Identifier: Apache-2.0
"""From logits to the next tokens, each row by settings of its own.

Nothing is sorted. A filter keeps what is at or above a threshold, and a threshold is
found bit by bit: 32 sums over the vocabulary, and only if a row asks for them.
"""

import dataclasses

import jax
import jax.numpy as jnp

BLOCK_TOKENS = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Choices:
    """`Sampling` of every row: the same names, i32 or f32[B], the seed u32[B]."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition_penalty: jax.Array
    seed: jax.Array


def choose(
    logits_BV: jax.Array, seen_BV: jax.Array, choices: Choices, index_B: jax.Array
) -> jax.Array:
    """Chooses one token per row.

    Each row's result is a function of the row alone.

    Args:
      logits_BV: f32[B, V]; -inf for what must never be chosen.
      seen_BV: bool[B, V], tokens that the repetition penalty is for.
      choices: of the rows.
      index_B: i32[B], how many tokens each row said before.

    Returns:
      i32[B].
    """
    penalised_BV = jax.lax.cond(
        jnp.any(choices.repetition_penalty != 1.0),
        _penalise,
        lambda logits_BV, *_: logits_BV,
        *(logits_BV, seen_BV, choices.repetition_penalty),
    )
    best_B = most_probable(penalised_BV)
    return jax.lax.cond(
        jnp.any(choices.temperature > 0),
        lambda *args: jnp.where(choices.temperature > 0, _draw(*args), best_B),
        lambda *_: best_B,
        *(penalised_BV, choices, index_B),
    )


def most_probable(logits_BV: jax.Array) -> jax.Array:
    """Returns i32[B], the first of the largest.

    Two plain reductions, which a CPU runs several at a time; argmax is not.
    """
    V = logits_BV.shape[1]
    token_BV = jax.lax.broadcasted_iota(jnp.int32, logits_BV.shape, 1)
    is_best_BV = logits_BV == jnp.max(logits_BV, axis=1, keepdims=True)
    # A row of NaNs has no largest.
    return jnp.minimum(jnp.min(jnp.where(is_best_BV, token_BV, V), axis=1), V - 1)


def log_probability(logits_BV: jax.Array, ids_B: jax.Array) -> jax.Array:
    """Returns f32[B], the log-probability of a token in each row."""
    chosen_B1 = jnp.take_along_axis(logits_BV, ids_B[:, None], axis=1)
    return chosen_B1[:, 0] - jax.nn.logsumexp(logits_BV, axis=1)


def kept_weights(logits_BV: jax.Array, choices: Choices) -> jax.Array:
    """Returns the weights to draw by: 0 where a filter says so; not normalised.

    Args:
      logits_BV: f32[B, V], penalised.
      choices: of the rows; rows at temperature 0 are as at 1.
    """
    temperature_B = jnp.where(choices.temperature > 0, choices.temperature, 1.0)
    # The largest is 0 first: a low temperature may not overflow.
    peak_B1 = jnp.max(logits_BV, axis=1, keepdims=True)
    scaled_BV = (logits_BV - peak_B1) / temperature_B[:, None]
    order_BV, weights_BV = _ordered(scaled_BV), jnp.exp(scaled_BV)
    top_k_B = choices.top_k.astype(jnp.float32)
    weights_BV = jax.lax.cond(
        jnp.any(choices.top_k > 0),
        lambda: jnp.where(
            _reaches(order_BV, jnp.ones_like(weights_BV), top_k_B)
            | (choices.top_k == 0)[:, None],
            weights_BV,
            0.0,
        ),
        lambda: weights_BV,
    )
    needed_B = choices.top_p * jnp.sum(weights_BV, axis=1)
    weights_BV = jax.lax.cond(
        jnp.any(choices.top_p < 1),
        lambda: jnp.where(
            _reaches(order_BV, weights_BV, needed_B) | (choices.top_p >= 1)[:, None],
            weights_BV,
            0.0,
        ),
        lambda: weights_BV,
    )
    # The most probable token's weight is 1.
    return jnp.where(weights_BV >= choices.min_p[:, None], weights_BV, 0.0)


def _penalise(
    logits_BV: jax.Array, seen_BV: jax.Array, penalty_B: jax.Array
) -> jax.Array:
    penalty_B1 = penalty_B[:, None]
    weaker_BV = jnp.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
    return jnp.where(seen_BV, weaker_BV, logits_BV)


def _ordered(x_BV: jax.Array) -> jax.Array:
    """Returns u32 in the order of the floats."""
    # The bits of -0 are not those of 0, its equal.
    x_BV = jnp.where(x_BV == 0, 0.0, x_BV)
    bits_BV = jax.lax.bitcast_convert_type(x_BV, jnp.uint32)
    is_negative_BV = bits_BV >> 31 == 1
    return jnp.where(is_negative_BV, ~bits_BV, bits_BV | jnp.uint32(1 << 31))


def _reaches(
    order_BV: jax.Array, weights_BV: jax.Array, needed_B: jax.Array
) -> jax.Array:
    """Tells which are at or above the threshold where weights come to what is needed.

    It is the highest one above which there is enough, built from its first bit.
    """

    def add_bit(number: jax.Array, threshold_B: jax.Array) -> jax.Array:
        bit = jnp.uint32(1) << (31 - number).astype(jnp.uint32)
        higher_B = threshold_B | bit
        is_above_BV = order_BV >= higher_B[:, None]
        sum_B = jnp.sum(jnp.where(is_above_BV, weights_BV, 0.0), axis=1)
        return jnp.where(sum_B >= needed_B, higher_B, threshold_B)

    # A zero that varies over the mesh axes that the rows do.
    zero_B = order_BV[:, 0] & jnp.uint32(0)
    threshold_B = jax.lax.fori_loop(0, 32, add_bit, zero_B)
    return order_BV >= threshold_B[:, None]


def _draw(logits_BV: jax.Array, choices: Choices, index_B: jax.Array) -> jax.Array:
    weights_BV = kept_weights(logits_BV, choices)
    uniform_B = jax.vmap(_uniform)(choices.seed, index_B)
    B, V = weights_BV.shape
    padded_BV = jnp.pad(weights_BV, ((0, 0), (0, -V % BLOCK_TOKENS)))
    weights_BJC = padded_BV.reshape(B, -1, BLOCK_TOKENS)
    # First a block of tokens, then one of its tokens: short sums are quick and exact.
    sums_BJ = jnp.sum(weights_BJC, axis=2)
    wanted_B = uniform_B * jnp.sum(sums_BJ, axis=1)
    block_B, before_B = _find(sums_BJ, wanted_B)
    of_block_BC = jnp.take_along_axis(weights_BJC, block_B[:, None, None], axis=1)[:, 0]
    inside_B, _ = _find(of_block_BC, wanted_B - before_B)
    return block_B * BLOCK_TOKENS + inside_B


def _uniform(seed: jax.Array, index: jax.Array) -> jax.Array:
    return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), index))


def _find(weights_BC: jax.Array, wanted_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns where running sums pass what is wanted, and the sum before it.

    Never a place without weight: if rounding leaves the sums short, the last that has.
    """
    C = weights_BC.shape[1]
    sums_BC = jnp.cumsum(weights_BC, axis=1)
    has_weight_BC = weights_BC > 0
    place_BC = jax.lax.broadcasted_iota(jnp.int32, weights_BC.shape, 1)
    is_past_BC = has_weight_BC & (sums_BC > wanted_B[:, None])
    first_B = jnp.min(jnp.where(is_past_BC, place_BC, C), axis=1)
    last_B = jnp.max(jnp.where(has_weight_BC, place_BC, 0), axis=1)
    found_B = jnp.minimum(first_B, last_B)
    at_B = jnp.take_along_axis(sums_BC, found_B[:, None], axis=1)[:, 0]
    own_B = jnp.take_along_axis(weights_BC, found_B[:, None], axis=1)[:, 0]
    return found_B, at_B - own_B
