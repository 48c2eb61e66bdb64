# SPDX-License-Identifier: Apache-2.0
"""Properties of the whole model: causality, packing, remat, layouts, decoding."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ring_jax import sharding
from ring_jax.config import MeshConfig
from ring_jax.model import init_transformer

# Float32 sums of a few hundred terms in another order: 1e-5 of values of order 1.
CLOSE: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-5}


@jax.jit
def whole_rows(model, tokens):
    return model.logits(model(**tokens)[0])


def logits_of(model, rows):
    return whole_rows(model, rows.on_mesh())


def test_a_token_does_not_see_later_tokens(tiny_model, packed):
    before = logits_of(tiny_model, packed)
    ids_BT = packed.ids_BT.copy()
    ids_BT[1, 10] = (ids_BT[1, 10] + 1) % 64
    changed = dataclasses.replace(packed, ids_BT=ids_BT)
    after = logits_of(tiny_model, changed)
    assert np.array_equal(before[1, :10], after[1, :10])
    assert not np.allclose(before[1, 10:], after[1, 10:])


def test_a_document_does_not_see_its_neighbours(tiny_model, make_rows):
    together = make_rows([[9, 5]], num_tokens=16)
    alone = dataclasses.replace(
        make_rows([[5]], num_tokens=16),
        ids_BT=np.roll(together.ids_BT, -9, axis=1),
    )
    packed_BTV = logits_of(tiny_model, together)
    alone_BTV = logits_of(tiny_model, alone)
    np.testing.assert_allclose(packed_BTV[0, 9:14], alone_BTV[0, :5], **CLOSE)


@functools.partial(jax.jit, static_argnames="remat")
def gradient_under(remat, model, tokens):
    def loss(model):
        hidden_BTD, stats = model(**tokens, remat=remat)
        return jnp.sum(jnp.square(hidden_BTD)) + jnp.sum(stats.balance_loss)

    return jax.grad(loss)(model)


@pytest.mark.parametrize("remat", ["matmuls", "kernels", "block", "offload"])
def test_remat_changes_no_gradient(tiny_model, packed, remat):
    tokens = packed.on_mesh()
    plain = gradient_under("none", tiny_model, tokens)
    again = gradient_under(remat, tiny_model, tokens)
    for want, got in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        # The same operations compiled into other fusions.
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def loss_and_gradients(config, rows, layout, devices=None):
    """Returns loss, loads and gradients of a new model on a mesh of its own."""

    def loss(model, tokens):
        hidden_BTD, stats = model(**tokens)
        is_token_BT1 = (tokens["segments_BT"] > 0)[..., None]
        weighted = jnp.square(model.logits(hidden_BTD)) * is_token_BT1
        return jnp.sum(weighted) / 1e3 + jnp.sum(stats.balance_loss), stats.load_E

    with jax.set_mesh(sharding.make_mesh(layout, devices)):
        model = jax.jit(lambda: init_transformer(config, jax.random.key(0)))()
        gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
        return jax.device_get(gradient(model, rows.on_mesh()))


@pytest.fixture(scope="module")
def one_device(tiny, make_rows):
    """The rows of the layouts, and what one device makes of them."""
    rows = make_rows([[9, 5], [16]] * 4, num_tokens=16)
    return rows, loss_and_gradients(tiny, rows, MeshConfig(), jax.devices()[:1])


# That which mixes most axes is always tried.
LAYOUTS = {
    "mixed": MeshConfig(data=1, fsdp=2, expert=2, tensor=2),
    "slice": MeshConfig(slice=2, data=1, fsdp=2, expert=1, tensor=2),
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "expert": MeshConfig(data=1, expert=8),
    "tensor": MeshConfig(data=4, tensor=2),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name != "mixed"))
        for name in LAYOUTS
    ],
)
def test_every_layout_gives_the_same_loss_and_gradients(one_device, tiny, name):
    layout = LAYOUTS[name]
    rows, ((one, load_one), grads_one) = one_device
    (many, load_many), grads_many = loss_and_gradients(tiny, rows, layout)
    np.testing.assert_allclose(many, one, rtol=1e-5)
    np.testing.assert_allclose(load_many, load_one, atol=1e-7)
    leaves = zip(jax.tree.leaves(grads_many), jax.tree.leaves(grads_one), strict=True)
    for got, want in leaves:
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)


def test_the_head_is_normed_over_the_vocabulary_and_the_norm_has_no_gradient(
    tiny_model, packed
):
    hidden_BTD, _ = packed.run(tiny_model)
    head_DV = tiny_model.head_DV[...]
    norm_D1 = jnp.linalg.norm(head_DV, axis=1, keepdims=True)
    want_BTV = hidden_BTD @ (head_DV / (norm_D1 + 1e-7))
    np.testing.assert_allclose(tiny_model.logits(hidden_BTD), want_BTV, **CLOSE)

    def total(model):
        return jnp.sum(model.logits(hidden_BTD))

    grad_DV = jax.grad(total)(tiny_model).head_DV[...]
    summed_D = jnp.sum(hidden_BTD, axis=(0, 1))
    detached_DV = (summed_D[:, None] / (norm_D1 + 1e-7)) * jnp.ones_like(head_DV)
    np.testing.assert_allclose(grad_DV, detached_DV, rtol=1e-4, atol=1e-4)
