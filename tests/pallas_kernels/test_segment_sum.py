# SPDX-License-Identifier: Apache-2.0
"""Sums of sorted rows: every implementation is the definition, values and gradients."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels import hardware, segment_sum
from pallas_kernels.segment_sum import IMPLEMENTATIONS, tpu
from tests.emulated_tpu import CHIPS, cases, emulated

R, D, M = 400, 128, 380
# Rows of each segment. M segments where they do: one compilation. Others are one, a few
# more than a tile has, and whole tiles.
COUNTS = {
    "a_few_each": np.arange(M) % 3,
    "all_in_one": np.eye(1, M, 150, dtype=int)[0] * 390,
    "many_a_tile": np.full(130, 3),
    "first_tiles_empty": np.repeat([0, 2], [M - 60, 60]),
    "last_tiles_empty": np.repeat([2, 0], [60, M - 60]),
    "all_rows": np.repeat([1, 2, 0], [200, 100, 84]),
    "one_segment": np.array([7]),
    "no_rows_owned": np.zeros(M, int),
}


@pytest.fixture(params=cases(["xla", *CHIPS]))
def implementation(request):
    """An implementation that is not the definition; the TPU's with races detected."""
    if request.param in IMPLEMENTATIONS:
        yield request.param
        return
    with emulated(CHIPS[request.param]):
        yield "tpu"


@functools.partial(jax.jit, static_argnames=("implementation", "name"))
def compiled_sum(rows_RD, ends_M, *, implementation, name):
    """Compiled once for as many segments and each `name` of an implementation."""
    del name
    return segment_sum.segment_sum(rows_RD, ends_M, implementation=implementation)


def rows_of(counts_M, dtype):
    """Returns rows of whole numbers, NaN where nobody owns them, and the ends."""
    ends_M = np.cumsum(counts_M)
    rows_RD = np.random.default_rng(0).integers(-99, 99, (R, D)).astype(np.float32)
    rows_RD[ends_M[-1] :] = np.nan
    return jnp.asarray(rows_RD, dtype), jnp.asarray(ends_M, jnp.int32)


def definition(rows_RD, ends_M):
    rows_RD = np.asarray(rows_RD, np.float64)
    edges = np.append(0, ends_M)
    return np.stack([rows_RD[a:b].sum(0) for a, b in itertools.pairwise(edges)])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("counts_M", COUNTS.values(), ids=COUNTS)
def test_sums_are_those_of_each_segment_s_rows(
    implementation, counts_M, dtype, request
):
    rows_RD, ends_M = rows_of(counts_M, dtype)
    name = request.node.callspec.params["implementation"]
    run = functools.partial(compiled_sum, implementation=implementation, name=name)
    found_MD = run(rows_RD, ends_M)
    assert found_MD.dtype == jnp.float32
    # Exact: sums of whole numbers below 2^24.
    np.testing.assert_array_equal(found_MD, definition(rows_RD, ends_M))


@pytest.mark.parametrize("counts_M", COUNTS.values(), ids=COUNTS)
def test_the_reference_is_the_definition(counts_M):
    rows_RD, ends_M = rows_of(counts_M, jnp.float32)
    found_MD = segment_sum.segment_sum(rows_RD, ends_M, implementation="reference")
    np.testing.assert_array_equal(found_MD, definition(rows_RD, ends_M))


def test_float32_rows_keep_their_digits(implementation):
    ends_M = jnp.arange(2, 102, 2, dtype=jnp.int32)
    rows_RD = jax.random.normal(jax.random.key(0), (112, D), jnp.float32)
    found_MD = segment_sum.segment_sum(rows_RD, ends_M, implementation=implementation)
    # One addition; a TPU's matrix units add a float32's three parts, each at 2^-24.
    np.testing.assert_allclose(found_MD, definition(rows_RD, ends_M), atol=1e-6)


def test_sums_are_rounded_once(implementation):
    rows_RD = jnp.ones((320, D), jnp.bfloat16)
    # In bfloat16 1 + 1 + ... stays at 256.
    ends_M = jnp.array([0, 316], jnp.int32)
    found_MD = segment_sum.segment_sum(
        rows_RD, ends_M, out_dtype=jnp.bfloat16, implementation=implementation
    )
    assert found_MD.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(found_MD, np.float32)[:, 0], [0, 316])


@pytest.mark.parametrize("shape", [(0, D, 3), (16, D, 0), (16, 0, 3)])
def test_nothing_sums_to_nothing(implementation, shape):
    num_rows, width, num_segments = shape
    rows_RD = jnp.ones((num_rows, width), jnp.float32)
    ends_M = jnp.zeros(num_segments, jnp.int32)
    found_MD = segment_sum.segment_sum(rows_RD, ends_M, implementation=implementation)
    np.testing.assert_array_equal(found_MD, np.zeros((num_segments, width)))


@pytest.mark.parametrize("counts_M", COUNTS.values(), ids=COUNTS)
def test_a_row_s_gradient_is_its_segment_s(counts_M):
    rows_RD, ends_M = rows_of(counts_M, jnp.bfloat16)
    cotangent_MD = jax.random.normal(jax.random.key(1), (ends_M.size, D))
    run = functools.partial(segment_sum.segment_sum, ends_M=ends_M)
    _, pull_back = jax.vjp(run, rows_RD)
    segment_R = np.repeat(np.arange(ends_M.size), counts_M)
    wanted_RD = np.zeros((R, D), np.float32)
    wanted_RD[: segment_R.size] = np.asarray(cotangent_MD)[segment_R]
    (found_RD,) = pull_back(cotangent_MD)
    assert found_RD.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found_RD, jnp.asarray(wanted_RD, jnp.bfloat16))


def test_unfit_operands_are_refused_in_a_sentence():
    rows_RD, ends_M = jnp.zeros((16, D)), jnp.zeros(3, jnp.int32)
    with pytest.raises(ValueError, match="ends are integers"):
        segment_sum.segment_sum(rows_RD, ends_M.astype(jnp.float32))
    with pytest.raises(ValueError, match=r"rows are \[R, D\]"):
        segment_sum.segment_sum(rows_RD[0], ends_M)
    with pytest.raises(ValueError, match="must be one of"):
        segment_sum.segment_sum(rows_RD, ends_M, implementation="fast")
    with pytest.raises(NotImplementedError, match="tpu cannot run: the device is cpu"):
        segment_sum.segment_sum(rows_RD, ends_M, implementation="tpu")


@pytest.mark.parametrize("slots", tpu.SLOTS)
def test_fewer_chunks_in_vmem_sum_alike(implementation, slots, monkeypatch):
    monkeypatch.setattr(tpu, "SLOTS", (slots,))
    rows_RD, ends_M = rows_of(COUNTS["many_a_tile"], jnp.float32)
    found_MD = segment_sum.segment_sum(rows_RD, ends_M, implementation=implementation)
    np.testing.assert_array_equal(found_MD, definition(rows_RD, ends_M))


def test_rows_that_vmem_cannot_hold_are_refused():
    with hardware.pretend("TPU v5p"):
        reason = segment_sum.unsupported("tpu", jnp.zeros((1, 2**17)))
    assert reason == "VMEM does not hold two chunks of rows of 131072 columns"


@pytest.mark.parametrize("num_cores", [1, 2])
@pytest.mark.parametrize("counts_M", COUNTS.values(), ids=COUNTS)
def test_every_chunk_of_a_tile_is_a_visit_of_its_core(counts_M, num_cores):
    ends_M = jnp.cumsum(jnp.asarray(counts_M))
    plan, starts_JT, ends_JT = tpu.plan_tiles(ends_M, chunk=128, num_cores=num_cores)
    np.testing.assert_array_equal(plan.edge_J[:-1], starts_JT[:, 0])
    np.testing.assert_array_equal(plan.edge_J[1:], ends_JT[:, -1])
    edge_J = np.asarray(plan.edge_J)
    share = -(-(edge_J.size - 1) // num_cores)
    visits = np.zeros(num_cores, int)
    for tile, (begin, end) in enumerate(itertools.pairwise(edge_J)):
        first = begin // tpu.ROW_ALIGN * tpu.ROW_ALIGN
        visits[tile // share] += max(1, len(range(first, end, 128)))
    np.testing.assert_array_equal(plan.num_visits, visits)


@pytest.mark.aot
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", ["v5e", "v5p", "v6e", "tpu7x"])
def test_the_compiler_takes_a_device_s_share_of_ling_lite_s_experts(
    name, dtype, absent_mesh
):
    mesh = absent_mesh(name)
    R, M, D = 61_440, 32_768, 2048

    def abstract(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P()))

    run = functools.partial(segment_sum.segment_sum, out_dtype=dtype)
    with jax.set_mesh(mesh):
        lowered = jax.jit(run).lower(abstract((R, D), dtype), abstract((M,), jnp.int32))
        text = lowered.compile().as_text()
    assert text is not None and "(segment_sum)" in text
    # Nothing but the kernel touches an array of rows or of sums.
    large = re.findall(rf"= \w+\[(?:{R}|{M}),{D}\]\S* (?!parameter)([\w-]+)\(", text)
    assert large == ["custom-call"]
