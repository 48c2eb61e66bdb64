# SPDX-License-Identifier: Apache-2.0
"""The chunked head and cross-entropy against the definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ring_jax import sharding
from ring_jax.config import MeshConfig
from ring_jax.objectives import linear_cross_entropy

M, D, V = 24, 8, 13
Z_LOSS = 0.01


def definition(hidden, head, targets, weights):
    """float64: sum_m w (logsumexp - target logit + z logsumexp**2), and each ce."""
    logits = hidden.astype(np.float64) @ head.astype(np.float64)
    peak = logits.max(axis=1, keepdims=True)
    log_partition = (peak + np.log(np.exp(logits - peak).sum(1, keepdims=True)))[:, 0]
    ce = log_partition - logits[np.arange(M), targets]
    return np.sum(weights * (ce + Z_LOSS * log_partition**2)), ce


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(M, D)).astype(np.float32)
    head = rng.normal(size=(D, V)).astype(np.float32)
    targets = rng.integers(0, V, M).astype(np.int32)
    weights = rng.uniform(0, 2, M).astype(np.float32)
    weights[:3] = 0.0
    return hidden, head, targets, weights


def loss_on_mesh(chunk_tokens):
    def loss(hidden, head, targets, weights):
        return linear_cross_entropy(
            hidden,
            head,
            targets,
            weights,
            z_loss_coef=Z_LOSS,
            chunk_tokens=chunk_tokens,
        )

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def placed(hidden, head, targets, weights):
    rows, token = sharding.activation("MD"), sharding.activation("M")
    return (
        jax.reshard(hidden, rows),
        jax.reshard(head, sharding.weight("DV")),
        jax.reshard(targets, token),
        jax.reshard(weights, token),
    )


@pytest.mark.parametrize("chunk_tokens", [5, 8, 24, 100])
def test_chunks_give_the_definition_and_its_gradients(mesh, inputs, chunk_tokens):
    del mesh
    hidden, head, targets, weights = inputs
    (loss, ce_M), (grad_hidden, grad_head) = loss_on_mesh(chunk_tokens)(
        *placed(*inputs)
    )
    want, want_ce = definition(*inputs)
    # Float32 sums of 24 x 13 terms of order 1.
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(ce_M, want_ce, rtol=1e-4, atol=1e-5)
    step = 1e-5
    rng = np.random.default_rng(1)
    for got, which in ((grad_hidden, 0), (grad_head, 1)):
        direction = rng.normal(size=inputs[which].shape)
        ends = []
        for sign in (1, -1):
            moved = [hidden.astype(np.float64), head.astype(np.float64)]
            moved[which] = moved[which] + sign * step * direction
            ends.append(definition(moved[0], moved[1], targets, weights)[0])
        slope = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(np.sum(got * direction), slope, rtol=1e-4)


def test_eight_devices_give_what_one_gives(mesh, inputs):
    one = jax.device_get(loss_on_mesh(4)(*placed(*inputs)))
    many = sharding.make_mesh(MeshConfig(data=2, fsdp=2, expert=2))
    with jax.set_mesh(many):
        eight = jax.device_get(loss_on_mesh(2)(*placed(*inputs)))
    for got, want in zip(jax.tree.leaves(eight), jax.tree.leaves(one), strict=True):
        # Sums in another order.
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_the_logits_of_the_batch_never_exist(mesh, inputs):
    del mesh
    text = loss_on_mesh(8).lower(*placed(*inputs)).as_text()
    assert f"{8}x{V}x" in text, "the chunk's logits should be there"
    assert f"{M}x{V}x" not in text


def test_bfloat16_follows_float32(mesh, inputs):
    del mesh
    hidden, head, targets, weights = placed(*inputs)
    (want, _), _ = loss_on_mesh(8)(hidden, head, targets, weights)
    low = hidden.astype(jnp.bfloat16)
    (loss, _), (grad_hidden, grad_head) = loss_on_mesh(8)(low, head, targets, weights)
    # bfloat16 keeps 8 bits: 2**-8 of each product, averaged over 24 tokens.
    np.testing.assert_allclose(loss, want, rtol=1e-2)
    assert grad_hidden.dtype == jnp.bfloat16
    assert grad_head.dtype == jnp.float32
