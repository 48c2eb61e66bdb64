# SPDX-License-Identifier: Apache-2.0
"""The TPU's kernels: their tiles, and races between their copies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import hardware
from pallas_kernels.grouped_matmul import (
    grouped_matmul,
    grouped_matmul_transposed,
    grouped_outer,
    plan_rows,
    tiling,
    tpu,
)
from tests.emulated_tpu import CHIPS, cases, emulated

SMALL_PART = 64
R, D, F = 320, 128, 256
GROUP_SIZES = {
    "even": (80, 80, 80, 80),
    "tile_edges": (63, 64, 65, 0, 1, 127),
    "two_part_tile_edges": (127, 128, 65),
    "many_in_a_block": (3,) * 16 + (200, 7),
    "all_to_one": (0, 0, 320, 0),
    "unrouted_tail": (5, 90, 0, 38),
    "nothing_routed": (0, 0),
    "fewer_rows_than_cores": (0, 1, 0),
}


NUM_GROUPS = max(map(len, GROUP_SIZES.values()))


@pytest.fixture(params=cases(CHIPS))
def chip(request, monkeypatch):
    """A chip whose tiles are small, interpreted with its races detected; its name."""
    monkeypatch.setattr(tiling, "PART_ROWS", SMALL_PART)
    with emulated(CHIPS[request.param]):
        yield request.param


@functools.partial(jax.jit, static_argnames=("product", "tails", "chip"))
def multiply(product, a, b, sizes_E, *, tails, chip):
    """Compiled once for all sizes, on the chip in force; `chip` is its name."""
    del chip
    plan = plan_rows(sizes_E, num_rows=R, implementation="tpu", tails=tails)
    return product(a, b, plan)


@pytest.mark.parametrize(
    ("case", "tails"),
    [
        *((case, "own") for case in GROUP_SIZES),
        *((case, "whole") for case in ("tile_edges", "unrouted_tail")),
    ],
)
def test_several_tiles_a_group_match_the_reference(chip, case, tails):
    rng, group_sizes = np.random.default_rng(0), GROUP_SIZES[case]
    sizes_E = jnp.zeros(NUM_GROUPS, jnp.int32)
    sizes_E = sizes_E.at[: len(group_sizes)].set(jnp.array(group_sizes))
    x_RD, y_RF = (
        jnp.asarray(rng.standard_normal((R, width)), jnp.float32) for width in (D, F)
    )
    w_EDF = jnp.asarray(rng.standard_normal((NUM_GROUPS, D, F)), jnp.float32)
    # Rows of nobody hold NaN, which must reach nothing.
    is_owned_R1 = jnp.arange(R)[:, None] < jnp.sum(sizes_E)
    for product, a, b in (
        (grouped_matmul, x_RD, w_EDF),
        (grouped_matmul_transposed, y_RF, w_EDF),
        (grouped_outer, x_RD, jnp.where(is_owned_R1, y_RF, jnp.nan)),
    ):
        a = jnp.where(is_owned_R1, a, jnp.nan)
        found = multiply(product, a, b, sizes_E, tails=tails, chip=chip)
        expected = product(a, b, sizes_E, implementation="reference")
        # Sums of up to 320 products of standard normals in another order.
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_cores", [1, 2])
@pytest.mark.parametrize("group_sizes", GROUP_SIZES.values(), ids=GROUP_SIZES)
def test_each_owned_row_lies_in_one_tile_of_its_group(
    group_sizes, num_cores, monkeypatch
):
    monkeypatch.setattr(tiling, "PART_ROWS", SMALL_PART)
    with hardware.pretend({1: "TPU v6 lite", 2: "TPU v5p"}[num_cores]) as found:
        run = functools.partial(plan_rows, num_rows=R, implementation="tpu")
        plan = jax.jit(run)(jnp.array(group_sizes)).tiles
        tile_rows = tiling.tile_rows(found)
    plan = jax.tree.map(np.asarray, plan)
    owner_R = np.full(R, -1)
    for core in range(num_cores):
        first = core * (plan.group_J.size // num_cores)
        groups = plan.group_E[core * (plan.group_E.size // num_cores) :]
        tiles = slice(first, first + plan.num_tiles[core])
        assert np.all(plan.row_J[tiles] % tpu.ROW_ALIGN == 0)
        assert np.all(plan.begin_J[tiles] < tpu.ROW_ALIGN)
        assert np.all(plan.end_J[tiles] <= tile_rows)
        np.testing.assert_array_equal(
            groups[plan.order_J[tiles]], plan.group_J[tiles], "order of the matrices"
        )
        # A core's first block is its own: the other core must not write it.
        assert plan.num_tiles[core] == 0 or plan.begin_J[first] == 0
        for j in range(tiles.start, tiles.stop):
            rows = plan.row_J[j] + np.arange(plan.begin_J[j], plan.end_J[j])
            assert rows.size and np.all(owner_R[rows] == -1)
            owner_R[rows] = plan.group_J[j]
    expected = np.repeat(np.arange(len(group_sizes)), group_sizes)
    np.testing.assert_array_equal(owner_R[: expected.size], expected)
    assert np.all(owner_R[expected.size :] == -1)


def test_a_width_without_a_tile_is_refused():
    with hardware.pretend("TPU v5p"):
        x_RD = jnp.zeros((16, 4), jnp.bfloat16)
        w_EDF = jax.ShapeDtypeStruct((2, 4, 3_000_001), jnp.bfloat16)
        with pytest.raises(NotImplementedError, match="pad the width"):
            jax.eval_shape(
                lambda w: grouped_matmul(
                    x_RD, w, jnp.array([8, 8]), implementation="tpu"
                ),
                w_EDF,
            )
