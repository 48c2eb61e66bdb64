# SPDX-License-Identifier: Apache-2.0
"""Decoding from slots of a cache gives what whole rows give."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ring_jax import sharding
from ring_jax.config import MeshConfig, ModelConfig
from ring_jax.model import (
    KeyValues,
    Places,
    empty_cache,
    init_transformer,
    make_decoder,
    write,
)

# Float32 sums of a few hundred terms in another order: 1e-5 of values of order 1.
CLOSE: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture(scope="module")
def mixed(tiny) -> ModelConfig:
    """A first layer that is dense, and a head that is the embedding."""
    return dataclasses.replace(
        tiny, num_dense_layers=1, mlp_dim=32, tie_embeddings=True
    )


@pytest.fixture(scope="module")
def dense(tiny) -> ModelConfig:
    """A Llama: no layer has experts."""
    return dataclasses.replace(
        tiny, num_dense_layers=tiny.num_layers, mlp_dim=32, norm_head=False
    )


@functools.partial(jax.jit, static_argnums=0)
def create(config: ModelConfig):
    return init_transformer(config, jax.random.key(0))


@jax.jit
def whole_rows(model, ids_BT):
    positions_BT = jnp.broadcast_to(jnp.arange(ids_BT.shape[1])[None], ids_BT.shape)
    hidden_BTD, _ = model(
        ids_BT, segments_BT=jnp.ones_like(ids_BT), positions_BT=positions_BT
    )
    return model.logits(hidden_BTD)


@jax.jit
def advance(decoder, cache, ids_BT, places):
    hidden_BTD, cache = decoder(ids_BT, cache, places)
    return decoder.logits(hidden_BTD), cache


def places_of(*lengths: int, num_tokens: Sequence[int] = ()) -> Places:
    """One token at hand of each row, unless it is said how many."""
    first_slot, ones = jnp.zeros(1, jnp.int32), [1] * len(lengths)
    return Places(first_slot, *map(jnp.asarray, (lengths, num_tokens or ones)))


@pytest.mark.parametrize("kind", ["tiny", "mixed", "dense"])
def test_decoding_token_by_token_equals_the_whole_row(mesh, kind, request):
    config = request.getfixturevalue(kind)
    model = create(config)
    ids_BT = np.random.default_rng(0).integers(0, 60, (2, 12)).astype(np.int32)
    whole_BTV = whole_rows(model, ids_BT)
    decoder = make_decoder(model, dtype="float32")
    cache = empty_cache(config, 2, 16, dtype="float32")
    # The second slot is three tokens behind the first.
    for t in range(15):
        is_on = [int(t < 12), int(t >= 3)]
        places = places_of(min(t, 11), max(t - 3, 0), num_tokens=is_on)
        next_B1 = np.stack([ids_BT[0, min(t, 11)], ids_BT[1, max(t - 3, 0)]])[:, None]
        step_BTV, cache = advance(decoder, cache, next_B1, places)
        if t < 12:
            np.testing.assert_allclose(step_BTV[0, 0], whole_BTV[0, t], **CLOSE)
        if t >= 3:
            np.testing.assert_allclose(step_BTV[1, 0], whole_BTV[1, t - 3], **CLOSE)


@pytest.mark.parametrize("num_places", [384, 320], ids=["whole_blocks", "cut_block"])
def test_chunks_over_several_blocks_equal_the_whole_row(mesh, tiny, num_places):
    model = create(tiny)
    ids_1T = np.random.default_rng(1).integers(0, 60, (1, 320)).astype(np.int32)
    whole_1TV = whole_rows(model, ids_1T)
    decoder = make_decoder(model, dtype="float32")
    cache = empty_cache(tiny, 1, num_places, dtype="float32")
    for start in range(0, 320, 64):
        chunk_1T = ids_1T[:, start : start + 64]
        places = places_of(start, num_tokens=[64])
        logits_1TV, cache = advance(decoder, cache, chunk_1T, places)
        np.testing.assert_allclose(
            logits_1TV, whole_1TV[:, start : start + 64], **CLOSE
        )


def test_a_longer_neighbour_changes_no_bit(mesh, tiny):
    """However many blocks the longest slot makes all of them go through."""
    decoder = make_decoder(create(tiny), dtype="float32")
    full = empty_cache(tiny, 2, 512, dtype="float32")
    noise = jax.random.normal(jax.random.key(1), full.key_LBKSH.shape)
    cache = KeyValues(noise, 2 * noise)
    next_B1 = jnp.array([[5], [6]])
    near, _ = advance(decoder, cache, next_B1, places_of(70, 3))
    far, _ = advance(decoder, cache, next_B1, places_of(70, 500))
    assert np.array_equal(near[0], far[0])
    assert not np.allclose(near[1], far[1])


def test_a_row_without_tokens_leaves_its_slot_as_it_is(mesh, tiny):
    shape = empty_cache(tiny, 2, 16, dtype="float32").key_LBKSH.shape
    cache = KeyValues(jnp.ones(shape), jnp.ones(shape))
    new = jax.tree.map(lambda x: 5 * x[:, :, :, :4], cache)
    after = write(cache, new, places_of(3, 3, num_tokens=[0, 2]))
    for stack in (after.key_LBKSH, after.value_LBKSH):
        assert (np.asarray(stack[:, 0]) == 1).all()
        assert (np.asarray(stack[:, 1, :, 3:7]) == 5).all()
        assert (np.asarray(stack[:, 1, :, 7:]) == 1).all()


@pytest.mark.parametrize(("num_rows", "num_tokens"), [(1, 1), (2, 1), (1, 16)])
def test_a_loop_of_steps_copies_no_cache(mesh, tiny, num_rows, num_tokens):
    """A copy of a cache at every token costs as much as reading the weights."""
    decoder = make_decoder(create(tiny), dtype="float32")
    cache = empty_cache(tiny, 2, 4096, dtype="float32")
    ids_BT = jnp.ones((num_rows, num_tokens), jnp.int32)

    @functools.partial(jax.jit, donate_argnames="cache")
    def advance_often(decoder, cache, places):
        def step(_, cache: KeyValues) -> KeyValues:
            return decoder(ids_BT, cache, places)[1]

        return jax.lax.fori_loop(0, 3, step, cache)

    places = places_of(*[70, 3][:num_rows], num_tokens=[num_tokens] * num_rows)
    compiled = advance_often.lower(decoder, cache, places).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes >= 2 * cache.key_LBKSH.nbytes
    assert memory.temp_size_in_bytes < cache.key_LBKSH.nbytes


def test_a_bfloat16_decoder_agrees_with_the_model_in_bfloat16(mesh, tiny):
    model = create(tiny)
    ids_BT = np.random.default_rng(0).integers(0, 60, (1, 8)).astype(np.int32)
    hidden_BTD, _ = model(
        ids_BT,
        segments_BT=jnp.ones_like(ids_BT),
        positions_BT=jnp.arange(8)[None],
        dtype=jnp.bfloat16,
    )
    decoder = make_decoder(model, dtype="bfloat16")
    cache = empty_cache(tiny, 1, 16, dtype="bfloat16")
    got_BTV, _ = advance(decoder, cache, ids_BT, places_of(0, num_tokens=[8]))
    want_BTV = model.logits(hidden_BTD)
    assert decoder.embed_VD.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits; two layers round in another order.
    scale = float(jnp.std(want_BTV))
    np.testing.assert_allclose(got_BTV, want_BTV, atol=0.1 * scale)


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(MeshConfig(data=1, expert=2, tensor=2), id="mixed"),
        pytest.param(MeshConfig(data=1, fsdp=4), id="fsdp", marks=pytest.mark.slow),
        pytest.param(MeshConfig(data=1, expert=4), id="expert", marks=pytest.mark.slow),
    ],
)
def test_every_layout_decodes_the_same(tiny, layout):
    ids_BT = np.random.default_rng(2).integers(0, 60, (4, 6)).astype(np.int32)

    def run(config, devices):
        with jax.set_mesh(sharding.make_mesh(config, devices)) as _:
            mesh = jax.sharding.get_mesh()
            num_devices = sharding.num_batch_shards(mesh)
            put = functools.partial(jax.device_put)
            rows = sharding.on_mesh(sharding.activation("B"), mesh)
            first = sharding.on_mesh(sharding.activation("J"), mesh)
            places = Places(
                put(np.zeros(num_devices, np.int32), first),
                put(np.zeros(4, np.int32), rows),
                put(np.full(4, 6, np.int32), rows),
            )
            ids = put(ids_BT, sharding.on_mesh(sharding.whole_rows(), mesh))
            decoder = make_decoder(create(tiny), dtype="float32")
            make = jax.jit(lambda: empty_cache(tiny, 4, 16, dtype="float32"))
            return jax.device_get(advance(decoder, make(), ids, places))

    one_BTV, one_cache = run(MeshConfig(), jax.devices()[:1])
    many_BTV, many_cache = run(layout, jax.devices()[:4])
    np.testing.assert_allclose(many_BTV, one_BTV, **CLOSE)
    np.testing.assert_allclose(many_cache.key_LBKSH, one_cache.key_LBKSH, **CLOSE)
