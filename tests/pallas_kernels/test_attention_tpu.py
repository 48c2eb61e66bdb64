# SPDX-License-Identifier: Apache-2.0
"""The TPU's attention kernels: races, and what the TPU's own compiler says of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels import hardware
from pallas_kernels.attention import packed_attention, tpu

CHIPS = {"one_core": "TPU v6 lite", "two_cores": "TPU v5p"}


@pytest.fixture(params=CHIPS)
def chip(request, monkeypatch):
    """A chip whose blocks are small, interpreted with its races detected."""
    monkeypatch.setattr(tpu, "BLOCK", 128)
    with hardware.pretend(CHIPS[request.param]) as found:
        params = pltpu.InterpretParams(
            detect_races=True, num_cores_or_threads=found.num_cores
        )
        with pltpu.force_tpu_interpret_mode(params):
            yield found
    pltpu.reset_tpu_interpret_mode_state()


def passes(query_BTNH, key_BTKH, value_BTKH, segments_BT, grad_BTNH):
    # No implementation is named: a TPU is enough to choose the kernels.
    out_BTNH, pull_back = jax.vjp(
        lambda query, key, value: packed_attention(query, key, value, segments_BT),
        query_BTNH,
        key_BTKH,
        value_BTKH,
    )
    return out_BTNH, *pull_back(grad_BTNH)


def test_two_rows_of_several_blocks_match_the_reference(chip):
    rng = np.random.default_rng(0)
    query_BTNH, grad_BTNH, key_BTKH, value_BTKH = (
        jnp.asarray(rng.standard_normal((2, 512, heads, 16)), jnp.float32)
        for heads in (4, 4, 2, 2)
    )
    documents = [[1] * 300 + [2] * 84 + [3] * 128, [1] * 100 + [2] * 290 + [0] * 122]
    segments_BT = jnp.array(documents)
    arrays = query_BTNH, key_BTKH, value_BTKH, segments_BT, grad_BTNH
    found = passes(*arrays)
    out_BTNH, pull_back = jax.vjp(
        lambda query, key, value: packed_attention(
            query, key, value, segments_BT, implementation="reference"
        ),
        *arrays[:3],
    )
    for actual, wanted in zip(found, (out_BTNH, *pull_back(grad_BTNH)), strict=True):
        # Sums of up to 300 products of standard normals in another order.
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)


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
