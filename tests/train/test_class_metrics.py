# SPDX-License-Identifier: Apache-2.0
"""Each token class has a weight of its own in the loss, and figures of its own."""

import dataclasses

import jax
import numpy as np
import pytest

from ring_jax import sharding
from ring_jax.config import TOKEN_CLASSES, MeshConfig
from ring_jax.train.loop import place
from ring_jax.train.metrics import readable
from ring_jax.train.optimizer import make_optimizer
from ring_jax.train.state import init_state
from ring_jax.train.step import make_train_step

CLASSES = TOKEN_CLASSES[1:]
WEIGHTS = {"prompt": 0.0, "think": 0.25, "answer": 1.0, "tool": 2.0, "stop": 0.5}


def weighted(batch, weights):
    """The batch with one weight per class."""
    table_U = np.asarray([0.0, *(weights[name] for name in CLASSES)], np.float32)
    return dataclasses.replace(batch, weights_BT=table_U[batch.classes_BT])


def first_step(run, batch, mesh):
    """The named metrics of a first step, and the model before it."""
    optimizer = make_optimizer(run.train.optimizer, run.stages)
    state = jax.jit(lambda: init_state(run, optimizer))()
    # The step gives its arrays away.
    model = jax.device_get(state.model)
    _, metrics = make_train_step(run, optimizer)(state, place(batch, mesh))
    return readable(metrics, ["a", "b"])[0], model


def target_losses(model, batch, mesh):
    """Cross-entropy of each target, by softmax in float64, and the target's class."""

    @jax.jit
    def logits_of(model, batch):
        hidden_BTD, _ = model(
            batch.ids_BT,
            segments_BT=batch.segments_BT,
            positions_BT=batch.positions_BT,
        )
        return model.logits(hidden_BTD)

    logits = np.asarray(logits_of(model, place(batch, mesh)), np.float64)[:, :-1]
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    next_ids = batch.ids_BT[:, 1:, None]
    losses = -np.take_along_axis(log_probs, next_ids, axis=-1)[..., 0]
    segments = batch.segments_BT
    is_target = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return losses[is_target], batch.classes_BT[:, 1:][is_target]


@pytest.mark.parametrize(("devices", "absent"), [(1, "tool"), (4, None)])
def test_each_class_has_its_own_loss_and_count_whatever_it_weighs(
    tiny_run, make_batch, devices, absent
):
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:devices])
    batch = make_batch(3)
    if absent is not None:
        is_absent_BT = batch.classes_BT == TOKEN_CLASSES.index(absent)
        classes_BT = np.where(
            is_absent_BT, TOKEN_CLASSES.index("answer"), batch.classes_BT
        )
        batch = dataclasses.replace(batch, classes_BT=classes_BT)
    batch = weighted(batch, WEIGHTS)
    with jax.set_mesh(mesh):
        named, model = first_step(tiny_run, batch, mesh)
        losses, classes = target_losses(model, batch, mesh)
    assert {key for key in named if "/padding" in key} == set()
    for number, name in enumerate(CLASSES, 1):
        mine = losses[classes == number]
        assert named[f"tokens/class/{name}"] == len(mine)
        assert (f"loss/class/{name}" in named) == (name != absent) == (len(mine) > 0)
        if name != absent:
            np.testing.assert_allclose(
                named[f"loss/class/{name}"], mine.mean(), rtol=1e-5
            )
    # The weights meet in the objective, and nowhere else.
    weights = np.asarray([0.0, *(WEIGHTS[name] for name in CLASSES)])[classes]
    expected = (weights * losses).sum() / weights.sum()
    np.testing.assert_allclose(named["train/cross_entropy"], expected, rtol=1e-5)
    assert named["train/trained_tokens"] == (weights > 0).sum()
