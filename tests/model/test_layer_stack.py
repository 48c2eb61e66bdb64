# SPDX-License-Identifier: Apache-2.0
"""Layers whose weights come while others compute: what is kept, what is awaited."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ring_jax import collectives, sharding
from ring_jax.config import MeshConfig
from ring_jax.model import init_transformer
from ring_jax.model.layer_stack import Remat, arrive_backward, arrive_forward

REMATS = [each for each in typing.get_args(Remat.__value__) if each != "none"]
NUM_LAYERS = 6
"""More than are unrolled."""


@pytest.fixture
def run(tiny):
    """Makes a function of a model on four devices, and the model's shapes."""
    config = dataclasses.replace(tiny, num_layers=NUM_LAYERS)
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=2, expert=2), jax.devices()[:4])

    def make(remat):
        model = jax.eval_shape(lambda key: init_transformer(config, key), key)

        def hidden(model):
            return model(
                ids_BT,
                segments_BT=jnp.ones_like(ids_BT),
                positions_BT=jnp.zeros_like(ids_BT),
                remat=remat,
            )[0]

        return hidden, model

    with jax.set_mesh(mesh):
        key, ids_BT = jax.random.key(0), jnp.zeros((4, 8), jnp.int32)
        yield make


@pytest.mark.parametrize("remat", REMATS)
def test_gathered_weights_of_one_layer_alone_wait_for_the_backward_pass(run, remat):
    hidden, model = run(remat)

    def pull_back(model):
        return jax.vjp(hidden, model)[1]

    kept = jax.tree.leaves(jax.eval_shape(pull_back, model))
    stack = model.moe_layers.moe.gate_up_ED2F.get_value()
    num_layers = stack.shape[0]
    size = stack.size // num_layers
    # Each of four devices has its own copy of half of the experts.
    assert 4 * size // 2 in [leaf.size for leaf in kept]
    stacked = [leaf.size for leaf in kept if leaf.shape[:1] == (num_layers,)]
    # The parameters are as large; four copies of half of them would be twice that.
    assert max(stacked) == stack.size


@pytest.mark.parametrize(
    ("sizes", "num_layers"),
    [
        pytest.param({"fsdp": 8}, 6, marks=pytest.mark.slow),
        # Fewer layers than a weight is on its way.
        ({"fsdp": 2, "expert": 2, "tensor": 2}, 2),
        pytest.param({"data": 2, "fsdp": 4}, 1, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_weights_that_come_in_phases_give_the_values_of_one_device(
    tiny, monkeypatch, sizes, num_layers
):
    """By permutes, as on TPUs, whose devices are here in lines of two and four."""
    monkeypatch.setattr(collectives, "_are_permutes_hidden", lambda: True)
    config = dataclasses.replace(tiny, num_layers=1 + num_layers)
    batch = np.random.default_rng(0).integers(0, config.vocab_size, (8, 16))

    def loss(model, ids_BT):
        hidden_BTD, _ = model(
            ids_BT,
            segments_BT=jnp.ones_like(ids_BT),
            positions_BT=jnp.zeros_like(ids_BT),
            dtype=jnp.float32,
            remat="block",
        )
        return jnp.mean(jnp.sin(hidden_BTD))

    def run(mesh_config, devices):
        mesh = sharding.make_mesh(mesh_config, devices)
        with jax.set_mesh(mesh):
            init = jax.jit(lambda key: init_transformer(config, key))
            layout = sharding.on_mesh(sharding.activation("BT"), mesh)
            ids_BT = jax.device_put(batch, layout)
            value, grads = jax.jit(jax.value_and_grad(loss))(
                init(jax.random.key(0)), ids_BT
            )
            return jax.device_get((value, jax.tree.leaves(grads)))

    value, grads = run(MeshConfig(**({"data": 1} | sizes)), jax.devices()[:8])
    want, want_grads = run(MeshConfig(data=1), jax.devices()[:1])
    np.testing.assert_allclose(value, want, rtol=1e-5)
    for grad, want_grad in zip(grads, want_grads, strict=True):
        # Float32 sums over eight devices, in another order.
        bound = 1e-5 * np.max(np.abs(want_grad))
        np.testing.assert_allclose(grad, want_grad, rtol=0, atol=bound)


@pytest.mark.parametrize("meet", [arrive_forward, arrive_backward])
def test_what_arrives_meets_the_layer_and_changes_nothing(meet):
    x, weights, arriving = jnp.ones(3), {"w": jnp.full((2, 2), 2.0)}, [jnp.ones(2)]
    args = (x, arriving) if meet is arrive_forward else (x, weights, arriving)

    def backward(*args):
        return jax.vjp(meet, *args)[1](args)

    for function in (meet, backward):
        got = function(*args)
        assert jax.tree.structure(got) == jax.tree.structure(args)
        assert all(map(jnp.array_equal, jax.tree.leaves(got), jax.tree.leaves(args)))


def test_what_arrives_is_awaited_in_one_direction_alone():
    def barriers(function, *args):
        return str(jax.make_jaxpr(function)(*args)).count("optimization_barrier")

    def backward(meet, *args):
        pull_back = jax.vjp(meet, *args)[1]
        return barriers(pull_back, args)

    x, weights, arriving = jnp.ones(3), jnp.ones(5), [jnp.ones(2), jnp.ones(8)]
    assert barriers(arrive_forward, x, arriving) == 1
    assert backward(arrive_forward, x, arriving) == 0
    assert barriers(arrive_backward, x, weights, arriving) == 0
    assert backward(arrive_backward, x, weights, arriving) == 1
