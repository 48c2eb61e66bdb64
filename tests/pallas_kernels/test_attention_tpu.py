# SPDX-License-Identifier: Apache-2.0
"""The TPU's attention kernels: races, and what the TPU's own compiler says of them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels.attention import (
    context_attention,
    packed_attention,
    tpu,
    unzigzag,
    zigzag,
)
from tests.emulated_tpu import CHIPS, cases, emulated


@pytest.fixture(params=cases(CHIPS))
def chip(request, monkeypatch):
    """A chip whose blocks are small, interpreted with its races detected."""
    monkeypatch.setattr(tpu, "BLOCK", 128)
    with emulated(CHIPS[request.param]) as found:
        yield found


def passes(
    query_BTNH,
    key_BTKH,
    value_BTKH,
    segments_BT,
    grad_BTNH,
    *,
    attend=packed_attention,
):
    # No implementation is named: a TPU is enough to choose the kernels.
    out_BTNH, pull_back = jax.vjp(
        lambda query, key, value: attend(query, key, value, segments_BT),
        query_BTNH,
        key_BTKH,
        value_BTKH,
    )
    return out_BTNH, *pull_back(grad_BTNH)


def rows_of_two():
    """Returns the operands of both passes: two rows of 512, of several documents."""
    rng = np.random.default_rng(0)
    query_BTNH, grad_BTNH, key_BTKH, value_BTKH = (
        jnp.asarray(rng.standard_normal((2, 512, heads, 16)), jnp.float32)
        for heads in (4, 4, 2, 2)
    )
    documents = [[1] * 300 + [2] * 84 + [3] * 128, [1] * 100 + [2] * 290 + [0] * 122]
    return query_BTNH, key_BTKH, value_BTKH, jnp.array(documents), grad_BTNH


def assert_match_the_reference(found, arrays):
    attend = functools.partial(packed_attention, implementation="reference")
    for actual, wanted in zip(found, passes(*arrays, attend=attend), strict=True):
        # Sums of up to 300 products of standard normals in another order.
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)


def test_two_rows_of_several_blocks_match_the_reference(chip):
    arrays = rows_of_two()
    assert_match_the_reference(passes(*arrays), arrays)


def test_rows_that_two_devices_share_match_the_reference(chip):
    arrays, spec = rows_of_two(), P(None, "context")
    attend = functools.partial(context_attention, axis_name="context")
    mesh = jax.make_mesh((2,), ("context",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        run = jax.shard_map(
            functools.partial(passes, attend=attend),
            in_specs=spec,
            out_specs=spec,
            # What the interpreter steps through does not know what varies.
            check_vma=False,
        )
        placed = jax.device_put([zigzag(x, 2) for x in arrays], spec)
        found = [unzigzag(np.asarray(x), 2) for x in jax.jit(run)(*placed)]
    assert_match_the_reference(found, arrays)


# Each chip, each length, and a head that is narrower than a register.
PROGRAMS = {
    "v5e": (4096, 128),
    "v5p": (32768, 128),
    "v6e": (65536, 128),
    "tpu7x": (65536, 128),
    "v6e, narrow": (1000, 64),
}


@pytest.mark.aot
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_compiler_takes_all_passes_at_ling_lite_s_shapes(name, absent_mesh):
    mesh = absent_mesh(name.partition(",")[0])
    T, H = PROGRAMS[name]

    def abstract(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P()))

    query, key = abstract(1, T, 16, H), abstract(1, T, 4, H)
    segments = abstract(1, T, dtype=jnp.int32)
    with jax.set_mesh(mesh):
        compiled = jax.jit(passes).lower(query, key, key, segments, query).compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None and memory is not None
    for kernel in ("forward", "querygradient", "keyvaluegradient"):
        assert f"(packed_attention_{kernel})" in text
    # Operands and results with heads in front, of which some are float32: a square of
    # the shortest row alone would be 16 * 4096^2 * 4 bytes, 30 times as much.
    assert memory.temp_size_in_bytes < 12 * 16 * max(T, 2048) * 128


# Topology, devices that share a row, and tokens that each of them has of it.
SPLIT = {"v5p": ("v5:4x4x4", 4, 65536), "v6e": ("v6e:8x8", 8, 32768)}


@pytest.mark.aot
@pytest.mark.parametrize("name", SPLIT)
def test_the_compiler_takes_split_rows_and_scatters_their_gradients(name):
    topology, num_shards, T = SPLIT[name]
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name=topology
    ).devices
    sizes = (len(devices) // num_shards, num_shards)
    axes, kinds = ("data", "context"), (AxisType.Explicit,) * 2
    mesh = jax.make_mesh(sizes, axes, axis_types=kinds, devices=devices)
    spec, S = P("data", "context"), num_shards * T

    def abstract(*shape, dtype=jnp.bfloat16):
        shape = (sizes[0], S, *shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    query, key, segments = (
        abstract(16, 128),
        abstract(4, 128),
        abstract(dtype=jnp.int32),
    )
    with jax.set_mesh(mesh):
        attend = jax.shard_map(
            functools.partial(context_attention, axis_name="context"),
            in_specs=spec,
            out_specs=spec,
        )
        step = jax.jit(functools.partial(passes, attend=jax.checkpoint(attend)))
        compiled = step.lower(query, key, key, segments, query).compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None and memory is not None
    for kernel in ("forward", "querygradient", "keyvaluegradient"):
        assert f"packed_attention_{kernel}" in text
    kinds = re.findall(r"= bf16\S+ (all-\w+|reduce-scatter)(?:-start)?\(", text)
    # The gradients' gathers are those of the forward pass that is made again.
    assert sorted(kinds) == ["all-gather"] * 4 + ["reduce-scatter"] * 2
    # As above, and of whole rows keys, values and their gradients, with copies of two.
    assert memory.temp_size_in_bytes < 12 * 16 * T * 128 + 6 * 4 * S * 128 * 2
