# SPDX-License-Identifier: Apache-2.0
"""A whole step of Ling-lite, by the TPU's own compiler."""

import dataclasses
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from ring_jax import sharding
from ring_jax.batch import Batch
from ring_jax.config import (
    DataConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
    from_config_dict,
)
from ring_jax.train.optimizer import make_optimizer
from ring_jax.train.state import init_state
from ring_jax.train.step import make_train_step

SEQ_LEN = 2048


def a_layer_of_ling_lite() -> RunConfig:
    tree = importlib.import_module("configs.models.ling_lite").get_config()
    model = dataclasses.replace(from_config_dict(ModelConfig, tree), num_layers=1)
    return RunConfig(
        model=model,
        data=DataConfig(sources={"a": SourceConfig()}),
        train=TrainConfig(global_batch_size=4, seq_len=SEQ_LEN),
        stages={"only": StageConfig(mixture={"a": 1.0}, num_steps=10)},
    )


@pytest.mark.aot
@pytest.mark.parametrize("sizes", [{"fsdp": 4}, {"fsdp": 2, "expert": 2}], ids=str)
def test_a_step_of_ling_lite_compiles_with_the_kernels(sizes, absent_mesh):
    run = a_layer_of_ling_lite()
    mesh = absent_mesh("v6e", **sizes)
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(run.train.optimizer, run.stages)
        state = jax.eval_shape(lambda: init_state(run, optimizer))
        layout = sharding.on_mesh(sharding.whole_rows(), mesh)

        def rows(dtype) -> Any:
            shape = (run.train.global_batch_size, SEQ_LEN)
            return jax.ShapeDtypeStruct(shape, dtype, sharding=layout)

        ids = rows(jnp.int32)
        batch = Batch(ids, ids, ids, ids, ids, rows(jnp.float32))
        step = make_train_step(run, optimizer)
        text = step.lower(state, batch).compile().as_text()
    # Experts: two kernels forward, again when the layer is recomputed, four backward.
    # Attention: one forward, again when it is recomputed, two backward.
    assert text.count('custom_call_target="tpu_custom_call"') >= 6 + 3
    for kernel in ("grouped_outer", "expert_gate_up", "packed_attention"):
        assert kernel in text
    # Where experts are shared, a device has rows of some of its tokens' pairs only.
    assert ("segment_sum" in text) == ("expert" in sizes)
