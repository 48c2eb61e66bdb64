# SPDX-License-Identifier: Apache-2.0
"""Tokens go to the rows of a window and come back: the TPU's way and the other one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ring_jax.model.dispatch import combine, dispatch, plan_routes
from tests.emulated_tpu import CHIPS, cases, emulated

# X experts are here; X stands for those that are elsewhere.
M, A, D, X, SIZE = 150, 3, 128, 4, 128

ROUTES = {
    "even": np.arange(M * A).reshape(M, A) % (2 * X),
    "one_expert": np.where(np.arange(A) == 1, 2, X) + np.zeros((M, 1), int),
    "overloaded": np.arange(A) + np.zeros((M, 1), int),
    "few_tokens": np.where(np.arange(M)[:, None] < 20, np.arange(A), X),
    "nothing": np.full((M, A), X),
}


@pytest.fixture(params=cases(["cpu", *CHIPS]))
def chip(request):
    """This machine, or a TPU that is interpreted, uninitialised memory as NaN."""
    if request.param == "cpu":
        yield request.param
        return
    with emulated(CHIPS[request.param], detect_races=False):
        yield request.param


@functools.partial(jax.jit, static_argnames=("chip",))
def both_sums(ids_MA, first, y_RD, x_MD, *, chip):
    """Compiled once for all routes, on the chip in force; `chip` is its name.

    Returns:
      What is combined of y_RD, [M, D], and the gradient of what is dispatched of x_MD.
    """
    del chip
    window = plan_routes(ids_MA, num_experts=X).window(first, SIZE)
    _, pull_back = jax.vjp(lambda x_MD: dispatch(x_MD, window), x_MD)
    return combine(y_RD, window), *pull_back(y_RD)


@pytest.mark.parametrize("first", [0, 40, 256])
@pytest.mark.parametrize("ids_MA", ROUTES.values(), ids=ROUTES)
def test_both_sums_over_a_token_s_rows_are_the_definition(chip, ids_MA, first):
    ids_MA = np.minimum(ids_MA, X)
    rng = np.random.default_rng(0)
    pair_R = np.argsort(ids_MA.reshape(-1), kind="stable")[first : first + SIZE]
    pair_R = pair_R[ids_MA.reshape(-1)[pair_R] < X]
    # Whole numbers, whose sums are exact. The experts write zeros to rows of nobody.
    y_RD = np.zeros((SIZE, D), np.float32)
    y_RD[: pair_R.size] = rng.integers(-9, 9, (pair_R.size, D))
    wanted_MD = np.zeros((M, D), np.float32)
    np.add.at(wanted_MD, pair_R // A, y_RD[: pair_R.size])
    y_RD, x_MD = jnp.asarray(y_RD, jnp.bfloat16), jnp.zeros((M, D), jnp.bfloat16)
    out_MD, grad_MD = both_sums(
        jnp.asarray(ids_MA, jnp.int32), jnp.asarray(first), y_RD, x_MD, chip=chip
    )
    assert out_MD.dtype == jnp.float32
    np.testing.assert_array_equal(out_MD, wanted_MD)
    assert grad_MD.dtype == jnp.bfloat16
    np.testing.assert_array_equal(grad_MD, jnp.asarray(wanted_MD, jnp.bfloat16))


def test_the_order_of_tokens_names_each_row_once_and_rows_of_nobody_last():
    rng = np.random.default_rng(1)
    ids_MA = np.stack([rng.permutation(2 * X)[:A] for _ in range(M)]).clip(max=X)
    window = plan_routes(jnp.asarray(ids_MA, jnp.int32), num_experts=X).window(
        jnp.asarray(0), 512
    )
    by_token = window.by_token
    assert by_token is not None
    np.testing.assert_array_equal(np.sort(by_token.row_R), np.arange(512))
    np.testing.assert_array_equal(by_token.ends_M, np.cumsum((ids_MA < X).sum(axis=1)))
    num_rows = int(by_token.ends_M[-1])
    pairs_R = np.asarray(window.order_R)[np.asarray(by_token.row_R)][:num_rows]
    np.testing.assert_array_equal(pairs_R, np.flatnonzero(ids_MA < X))
