# SPDX-License-Identifier: Apache-2.0
"""One step: accumulation, layouts, schedule, decay, warm-up, memory of a compile."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ring_jax import sharding
from ring_jax.config import ConfigError, MeshConfig
from ring_jax.objectives import next_tokens, training_loss
from ring_jax.objectives.training_loss import router_loss
from ring_jax.train.loop import place
from ring_jax.train.optimizer import decay_mask, learning_rate, make_optimizer
from ring_jax.train.state import add_tokens, init_state
from ring_jax.train.step import RoutingWarmup, make_train_step


def run_steps(run, batches, *, layout=None, devices=1, warmup=None):
    """Losses and gradient norms of a few steps on a mesh of its own."""
    mesh = sharding.make_mesh(layout or MeshConfig(), jax.devices()[:devices])
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(run.train.optimizer, run.stages)
        state = jax.jit(lambda: init_state(run, optimizer))()
        step = make_train_step(run, optimizer, warmup=warmup)
        found = []
        for batch in batches:
            state, metrics = step(state, place(batch, mesh))
            found.append([float(metrics.loss), float(metrics.grad_norm)])
        assert step._cache_size() == 1, "a step after the first compiled again"
        return np.asarray(found), jax.device_get(state)


def with_train(run, **changes):
    return dataclasses.replace(run, train=dataclasses.replace(run.train, **changes))


@pytest.fixture(scope="module")
def ten_steps(tiny_run, make_batch) -> np.ndarray:
    """Losses and gradient norms of the tiny run on one device, compiled once."""
    return run_steps(tiny_run, [make_batch(seed) for seed in range(10)])[0]


def test_ten_steps_have_the_reviewed_losses(ten_steps, request):
    found = ten_steps
    path = pathlib.Path(__file__).parent.parent / "golden" / "loss" / "tiny.txt"
    if request.config.getoption("--update-golden"):
        np.savetxt(path, found, fmt="%.6f", header="loss, gradient norm of each step")
    # Other machines sum in another order; ten Adam steps of this model turn 1e-7 into
    # less than 1e-4.
    np.testing.assert_allclose(
        found,
        np.loadtxt(path),
        rtol=1e-3,
        err_msg="Training changed. A refactor, a new layout or a faster kernel must "
        "not do that. If initial values, objective, optimizer or model changed on "
        "purpose, run pytest --update-golden and say in the commit why.",
    )


def test_accumulation_weighs_tokens_as_the_whole_batch_does(tiny_run, make_batch):
    # The router's losses are means over parts, so they are switched off here.
    loss = dataclasses.replace(tiny_run.train.loss, balance_coef=0.0, router_z_coef=0.0)
    batches = [make_batch(seed) for seed in range(3)]
    whole, _ = run_steps(with_train(tiny_run, loss=loss), batches)
    # The next test has two parts.
    parts = with_train(tiny_run, loss=loss, num_microbatches=4)
    found, _ = run_steps(parts, batches)
    # The same sums in another order, through two Adam updates.
    np.testing.assert_allclose(found, whole, rtol=2e-4)


def test_accumulated_router_losses_are_the_mean_over_parts(tiny_run, make_batch, mesh):
    batch = make_batch(0)
    parts = [jax.tree.map(lambda x, i=i: x[i::2], batch) for i in range(2)]
    total_weight = jnp.sum(next_tokens(place(batch, mesh)).weights_BT)
    optimizer = make_optimizer(tiny_run.train.optimizer, tiny_run.stages)
    state = jax.jit(lambda: init_state(tiny_run, optimizer))()

    def mean_loss(model):
        return sum(
            training_loss(
                model,
                place(part, mesh),
                config=tiny_run.train,
                num_sources=2,
                total_weight=total_weight,
                share=0.5,
                noise=None,
            )[0]
            for part in parts
        )

    want, grads = jax.jit(jax.value_and_grad(mean_loss))(state.model)
    squares = [float(jnp.sum(jnp.square(leaf))) for leaf in jax.tree.leaves(grads)]
    found, _ = run_steps(with_train(tiny_run, num_microbatches=2), [batch])
    np.testing.assert_allclose(found[0], [want, np.sqrt(sum(squares))], rtol=1e-4)


def test_the_z_loss_gradient_matches_finite_differences_under_scan_and_remat(
    tiny_run, make_batch, mesh
):
    # All experts of a token are active: a choice that flips would be a jump that no
    # difference can follow. The balance loss, flat here, has its own test of gradients
    # with the choice held fixed, in tests/model/test_router.py.
    moe = dataclasses.replace(tiny_run.model.moe, num_experts_per_token=4)
    tiny_run = dataclasses.replace(
        tiny_run, model=dataclasses.replace(tiny_run.model, moe=moe)
    )
    batch = place(make_batch(0), mesh)
    loss = dataclasses.replace(tiny_run.train.loss, balance_coef=0.0, router_z_coef=1.0)
    config = dataclasses.replace(tiny_run.train, loss=loss, remat="block")
    optimizer = make_optimizer(tiny_run.train.optimizer, tiny_run.stages)
    model = jax.jit(lambda: init_state(tiny_run, optimizer))().model

    def router_part(model):
        hidden_BTD, router = model(
            batch.ids_BT,
            segments_BT=batch.segments_BT,
            positions_BT=batch.positions_BT,
            remat=config.remat,
        )
        del hidden_BTD
        return router_loss(router, config.loss)

    gradient = jax.jit(jax.grad(router_part))(model)
    router_LDE = model.moe_layers.moe.router_DE[...]
    direction_LDE = jax.random.normal(jax.random.key(1), router_LDE.shape)

    def moved(step):
        changed: Any = jax.tree.map(lambda x: x, model)
        changed.moe_layers.moe.router_DE[...] = router_LDE + step * direction_LDE
        return float(jax.jit(router_part)(changed))

    step = 1e-3
    slope = (moved(step) - moved(-step)) / (2 * step)
    got = jnp.sum(gradient.moe_layers.moe.router_DE[...] * direction_LDE)
    # Float32 losses near 1 differ by 1e-7 / 2e-3 = 5e-5 of slope, beside curvature.
    np.testing.assert_allclose(got, slope, rtol=2e-2, atol=2e-3)


LAYOUTS = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=2, fsdp=4),
    "expert": MeshConfig(data=1, fsdp=4, expert=2),
    "context": MeshConfig(data=1, fsdp=2, expert=2, context=2),
    "slice": MeshConfig(slice=2, data=1, fsdp=2, context=2),
    "tensor": MeshConfig(data=2, expert=2, tensor=2),
}
"""Meshes of eight devices, named by what each has that those before have not."""

PARTS_OF_OTHERS = ("data", "fsdp", "expert", "context")
"""Their axes are also split in the layouts that are always tried."""


@pytest.fixture(scope="module")
def one_device(tiny_run, make_batch):
    """The run and the batches of the layouts, and what one device makes of them."""
    batches = [make_batch(seed) for seed in range(20)]
    model = dataclasses.replace(tiny_run.model, num_kv_heads=2)  # for tensor=2
    run = dataclasses.replace(tiny_run, model=model)
    return run, batches, run_steps(run, batches)[0]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in PARTS_OF_OTHERS))
        for name in LAYOUTS
    ],
)
def test_eight_devices_train_as_one_does(one_device, name):
    run, batches, one = one_device
    eight, _ = run_steps(run, batches, layout=LAYOUTS[name], devices=8)
    # Float32 sums over devices in another order, through twenty Adam updates. A token
    # whose second and third expert are equally likely may change its route: it moves
    # the mean over some 100 tokens by less than this.
    np.testing.assert_allclose(eight, one, rtol=1e-3)


def test_bfloat16_trains_beside_float32(tiny_run, make_batch, ten_steps):
    batches = [make_batch(seed) for seed in range(4)]
    full = ten_steps[:4]
    half, state = run_steps(with_train(tiny_run, compute_dtype="bfloat16"), batches)
    # bfloat16 keeps 8 bits; losses are means over 100 tokens.
    np.testing.assert_allclose(half[:, 0], full[:, 0], rtol=1e-2)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.model)} == {jnp.dtype("f4")}


def test_routing_warm_up_ends_in_the_router_itself(tiny_run, make_batch, ten_steps):
    batches = [make_batch(seed) for seed in range(2)]
    plain = ten_steps[:2]
    # A warm-up that ended before it began changes nothing; one at its start does.
    over, _ = run_steps(tiny_run, batches, warmup=RoutingWarmup(-10, 5))
    np.testing.assert_allclose(over, plain, rtol=1e-5)
    noisy, _ = run_steps(tiny_run, batches, warmup=RoutingWarmup(0, 100))
    assert not np.allclose(noisy, plain, rtol=1e-3)


def test_the_learning_rate_warms_up_and_decays_in_every_stage(tiny_run):
    rates = [
        float(learning_rate(tiny_run.stages, jnp.asarray(step))) for step in range(12)
    ]
    peak = 1e-2
    for stage in (rates[:6], rates[6:]):
        assert stage[0] == pytest.approx(peak / 2)
        assert stage[1] == pytest.approx(peak)
        assert stage[-1] == pytest.approx(peak * 0.1)
        assert sorted(stage[1:], reverse=True) == stage[1:]


def test_a_model_without_routed_layers_is_refused(tiny_run):
    optimizer = make_optimizer(tiny_run.train.optimizer, tiny_run.stages)
    num_layers = tiny_run.model.num_layers
    dense = dataclasses.replace(
        tiny_run.model, num_dense_layers=num_layers, norm_head=False
    )
    with pytest.raises(ConfigError, match="all .* layers are dense"):
        make_train_step(dataclasses.replace(tiny_run, model=dense), optimizer)


def test_matrices_decay_and_norms_do_not(tiny_run, mesh):
    del mesh
    optimizer = make_optimizer(tiny_run.train.optimizer, tiny_run.stages)
    model = jax.eval_shape(lambda: init_state(tiny_run, optimizer)).model
    mask = decay_mask(model)
    assert mask.moe_layers is not None and mask.moe_layers.moe is not None
    decays = {
        jax.tree_util.keystr(path): bool(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(mask)
    }
    for path, is_decayed in decays.items():
        assert is_decayed == ("norm" not in path), path
    assert sum(decays.values()) >= 5


def test_the_token_counter_carries():
    words = jnp.asarray([2**32 - 3, 7], jnp.uint32)
    assert add_tokens(words, jnp.asarray(5)).tolist() == [2, 8]
