# SPDX-License-Identifier: Apache-2.0
"""Routing: choice, weights, losses and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ring_jax.config import MoeConfig
from ring_jax.model.router import (
    RoutingNoise,
    perturb,
    router_stats,
    router_sums,
    select_experts,
)

pytestmark = pytest.mark.usefixtures("mesh")

M, E = 12, 5
IS_TOKEN_M = jnp.arange(M) < 10


def config(active: int, *, renormalize: bool = True) -> MoeConfig:
    return MoeConfig(
        num_experts=E, num_experts_per_token=active, renormalize_weights=renormalize
    )


@jax.jit
def statistics(logits_ME, selection, is_token_M):
    return router_stats(router_sums(logits_ME, selection, is_token_M))


@pytest.fixture(name="logits_ME")
def make_logits() -> jax.Array:
    return 2.0 * jax.random.normal(jax.random.key(1), (M, E))


def test_weights_are_the_best_probabilities_renormalised(logits_ME):
    selection = select_experts(logits_ME, IS_TOKEN_M, config=config(3))
    raised = np.exp(np.asarray(logits_ME, np.float64))
    probabilities = raised / raised.sum(axis=1, keepdims=True)
    for m in range(10):
        best = np.argsort(-probabilities[m])[:3]
        assert list(selection.expert_ids_MA[m]) == list(best)
        want = probabilities[m, best] / probabilities[m, best].sum()
        # Float32 softmax against float64.
        np.testing.assert_allclose(selection.weights_MA[m], want, rtol=1e-6)


def test_equal_probabilities_go_to_the_first_experts_as_in_top_k():
    tied_ME = jnp.array([[1.0, 3.0, 3.0, 1.0, 1.0]] * M)
    selection = select_experts(tied_ME, IS_TOKEN_M, config=config(4))
    want_MA = jax.lax.top_k(tied_ME, 4)[1]
    np.testing.assert_array_equal(selection.expert_ids_MA[:10], want_MA[:10])


def test_without_renormalisation_weights_are_plain_probabilities(logits_ME):
    selection = select_experts(
        logits_ME, IS_TOKEN_M, config=config(2, renormalize=False)
    )
    want = np.sort(jax.nn.softmax(logits_ME, axis=-1), axis=1)[:, ::-1][:10, :2]
    np.testing.assert_array_equal(selection.weights_MA[:10], want)


def test_top_1_keeps_its_probability_even_when_renormalising(logits_ME):
    selection = select_experts(logits_ME, IS_TOKEN_M, config=config(1))
    want = jnp.max(jax.nn.softmax(logits_ME, axis=-1), axis=1)[:10]
    np.testing.assert_array_equal(selection.weights_MA[:10, 0], want)


def test_padding_visits_no_expert(logits_ME):
    selection = select_experts(logits_ME, IS_TOKEN_M, config=config(2))
    assert np.all(selection.expert_ids_MA[10:] == E)
    assert np.all(selection.weights_MA[10:] == 0)
    # Nor does it count: other padding, same statistics.
    stats = statistics(logits_ME, selection, IS_TOKEN_M)
    other = statistics(logits_ME.at[10:].set(7.0), selection, IS_TOKEN_M)
    jax.tree.map(np.testing.assert_array_equal, stats, other)


def test_even_routing_has_balance_loss_one():
    even_ME = jnp.tile(5.0 * jnp.eye(E), (2, 1))
    is_token = jnp.ones(2 * E, bool)
    selection = select_experts(even_ME, is_token, config=config(1))
    stats = statistics(even_ME, selection, is_token)
    np.testing.assert_allclose(stats.balance_loss, 1.0, rtol=1e-6)
    np.testing.assert_allclose(stats.load_E, np.full(E, 1 / E), rtol=1e-6)


@pytest.mark.parametrize("name", ["balance_loss", "z_loss"])
def test_gradients_of_the_router_losses_match_finite_differences(logits_ME, name):
    selection = select_experts(logits_ME, IS_TOKEN_M, config=config(2))

    def loss(logits_ME):
        # The choice is held fixed: it has no gradient.
        return getattr(statistics(logits_ME, selection, IS_TOKEN_M), name)

    grad_ME = jax.grad(loss)(logits_ME)
    direction_ME = jax.random.normal(jax.random.key(2), (M, E))
    step = 1e-2
    above, below = (loss(logits_ME + s * step * direction_ME) for s in (1, -1))
    slope = (above - below) / (2 * step)
    # A central difference of step h errs by h**2 times a third derivative, some 1e-3.
    np.testing.assert_allclose(jnp.sum(grad_ME * direction_ME), slope, rtol=5e-3)


def test_routing_warm_up_goes_from_noise_to_the_router(logits_ME):
    def noise(alpha):
        scalar = jnp.asarray
        return RoutingNoise(jax.random.key(3), scalar(alpha), scalar(1.5), scalar(0.5))

    np.testing.assert_array_equal(perturb(logits_ME, noise(1.0)), logits_ME)
    random_ME = perturb(jnp.zeros((4000, E)), noise(0.0))
    # 20,000 draws: the mean errs by 0.5 / sqrt(20000) = 0.0035, four of them allowed.
    assert abs(float(jnp.mean(random_ME)) - 1.5) < 0.015
    assert abs(float(jnp.std(random_ME)) - 0.5) < 0.015
