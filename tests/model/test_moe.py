# SPDX-License-Identifier: Apache-2.0
"""The routed layer: what it computes, and what it compiles to."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import hardware
from ring_jax.config import ConfigError
from ring_jax.model.moe import Moe
from ring_jax.model.router import router_stats

pytestmark = pytest.mark.usefixtures("mesh")

B, T = 2, 16


def make(tiny):
    """Returns a layer, tokens, and which of them are no padding."""
    moe = Moe(tiny, rngs=nnx.Rngs(jax.random.key(0)))
    x_BTD = jax.random.normal(jax.random.key(1), (B, T, tiny.model_dim))
    return moe, x_BTD, jnp.arange(B * T).reshape(B, T) < 27


def test_each_token_gets_the_weighted_sum_of_its_experts(tiny):
    moe, x_BTD, is_token_BT = make(tiny)
    out_BTD, *_ = jax.jit(moe.__call__)(x_BTD, is_token_BT, None)
    assert moe.shared is not None
    x_MD, routed_MD, is_token_M = (
        np.asarray(array).reshape(B * T, -1)
        for array in (x_BTD, out_BTD - moe.shared(x_BTD), is_token_BT)
    )
    router_DE, gate_up_ED2F, down_EFD = jax.device_get(
        (moe.router_DE[...], moe.gate_up_ED2F[...], moe.down_EFD[...])
    )
    want_MD = np.zeros_like(x_MD)
    for m in np.flatnonzero(is_token_M):
        raised_E = np.exp(x_MD[m] @ router_DE)
        best = np.argsort(-raised_E)[:2]
        for e in best:
            gate_F, up_F = np.einsum("d,dzf->zf", x_MD[m], gate_up_ED2F[e])
            hidden_F = gate_F / (1 + np.exp(-gate_F)) * up_F
            want_MD[m] += raised_E[e] / raised_E[best].sum() * hidden_F @ down_EFD[e]
    # Float32 sums in another order.
    np.testing.assert_allclose(routed_MD, want_MD, rtol=1e-4, atol=1e-5)


def test_forward_and_backward_hold_no_scatter(tiny):
    moe, x_BTD, is_token_BT = make(tiny)

    def loss(moe, x_BTD):
        out_BTD, sums, _ = moe(x_BTD, is_token_BT, None)
        stats = router_stats(sums)
        return jnp.sum(jnp.square(out_BTD)) + stats.balance_loss + stats.z_loss

    lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(moe, x_BTD)
    text = lowered.compile().as_text()
    # Before and after XLA's own rewriting; it prints `%name = type operation(...)`.
    assert "stablehlo.gather" in lowered.as_text()
    assert "stablehlo.scatter" not in lowered.as_text()
    assert text is not None and not re.search(r"\bscatter\(", text)


def test_quantised_experts_are_near_and_their_gradients_finite(tiny):
    moe, x_BTD, is_token_BT = make(tiny)
    eight = dataclasses.replace(
        tiny, moe=dataclasses.replace(tiny.moe, quantization="int8")
    )
    rounded = Moe(eight, rngs=nnx.Rngs(jax.random.key(0)))
    run = jax.jit(lambda moe, x_BTD: moe(x_BTD, is_token_BT, None)[0])
    exact_BTD, found_BTD = run(moe, x_BTD), run(rounded, x_BTD)
    error = jnp.linalg.norm(found_BTD - exact_BTD) / jnp.linalg.norm(exact_BTD)
    # Two products, each about 1 % off (tests/pallas_kernels/test_quantization.py).
    assert 0 < error < 0.03
    grad = jax.jit(jax.grad(lambda moe: jnp.sum(jnp.square(run(moe, x_BTD)))))
    norms = [jnp.linalg.norm(leaf) for leaf in jax.tree.leaves(grad(rounded))]
    exact = [jnp.linalg.norm(leaf) for leaf in jax.tree.leaves(grad(moe))]
    np.testing.assert_allclose(norms, exact, rtol=0.05)


def test_a_type_that_the_chip_has_not_is_a_mistake_of_the_settings(tiny):
    eight = dataclasses.replace(
        tiny,
        moe=dataclasses.replace(
            tiny.moe, quantization="float8_e4m3fn", implementation="tpu"
        ),
    )
    _, x_BTD, is_token_BT = make(tiny)
    moe = Moe(eight, rngs=nnx.Rngs(jax.random.key(0)))
    with (
        hardware.pretend("TPU v6 lite"),
        pytest.raises(ConfigError, match="moe.quantization: TPU v6 lite multiplies"),
    ):
        jax.eval_shape(moe.__call__, x_BTD, is_token_BT, None)
