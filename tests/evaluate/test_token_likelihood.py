# SPDX-License-Identifier: Apache-2.0
"""Continuations are scored as a float64 softmax of the logits says, on any mesh."""

import functools

import jax
import numpy as np
import pytest

from ring_jax.config import ConfigError, MeshConfig, ModelConfig, MoeConfig
from ring_jax.evaluate.token_likelihood import Continuation, score
from ring_jax.generate import Engine, Request
from ring_jax.model import init_transformer
from ring_jax.sharding import make_mesh
from tests.generate.test_command import CONFIG as RUN
from tests.generate.test_command import TOKENIZER

MODEL = ModelConfig(
    vocab_size=RUN.model.vocab_size,
    model_dim=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    head_dim=8,
    moe=MoeConfig(
        num_experts=4, num_experts_per_token=2, num_shared_experts=1, expert_dim=8
    ),
    init_std=0.5,
    max_positions=64,
    eos_id=1,
    pad_id=1,
)
RNG = np.random.default_rng(0)
# Of lengths that share rows and that do not, up to one token more than positions.
LENGTHS = (2, 5, 31, 33, 34, 60, 65)
CONTINUATIONS = [
    Continuation(RNG.integers(0, MODEL.vocab_size, length).tolist(), number % 3 + 1)
    for number, length in enumerate(LENGTHS)
]


@functools.cache
def scored(**axes: int):
    mesh = make_mesh(
        MeshConfig(**axes), jax.devices()[: int(np.prod([*axes.values()]))]
    )
    with jax.set_mesh(mesh):
        create = jax.jit(lambda: init_transformer(MODEL, jax.random.key(0)))
        return score(create(), CONTINUATIONS, dtype="float32", max_rows=3)


def test_likelihoods_are_those_of_a_softmax_in_float64(mesh):
    model = jax.jit(lambda: init_transformer(MODEL, jax.random.key(0)))()
    ids_BT = np.zeros((len(CONTINUATIONS), MODEL.max_positions), np.int32)
    for row, one in enumerate(CONTINUATIONS):
        ids_BT[row, : len(one.ids) - 1] = one.ids[:-1]
    positions_BT = np.broadcast_to(
        np.arange(ids_BT.shape[1], dtype=np.int32), ids_BT.shape
    )
    hidden_BTD, _ = jax.jit(
        lambda model: model(
            ids_BT, segments_BT=np.ones_like(ids_BT), positions_BT=positions_BT
        )
    )(model)
    logits_BTV = np.asarray(model.logits(hidden_BTD), np.float64)
    logits_BTV -= logits_BTV.max(axis=2, keepdims=True)
    log_BTV = logits_BTV - np.log(np.exp(logits_BTV).sum(axis=2, keepdims=True))
    for row, (one, found) in enumerate(zip(CONTINUATIONS, scored(), strict=True)):
        places = range(one.num_context, len(one.ids))
        wanted = sum(log_BTV[row, place - 1, one.ids[place]] for place in places)
        # float32 sums against float64 of the same logits.
        np.testing.assert_allclose(found.log_likelihood, wanted, rtol=1e-5)
        best = all(log_BTV[row, p - 1].argmax() == one.ids[p] for p in places)
        assert found.is_greedy == best


@pytest.mark.parametrize(
    "axes",
    [{"data": 2, "fsdp": 2, "expert": 2}, {"tensor": 2}, {"context": 2}],
    ids=str,
)
def test_a_mesh_changes_nothing(axes):
    alone = [one.log_likelihood for one in scored()]
    found = [one.log_likelihood for one in scored(**axes)]
    np.testing.assert_allclose(found, alone, rtol=1e-5)


def test_what_the_engine_says_is_greedy_and_as_likely_as_it_says(mesh):
    model = jax.jit(lambda: init_transformer(MODEL, jax.random.key(0)))()
    engine = Engine(model, TOKENIZER, config=RUN.evaluate, dtype="float32")
    prompt = tuple(TOKENIZER.encode("seven plus eight is"))
    (said,) = engine.complete([Request(prompt_ids=prompt)])
    *before, last = said.ids
    other = (last + 1) % MODEL.vocab_size
    whole, changed = score(
        model,
        [Continuation([*prompt, *before, end], len(prompt)) for end in (last, other)],
        dtype="float32",
        max_rows=2,
    )
    assert whole.is_greedy and not changed.is_greedy
    np.testing.assert_allclose(
        whole.log_likelihood, sum(said.log_probabilities), rtol=1e-4
    )


@pytest.mark.parametrize("ids, num_context", [([1], 1), ([1, 2], 0), ([1] * 66, 1)])
def test_what_cannot_be_scored_is_refused(mesh, ids, num_context):
    model = jax.eval_shape(lambda: init_transformer(MODEL, jax.random.key(0)))
    with pytest.raises(ConfigError, match="max_positions=64"):
        score(model, [Continuation(ids, num_context)], dtype="float32", max_rows=1)
