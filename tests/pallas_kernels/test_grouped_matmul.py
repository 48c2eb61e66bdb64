# SPDX-License-Identifier: Apache-2.0
"""One suite for every implementation, against the definition in numpy float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from pallas_kernels import hardware
from pallas_kernels.grouped_matmul import (
    IMPLEMENTATIONS,
    default_implementation,
    grouped_matmul,
    grouped_matmul_transposed,
    grouped_outer,
    plan_rows,
    unsupported,
    xla,
)
from tests.emulated_tpu import emulated

R, D, F = 48, 5, 7
GROUP_SIZES = {
    "even": (12, 12, 12, 12),
    "uneven": (5, 17, 3, 23),
    "skewed": (45, 0, 3, 0),
    "all_to_one": (0, 48, 0, 0),
    "unrouted_tail": (3, 20, 0, 9),
    "nothing_routed": (0, 0, 0, 0),
    "one_group": (48,),
    "one_group_with_tail": (31,),
    "one_row_each": (1,) * 48,
    # Around the tile sizes 8, 16 and 32.
    "tile_edges": (0, 1, 7, 8),
    "more_tile_edges": (9, 15, 16, 0),
    "larger_tile_edges": (0, 31, 17, 0),
    "largest_tile_and_one": (33, 15, 0, 0),
}
MOST_GROUPS = max(map(len, GROUP_SIZES.values()))
# One compilation serves all sizes of as many groups.
GROUP_SIZES = {
    name: sizes if len(sizes) == 1 else (*sizes, *(0,) * (MOST_GROUPS - len(sizes)))
    for name, sizes in GROUP_SIZES.items()
}
# Sums of at most 48 products of standard normals, rounded to float32 (2^-24 relative).
# bfloat16 keeps 8 bits: an output of size 10 is rounded by up to 2^-8 * 8 = 0.03.
TOLERANCE = {"float32": 2e-5, "bfloat16": 4e-2}


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    """Each implementation's name; the TPU's is interpreted, on a chip of one core."""
    if request.param != "tpu":
        yield request.param
        return
    with emulated("TPU v6 lite", detect_races=False):
        yield request.param


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request):
    return request.param


def operands(group_sizes, dtype="float32", num_rows=R):
    """Returns x_RD, w_EDF, y_RF (a cotangent, or the other rows) and the sizes."""
    rng = np.random.default_rng(len(group_sizes))
    shapes = ((num_rows, D), (len(group_sizes), D, F), (num_rows, F))
    arrays = [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
    return *arrays, jnp.array(group_sizes, jnp.int32)


def owned(group_sizes, rows):
    """Yields each group's rows, in float64."""
    ends = np.cumsum(group_sizes)
    for end, size in zip(ends, group_sizes, strict=True):
        yield slice(end - size, end), np.asarray(rows[end - size : end], np.float64)


def expected_matmul(x_RD, w_EDF, group_sizes):
    out_RF = np.zeros((x_RD.shape[0], w_EDF.shape[2]))
    for e, (rows, x) in enumerate(owned(group_sizes, x_RD)):
        out_RF[rows] = x @ np.asarray(w_EDF[e], np.float64)
    return out_RF


def expected_outer(x_RD, y_RF, group_sizes):
    pairs = zip(owned(group_sizes, x_RD), owned(group_sizes, y_RF), strict=True)
    return np.stack([x.T @ y for (_, x), (_, y) in pairs])


def transposed(w_EDF):
    return np.swapaxes(np.asarray(w_EDF, np.float64), 1, 2)


def assert_close(actual, expected, dtype="float32"):
    assert actual.shape == expected.shape
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(
        np.asarray(actual, np.float64), expected, rtol=tolerance, atol=tolerance
    )


@functools.partial(jax.jit, static_argnames=("product", "implementation"))
def both_passes(product, left, right, cotangent, sizes_E, *, implementation):
    """Compiled once for all sizes of as many groups."""
    value, pull_back = jax.vjp(
        lambda a, b: product(a, b, sizes_E, implementation=implementation), left, right
    )
    return value, *pull_back(cotangent)


@pytest.mark.parametrize("group_sizes", GROUP_SIZES.values(), ids=GROUP_SIZES)
def test_matmul_and_its_gradients_match_the_definition(
    implementation, group_sizes, dtype
):
    x_RD, w_EDF, y_RF, sizes_E = operands(group_sizes, dtype)
    out_RF, grad_x_RD, grad_w_EDF = both_passes(
        grouped_matmul, x_RD, w_EDF, y_RF, sizes_E, implementation=implementation
    )
    assert {a.dtype for a in (out_RF, grad_x_RD, grad_w_EDF)} == {jnp.dtype(dtype)}
    assert_close(out_RF, expected_matmul(x_RD, w_EDF, group_sizes), dtype)
    expected = expected_matmul(y_RF, transposed(w_EDF), group_sizes)
    assert_close(grad_x_RD, expected, dtype)
    assert_close(grad_w_EDF, expected_outer(x_RD, y_RF, group_sizes), dtype)


@pytest.mark.parametrize("group_sizes", GROUP_SIZES.values(), ids=GROUP_SIZES)
def test_transposed_matmul_and_its_gradients_match_the_definition(
    implementation, group_sizes
):
    x_RD, w_EDF, y_RF, sizes_E = operands(group_sizes)
    out_RD, grad_y_RF, grad_w_EDF = both_passes(
        *(grouped_matmul_transposed, y_RF, w_EDF, x_RD, sizes_E),
        implementation=implementation,
    )
    assert_close(out_RD, expected_matmul(y_RF, transposed(w_EDF), group_sizes))
    assert_close(grad_y_RF, expected_matmul(x_RD, w_EDF, group_sizes))
    assert_close(grad_w_EDF, expected_outer(x_RD, y_RF, group_sizes))


@pytest.mark.parametrize("group_sizes", GROUP_SIZES.values(), ids=GROUP_SIZES)
def test_outer_and_its_gradients_match_the_definition(implementation, group_sizes):
    x_RD, g_EDF, y_RF, sizes_E = operands(group_sizes)
    out_EDF, grad_x_RD, grad_y_RF = both_passes(
        grouped_outer, x_RD, y_RF, g_EDF, sizes_E, implementation=implementation
    )
    assert_close(out_EDF, expected_outer(x_RD, y_RF, group_sizes))
    expected = expected_matmul(y_RF, transposed(g_EDF), group_sizes)
    assert_close(grad_x_RD, expected)
    assert_close(grad_y_RF, expected_matmul(x_RD, g_EDF, group_sizes))


@pytest.mark.parametrize("size", [255, 256, 257, 300])
def test_groups_around_the_largest_tile_match_the_definition(size):
    # Groups of several tiles add up their weight gradient.
    group_sizes = (20, size, 300 - size)
    x_RD, w_EDF, y_RF, sizes_E = operands(group_sizes, num_rows=330)
    out_RF = grouped_matmul(x_RD, w_EDF, sizes_E, implementation="xla")
    assert_close(out_RF, expected_matmul(x_RD, w_EDF, group_sizes))
    out_EDF = grouped_outer(x_RD, y_RF, sizes_E, implementation="xla")
    # Sums of 300 products: up to 60 in size, hence a few more units in the last place.
    expected = expected_outer(x_RD, y_RF, group_sizes)
    np.testing.assert_allclose(np.asarray(out_EDF), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("num_rows", [0, 1, 3, 8])
def test_few_rows_match_the_definition(implementation, num_rows):
    group_sizes = (0, num_rows, 0)
    x_RD, w_EDF, y_RF, sizes_E = operands(group_sizes, num_rows=num_rows)
    out_RF = grouped_matmul(x_RD, w_EDF, sizes_E, implementation=implementation)
    assert_close(out_RF, expected_matmul(x_RD, w_EDF, group_sizes))
    out_EDF = grouped_outer(x_RD, y_RF, sizes_E, implementation=implementation)
    assert_close(out_EDF, expected_outer(x_RD, y_RF, group_sizes))


def test_rows_of_nobody_leak_nothing_even_if_they_hold_nan(implementation):
    group_sizes = GROUP_SIZES["unrouted_tail"]
    x_RD, w_EDF, y_RF, sizes_E = operands(group_sizes)
    total = sum(group_sizes)
    x_RD, y_RF = x_RD.at[total:].set(jnp.nan), y_RF.at[total:].set(jnp.nan)
    out_RF, grad_x_RD, grad_w_EDF = both_passes(
        grouped_matmul, x_RD, w_EDF, y_RF, sizes_E, implementation=implementation
    )
    assert not np.any(out_RF[total:])
    assert not np.any(grad_x_RD[total:])
    assert_close(out_RF, expected_matmul(x_RD, w_EDF, group_sizes))
    assert_close(grad_w_EDF, expected_outer(x_RD, y_RF, group_sizes))
    out_EDF, *_ = both_passes(
        *(grouped_outer, x_RD, y_RF, w_EDF, sizes_E), implementation=implementation
    )
    assert_close(out_EDF, expected_outer(x_RD, y_RF, group_sizes))


def test_a_nan_stays_in_its_own_group(implementation):
    group_sizes = GROUP_SIZES["uneven"]
    x_RD, w_EDF, y_RF, sizes_E = operands(group_sizes)
    is_second_R = (np.arange(R) >= 5) & (np.arange(R) < 22)
    x_RD = x_RD.at[7].set(jnp.nan)
    run = functools.partial(both_passes, implementation=implementation)
    out_RF, *_ = run(grouped_matmul, x_RD, w_EDF, y_RF, sizes_E)
    assert np.flatnonzero(np.isnan(out_RF).any(axis=1)).tolist() == [7]
    out_EDF, *_ = run(grouped_outer, x_RD, y_RF, w_EDF, sizes_E)
    assert np.flatnonzero(np.isnan(out_EDF).any(axis=(1, 2))).tolist() == [1]
    w_EDF = w_EDF.at[1].set(jnp.nan)
    out_RF, *_ = run(grouped_matmul, x_RD, w_EDF, y_RF, sizes_E)
    np.testing.assert_array_equal(np.isnan(out_RF).any(axis=1), is_second_R)


def test_float32_weights_beside_bfloat16_rows_act_as_if_cast(implementation):
    group_sizes = GROUP_SIZES["uneven"]
    x_RD, _, y_RF, sizes_E = operands(group_sizes, "bfloat16")
    _, w_EDF, _, _ = operands(group_sizes, "float32")
    out_RF, grad_x_RD, grad_w_EDF = both_passes(
        grouped_matmul, x_RD, w_EDF, y_RF, sizes_E, implementation=implementation
    )
    cast_EDF = w_EDF.astype(jnp.bfloat16)
    assert_close(out_RF, expected_matmul(x_RD, cast_EDF, group_sizes), "bfloat16")
    assert (grad_x_RD.dtype, grad_w_EDF.dtype) == (jnp.bfloat16, jnp.float32)
    assert_close(grad_w_EDF, expected_outer(x_RD, y_RF, group_sizes), "bfloat16")


def test_gradient_agrees_with_finite_differences(implementation):
    x_RD, w_EDF, y_RF, sizes_E = operands(GROUP_SIZES["unrouted_tail"])

    def product_and_gradients(x_RD, w_EDF, grad_RF):
        return both_passes(
            *(grouped_matmul, x_RD, w_EDF, grad_RF, sizes_E),
            implementation=implementation,
        )

    def loss(x_RD, w_EDF):
        out_RF, *_ = product_and_gradients(x_RD, w_EDF, y_RF)
        return jnp.sum(jnp.sin(out_RF) * y_RF)

    out_RF, *_ = product_and_gradients(x_RD, w_EDF, y_RF)
    _, *grads = product_and_gradients(x_RD, w_EDF, jnp.cos(out_RF) * y_RF)
    rng = np.random.default_rng(1)
    dx_RD, dw_EDF = (jnp.asarray(rng.standard_normal(a.shape), a.dtype) for a in grads)
    # Step 1e-2: central differences err by step^2, float32 rounding by 1e-6 / step.
    step = 1e-2
    ahead = loss(x_RD + step * dx_RD, w_EDF + step * dw_EDF)
    behind = loss(x_RD - step * dx_RD, w_EDF - step * dw_EDF)
    slope = jnp.vdot(grads[0], dx_RD) + jnp.vdot(grads[1], dw_EDF)
    np.testing.assert_allclose((ahead - behind) / (2 * step), slope, rtol=2e-2)


# The interpreter calls back into Python, which neither remat nor shard_map
# differentiates; compiling a step ahead of time covers both.
NOT_INTERPRETED = [name for name in IMPLEMENTATIONS if name != "tpu"]


@pytest.mark.parametrize("implementation", NOT_INTERPRETED)
def test_scanned_and_rematerialised_layers_match_a_plain_loop(implementation):
    x_RD, w_EDF, y_RF, sizes_E = operands((3, 20, 0, 9))
    rng = np.random.default_rng(2)
    w_LEDD = jnp.asarray(rng.standard_normal((3, 4, D, D)), jnp.float32) * 0.5

    def layer(x_RD, w_EDD):
        y_RD = grouped_matmul(x_RD, w_EDD, sizes_E, implementation=implementation)
        return x_RD + jnp.tanh(y_RD)

    def scanned(w_LEDD, x_RD):
        step = jax.checkpoint(lambda x, w: (layer(x, w), None))
        return jnp.sum(jax.lax.scan(step, x_RD, w_LEDD)[0] ** 2)

    def looped(w_LEDD, x_RD):
        for w_EDD in w_LEDD:
            x_RD = layer(x_RD, w_EDD)
        return jnp.sum(x_RD**2)

    actual = jax.jit(jax.value_and_grad(scanned, argnums=(0, 1)))(w_LEDD, x_RD)
    expected = jax.value_and_grad(looped, argnums=(0, 1))(w_LEDD, x_RD)
    # The same float32 operations, fused otherwise.
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4), *(actual, expected)
    )


@pytest.mark.parametrize("implementation", NOT_INTERPRETED)
@pytest.mark.parametrize("weights_vary", [True, False], ids=["own", "shared"])
def test_each_device_multiplies_its_own_rows_under_shard_map(
    implementation, weights_vary
):
    axes = ("data", "fsdp", "expert")
    mesh = jax.make_mesh((2, 2, 2), axes, axis_types=(AxisType.Explicit,) * 3)
    num_devices = 8
    sizes_per_device = np.array(
        [np.roll((5, 17, 3, 20), shift) for shift in range(num_devices)]
    )
    rng = np.random.default_rng(3)
    E = sizes_per_device.shape[1]
    x_RD = rng.standard_normal((num_devices * R, D)).astype(np.float32)
    y_RF = rng.standard_normal((num_devices * R, F)).astype(np.float32)
    w_EDF = rng.standard_normal((E, D, F)).astype(np.float32)

    def loss(x_RD, w_EDF, y_RF, sizes_E):
        if weights_vary:
            w_EDF = jax.lax.pcast(w_EDF, axes, to="varying")
        out_RF = grouped_matmul(x_RD, w_EDF, sizes_E, implementation=implementation)
        return jax.lax.psum(jnp.sum(out_RF * y_RF), axes), out_RF

    rows = P(axes)
    mapped = jax.shard_map(
        loss, mesh=mesh, in_specs=(rows, P(), rows, rows), out_specs=(P(), rows)
    )
    with jax.set_mesh(mesh):
        arguments = [
            jax.device_put(value, spec)
            for value, spec in zip(
                (x_RD, w_EDF, y_RF, sizes_per_device.reshape(-1)),
                (rows, P(), rows, rows),
                strict=True,
            )
        ]
        step = jax.jit(jax.value_and_grad(mapped, argnums=(0, 1), has_aux=True))
        (_, out_RF), (grad_x_RD, grad_w_EDF) = step(*arguments)
    expected_grad_w_EDF = np.zeros((E, D, F))
    for device, sizes in enumerate(sizes_per_device):
        block = slice(device * R, (device + 1) * R)
        x, y = x_RD[block], y_RF[block]
        assert_close(np.asarray(out_RF)[block], expected_matmul(x, w_EDF, sizes))
        expected = expected_matmul(y, transposed(w_EDF), sizes)
        assert_close(np.asarray(grad_x_RD)[block], expected)
        expected_grad_w_EDF += expected_outer(x, y, sizes)
    # Eight float32 sums, each within the usual bound.
    np.testing.assert_allclose(grad_w_EDF, expected_grad_w_EDF, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("group_sizes", GROUP_SIZES.values(), ids=GROUP_SIZES)
def test_each_owned_row_lies_in_one_tile_of_its_group(group_sizes):
    plan = plan_rows(jnp.array(group_sizes), num_rows=R, implementation="xla").tiles
    sizes = xla.tile_rows(R)
    owner_R = np.full(R, -1)
    for j in range(int(plan.num_tiles)):
        tile = jax.tree.map(int, plan.at(jnp.array(j)))
        assert 0 < tile.num_owned <= sizes[tile.branch]
        rows = slice(tile.first_row, tile.first_row + tile.num_owned)
        assert np.all(owner_R[rows] == -1)
        owner_R[rows] = tile.group
    expected = np.repeat(np.arange(len(group_sizes)), group_sizes)
    np.testing.assert_array_equal(owner_R[: expected.size], expected)
    assert np.all(owner_R[expected.size :] == -1)


@pytest.mark.parametrize("num_groups", [4, 64, 256])
def test_work_grows_with_the_routed_rows_and_not_with_the_groups(num_groups):
    num_rows = 12288
    rng = np.random.default_rng(num_groups)
    routed = rng.multinomial(num_rows // 2, np.ones(num_groups) / num_groups)
    plan = plan_rows(jnp.array(routed), num_rows=num_rows, implementation="xla").tiles
    branch_J = plan.tiles_J.branch[: int(plan.num_tiles)]
    computed = np.array(xla.tile_rows(num_rows))[branch_J].sum()
    # A group rounds up by less than one step of the tile sizes, which is at most 32.
    assert routed.sum() <= computed < routed.sum() + 32 * num_groups


def test_the_loop_runs_once_a_tile():
    x_RD, w_EDF, _, _ = operands((0,) * 4)
    matmul = jax.jit(functools.partial(grouped_matmul, implementation="xla"))
    text = matmul.lower(x_RD, w_EDF, jnp.arange(4)).as_text()
    # One loop whose end is data; inside it, one matrix product a tile size.
    assert text.count("stablehlo.while") == 1
    assert text.count("stablehlo.dot_general") == len(xla.tile_rows(R))


def test_default_implementation_is_the_first_that_can_run():
    x_RD, w_EDF, _, _ = operands((R,))
    assert default_implementation(x_RD, w_EDF) == "xla"
    halves = x_RD.astype(jnp.float16), w_EDF.astype(jnp.float16)
    assert default_implementation(*halves) == "reference"
    assert "float16" in (unsupported("xla", *halves) or "")
    assert "the device is cpu" in (unsupported("tpu", x_RD, w_EDF) or "")
    with hardware.pretend("TPU v5p"):
        assert default_implementation(x_RD, w_EDF) == "tpu"


def test_a_refusal_is_a_sentence():
    x_RD, w_EDF, y_RF, sizes_E = operands((R,))
    with pytest.raises(NotImplementedError, match="xla cannot run: .* float16"):
        half_EDF = w_EDF.astype(jnp.float16)
        grouped_matmul(x_RD, half_EDF, sizes_E, implementation="xla")
    with pytest.raises(ValueError, match="must be one of"):
        grouped_matmul(x_RD, w_EDF, sizes_E, implementation="xle")
    with pytest.raises(ValueError, match="rows as wide as dimension 1"):
        grouped_matmul(y_RF, w_EDF, sizes_E)
    with pytest.raises(ValueError, match="one size for each matrix"):
        grouped_matmul(x_RD, w_EDF, jnp.array([1, 2]))
    with pytest.raises(ValueError, match="must be integers"):
        grouped_matmul(x_RD, w_EDF, jnp.array([1.0]))
    with pytest.raises(ValueError, match="share R"):
        grouped_outer(x_RD, y_RF[:-1], sizes_E)
