# SPDX-License-Identifier: Apache-2.0
"""Tokens meet experts of other devices: every transport is the dense definition."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ring_jax import sharding
from ring_jax.config import MeshConfig, ModelConfig
from ring_jax.model import expert_parallel
from ring_jax.model.expert_parallel import TRANSPORTS, choose_transport
from ring_jax.model.moe import Moe
from ring_jax.model.router import Selection

E, A, M = 8, 2, 64


def even(rng: np.random.Generator) -> np.ndarray:
    del rng
    return (np.arange(M * A) % E).reshape(M, A)


def at_random(rng: np.random.Generator) -> np.ndarray:
    ids_MA = np.stack([rng.permutation(E)[:A] for _ in range(M)])
    ids_MA[rng.random(M) < 0.2] = E  # padding visits no expert
    return ids_MA


def some_empty(rng: np.random.Generator) -> np.ndarray:
    return np.stack([rng.permutation([1, 4, 6])[:A] for _ in range(M)])


def all_on_one_device(rng: np.random.Generator) -> np.ndarray:
    return np.stack([rng.permutation([2, 3])[:A] for _ in range(M)])


def nothing_at_all(rng: np.random.Generator) -> np.ndarray:
    del rng
    return np.full((M, A), E)


def selection_of(ids_MA: np.ndarray, rng: np.random.Generator) -> Selection:
    weights_MA = np.where(ids_MA < E, rng.random((M, A)), 0.0).astype(np.float32)
    return Selection(jnp.asarray(ids_MA, jnp.int32), jnp.asarray(weights_MA))


def dense(x_MD, weights_MA, gate_up_ED2F, down_EFD, ids_MA):
    """Every expert for every token, then the chosen ones."""
    gate_up_EM2F = jnp.einsum("md,edzf->emzf", x_MD, gate_up_ED2F)
    hidden_EMF = jax.nn.silu(gate_up_EM2F[:, :, 0]) * gate_up_EM2F[:, :, 1]
    y_EMD = jnp.einsum("emf,efd->emd", hidden_EMF, down_EFD)
    is_chosen_MAE = jax.nn.one_hot(ids_MA, E)
    return jnp.einsum("ma,mae,emd->md", weights_MA, is_chosen_MAE, y_EMD)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    "route", [even, at_random, some_empty, all_on_one_device, nothing_at_all]
)
def test_every_transport_is_the_dense_definition(tiny, transport, route, monkeypatch):
    # So that a device's share is less than what it gets: several passes.
    monkeypatch.setattr(expert_parallel, "ROW_TILE", 8)
    rng = np.random.default_rng(0)
    ids_MA = route(rng)
    selection = selection_of(ids_MA, rng)
    x_MD = jnp.asarray(rng.normal(size=(M, tiny.model_dim)), jnp.float32)
    cotangent_MD = jnp.asarray(rng.normal(size=x_MD.shape), jnp.float32)
    moe = dataclasses.replace(tiny.moe, transport=transport)
    config = dataclasses.replace(tiny, moe=moe)
    mesh = sharding.make_mesh(MeshConfig(data=2, expert=4))
    with jax.set_mesh(mesh):
        layer = Moe(config, rngs=nnx.Rngs(jax.random.key(0)))

        def routed(x_MD, weights_MA, layer):
            chosen = Selection(selection.expert_ids_MA, weights_MA)
            out_MD, _ = layer._experts(x_MD, chosen, None)
            return jnp.sum(out_MD * cotangent_MD), out_MD

        gradient = jax.jit(jax.grad(routed, argnums=(0, 1, 2), has_aux=True))
        (grad_x_MD, grad_weights_MA, grads), out_MD = jax.device_get(
            gradient(x_MD, selection.weights_MA, layer)
        )
        gate_up_ED2F, down_EFD = jax.device_get(
            (layer.gate_up_ED2F[...], layer.down_EFD[...])
        )

    def definition(x_MD, weights_MA, gate_up_ED2F, down_EFD):
        out_MD = dense(x_MD, weights_MA, gate_up_ED2F, down_EFD, ids_MA)
        return jnp.sum(out_MD * cotangent_MD), out_MD

    arrays = x_MD, selection.weights_MA, gate_up_ED2F, down_EFD
    want, want_MD = jax.grad(definition, argnums=range(4), has_aux=True)(*arrays)
    # Float32 sums in another order.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(out_MD, want_MD)
    got = (
        grad_x_MD,
        np.where(ids_MA < E, grad_weights_MA, 0.0),
        grads.gate_up_ED2F[...],
        grads.down_EFD[...],
    )
    for each, expected in zip(got, want, strict=True):
        close(each, expected)


@pytest.mark.parametrize(
    "num_tokens, num_devices, best",
    [
        (8192, 2, "ring"),
        (8192, 4, "ring"),
        (2048, 32, "ragged_all_to_all"),
        (1_000_000, 4, "fsdp"),
    ],
)
def test_the_transport_is_the_one_with_the_least_traffic(num_tokens, num_devices, best):
    chosen = choose_transport(
        ModelConfig(), num_tokens=num_tokens, num_devices=num_devices, itemsize=2
    )
    assert chosen == best


@pytest.mark.parametrize("first", [0, 3, 40])
def test_a_window_has_the_rows_of_the_whole(first):
    rng = np.random.default_rng(1)
    ids_MA = at_random(rng)
    routes = expert_parallel.plan_routes(jnp.asarray(ids_MA), num_experts=E)
    size = 50
    window = routes.window(jnp.asarray(first), size)
    experts_R = np.sort(ids_MA.reshape(-1))[first : first + size]
    want_E = np.bincount(experts_R, minlength=E + 1)[:E]
    np.testing.assert_array_equal(window.group_sizes_E, want_E)
    x_MD = jnp.asarray(rng.normal(size=(M, 4)), jnp.float32)
    whole_RD = expert_parallel.dispatch(x_MD, routes)
    np.testing.assert_array_equal(
        expert_parallel.dispatch(x_MD, window), whole_RD[first : first + size]
    )
