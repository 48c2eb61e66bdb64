# SPDX-License-Identifier: Apache-2.0
"""Rows that are split over devices: the same suite for all implementations."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from pallas_kernels import hardware
from pallas_kernels.attention import (
    IMPLEMENTATIONS,
    context_attention,
    packed_attention,
    tpu,
    unsupported,
    unzigzag,
    xla,
    zigzag,
)
from pallas_kernels.attention.flash import Spans, document_starts
from tests.attention_reference import assert_close, expected, found, operands, segments
from tests.emulated_tpu import emulated

BLOCK = 128
# Two chunks of a block for each of so many devices.
SHARDS = {2: 512, 4: 1024}
# Lengths of the documents of two rows, in parts of 1,024; the rest is padding.
ROWS = {
    "one_document_and_many": [[1024], [37, 5, 90] * 7],
    "documents_that_cross_shards": [[300, 512, 212], [129, 127, 600, 1]],
    "shards_without_a_token": [[70], []],
}


@pytest.fixture(params=[*IMPLEMENTATIONS, "xla, looped"])
def implementation(request, monkeypatch):
    """Each implementation; the TPU's with small blocks, `xla` unrolled and looped."""
    monkeypatch.setattr(tpu, "BLOCK", BLOCK)
    if request.param == "xla, looped":
        monkeypatch.setattr(xla, "MAX_UNROLLED", 0)
        monkeypatch.setattr(xla, "BLOCK", 64)
    return request.param


def rows_of(lengths, num_positions):
    """Returns i32[2, S] of documents whose lengths are given in parts of 1,024."""
    scaled = [[max(n * num_positions // 1024, 1) for n in row] for row in lengths]
    filled = segments([*scaled, [num_positions]])
    return filled[:-1]


def make_mesh(num_shards, *, num_data=1):
    sizes, axes = (num_data, num_shards), ("data", "context")
    kinds, devices = (AxisType.Explicit,) * 2, jax.devices()[: num_data * num_shards]
    return jax.make_mesh(sizes, axes, axis_types=kinds, devices=devices)


@functools.cache
def compiled(implementation, num_shards):
    """Returns one function for all rows of a shape, by the names of the fixture."""
    spec = P("data", "context")
    # What the interpreter steps through does not know over which axes a number varies.
    check_vma = implementation != "tpu"
    run = jax.shard_map(
        passes(implementation.partition(",")[0]),
        mesh=make_mesh(num_shards),
        in_specs=spec,
        out_specs=spec,
        check_vma=check_vma,
    )
    return jax.jit(run)


def sharded(implementation, num_shards, arrays):
    """Attends on each device's part of the arrays; returns whole rows."""
    mesh, spec = make_mesh(num_shards), P("data", "context")
    with jax.set_mesh(mesh):
        layout = jax.NamedSharding(mesh, spec)
        placed = jax.device_put([zigzag(x, num_shards) for x in arrays], layout)
        results = compiled(implementation, num_shards)(*placed)
    return [unzigzag(np.asarray(x), num_shards) for x in results]


def passes(implementation):
    """Returns the output and the gradients, for the body of `shard_map`."""
    attend = functools.partial(
        context_attention, axis_name="context", implementation=implementation
    )
    return lambda *arrays: found(attend, arrays[:4], arrays[4])


def run(implementation, num_shards, arrays, segments_BT):
    """Differentiates inside `shard_map`, as the TPU's interpreter cannot be outside."""
    arrays = [*arrays, segments_BT]
    if implementation != "tpu":
        return sharded(implementation, num_shards, arrays)
    with emulated("TPU v6 lite", detect_races=False):
        return sharded("tpu", num_shards, arrays)


# Two are also in the test of heads.
@pytest.mark.parametrize("num_shards", [pytest.param(2, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_values_and_gradients_are_those_of_whole_rows(implementation, rows, num_shards):
    segments_BT = rows_of(rows, SHARDS[num_shards])
    arrays = operands(segments_BT)
    wanted = expected(arrays, segments_BT)
    # Padding holds NaN, which must reach nothing.
    is_token_BT11 = (segments_BT != 0)[:, :, None, None]
    arrays = [jnp.where(is_token_BT11, x, jnp.nan) for x in arrays]
    assert_close(run(implementation, num_shards, arrays, segments_BT), wanted)


@pytest.mark.parametrize(
    ("heads", "dtype"),
    [
        ((2, 2), "float32"),
        ((8, 2), "bfloat16"),
        # Each is in one of the above.
        pytest.param((2, 2), "bfloat16", marks=pytest.mark.slow),
        pytest.param((8, 2), "float32", marks=pytest.mark.slow),
    ],
)
def test_heads_share_keys_in_order(implementation, heads, dtype):
    segments_BT = rows_of(ROWS["documents_that_cross_shards"], 512)
    arrays = operands(segments_BT, heads, dtype)
    actual = run(implementation, 2, arrays, segments_BT)
    assert_close(actual, expected(arrays, segments_BT), dtype)


# Chunks of 12 and of 129 positions are no multiples of a block of 128.
@pytest.mark.parametrize("num_positions", [48, 516])
def test_any_chunk_will_do_off_tpus(num_positions):
    segments_BT = rows_of(ROWS["documents_that_cross_shards"], num_positions)
    arrays = operands(segments_BT)
    actual = run("xla", 2, arrays, segments_BT)
    assert_close(actual, expected(arrays, segments_BT))


@pytest.mark.parametrize("name", ["xla", "reference"])
def test_a_step_may_differentiate_and_rematerialise_the_whole(name):
    segments_BT = rows_of(ROWS["documents_that_cross_shards"], 1024)
    arrays = operands(segments_BT)
    mesh, spec = make_mesh(4, num_data=2), P("data", "context")
    attend = functools.partial(
        context_attention, axis_name="context", implementation=name
    )
    with jax.set_mesh(mesh):
        body = jax.shard_map(attend, in_specs=spec, out_specs=spec)
        layout = jax.NamedSharding(mesh, spec)
        placed = [jax.device_put(zigzag(x, 4), layout) for x in (*arrays, segments_BT)]
        step = jax.jit(lambda *x: found(jax.checkpoint(body), x[:4], x[4]))
        actual = [unzigzag(np.asarray(x), 4) for x in step(*placed)]
        text = step.lower(*placed).compile().as_text()
    assert_close(actual, expected(arrays, segments_BT))
    assert text is not None
    kinds = re.findall(r" (all-reduce|all-to-all|collective-permute)\(", text)
    assert not kinds


def traced(function, num_shards):
    """Traces `function` on each device's part of abstract rows of 512."""
    mesh, spec = make_mesh(num_shards), P("data", "context")
    with jax.set_mesh(mesh):
        layout = jax.NamedSharding(mesh, spec)
        arrays = [
            jax.ShapeDtypeStruct((2, 512, n, 16), jnp.bfloat16, sharding=layout)
            for n in (4, 1, 1, 4)
        ]
        arrays.append(jax.ShapeDtypeStruct((2, 512), jnp.int32, sharding=layout))
        body = jax.shard_map(function, in_specs=spec, out_specs=spec)
        return jax.jit(body).trace(*arrays)


def test_the_gradients_of_keys_and_values_are_scattered_once():
    text = traced(passes("xla"), 4).lower().as_text()
    # Of segments, keys and values; of keys and values again for the gradients.
    assert text.count("stablehlo.all_gather") == 5
    assert text.count("stablehlo.reduce_scatter") == 2
    assert "all_reduce" not in text


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_an_axis_of_one_device_is_the_program_of_whole_rows(name):
    whole = functools.partial(packed_attention, implementation=name)
    with hardware.pretend("TPU v6 lite"):
        split = traced(passes(name), 1).jaxpr
        wanted = traced(lambda *x: found(whole, x[:4], x[4]), 1).jaxpr
    assert str(split) == str(wanted)
    assert "all_gather" not in str(split)


def spans_of_devices(segments_BS, num_shards):
    """Returns `Spans` of each device, from the definition of the zigzag."""
    S = segments_BS.shape[1]
    chunk_J = np.arange(S).reshape(2 * num_shards, -1)
    own = [
        np.concatenate([chunk_J[i], chunk_J[2 * num_shards - 1 - i]])
        for i in range(num_shards)
    ]
    start_BS = document_starts(segments_BS)
    keys = np.concatenate(own)[::BLOCK]
    return [Spans(start_BS[:, part], part[::BLOCK], keys) for part in own]


def visited(spans, owned_by):
    """Returns what visits are of (row, query's and key's place) and their sight."""
    visits, num_visits = tpu.plan_visits(spans, owned_by=owned_by)
    owner, other, sight, query_place, key_place = (
        np.asarray(x) for x in jax.tree.leaves(visits)
    )
    assert np.all(np.diff(owner) >= 0)
    num = {"query": len(query_place), "key": len(key_place)}[owned_by]
    row, own = np.divmod(owner, num)
    queries, keys = (own, other) if owned_by == "query" else (other, own)
    n = int(num_visits)
    # Every owner is visited, or nobody would write its results.
    assert len(set(owner[:n])) == len(spans.start_BT) * num
    places = row[:n], query_place[queries[:n]], key_place[keys[:n]]
    return np.stack(places, axis=1), sight[:n]


@pytest.mark.parametrize("owned_by", ["query", "key"])
@pytest.mark.parametrize("num_shards", [1, 2, 4, 8])
def test_devices_share_the_work_of_a_document_equally(num_shards, owned_by):
    num_blocks = 48
    segments_BT = jnp.ones((1, num_blocks * BLOCK), jnp.int32)
    work = []
    for spans in spans_of_devices(segments_BT, num_shards):
        _, sight = visited(spans, owned_by)
        work.append(int(np.sum(sight != tpu.NOTHING)))
    assert sum(work) == num_blocks * (num_blocks + 1) // 2
    assert max(work) == min(work)


@pytest.mark.parametrize("owned_by", ["query", "key"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_together_devices_visit_what_whole_rows_need(rows, owned_by):
    segments_BT = rows_of(rows, 16 * BLOCK)
    (whole,) = spans_of_devices(segments_BT, 1)
    places, sight = visited(whole, owned_by)
    wanted = {(*place, s) for place, s in zip(places.tolist(), sight, strict=True)}
    together = []
    for spans in spans_of_devices(segments_BT, 4):
        places, sight = visited(spans, owned_by)
        together += [
            (*place, s)
            for place, s in zip(places.tolist(), sight, strict=True)
            if s != tpu.NOTHING
        ]
    assert len(together) == len(set(together))
    assert set(together) == wanted


def test_a_row_whose_visits_no_device_could_list_alone_is_split():
    def row(num_positions):
        return jnp.zeros((1, num_positions, 1, 1), jnp.bfloat16)

    with hardware.pretend("TPU v5p"):
        assert "scalar memory" in (unsupported("tpu", row(2**18), row(2**18)) or "")
        assert unsupported("tpu", row(2**14), row(2**18)) is None
        refusal = unsupported("tpu", row(1000), row(4000))
        assert "a multiple of 1024" in (refusal or "")


@pytest.mark.parametrize("num_shards", [1, 2, 4])
@pytest.mark.parametrize("axis", [1, -2])
@pytest.mark.parametrize("library", [np, jnp])
def test_zigzag_deals_chunks_from_both_ends_and_back(num_shards, axis, library):
    x_BTH = library.arange(2 * 16 * 3).reshape(2, 16, 3)
    ordered = zigzag(x_BTH, num_shards, axis=axis)
    back = unzigzag(ordered, num_shards, axis=axis)
    assert type(ordered) is type(back) is type(x_BTH)
    chunks = np.split(x_BTH, 2 * num_shards, axis=1)
    for i, part in enumerate(np.split(ordered, num_shards, axis=1)):
        wanted = np.concatenate([chunks[i], chunks[-1 - i]], axis=1)
        np.testing.assert_array_equal(part, wanted)
    np.testing.assert_array_equal(back, x_BTH)


def test_a_refusal_is_a_sentence():
    with pytest.raises(ValueError, match="do not make 8 chunks, two for each of 4"):
        zigzag(np.zeros((1, 12)), 4)
    spec = P("data", "context")
    segments_BT = jnp.ones((2, 6), jnp.int32)
    with jax.set_mesh(make_mesh(2)):
        arrays = jax.device_put([*operands(segments_BT), segments_BT], spec)
        body = jax.shard_map(passes("xla"), in_specs=spec, out_specs=spec)
        with pytest.raises(ValueError, match="3 positions a device are not the two"):
            body(*arrays)
