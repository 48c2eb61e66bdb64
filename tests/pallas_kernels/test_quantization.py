# SPDX-License-Identifier: Apache-2.0
"""Products of 8-bit operands: their bounds, derived here, on every implementation."""

import contextlib
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels import choice, hardware
from pallas_kernels.expert_mlp import expert_mlp
from pallas_kernels.grouped_matmul import (
    Quantization,
    grouped_matmul,
    grouped_matmul_transposed,
    grouped_outer,
    plan_rows,
    tiling,
    tpu,
)
from pallas_kernels.grouped_matmul import quantization as eight_bits
from pallas_kernels.grouped_matmul.quantization import EIGHT_BIT_TYPES
from tests.emulated_tpu import cases, emulated

LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}
# A number of a float8 type has this many bits after the leading one.
MANTISSA_BITS = {"float8_e4m3fn": 3, "float8_e5m2": 2}
SMALL_PART = 64
R, D, F = 200, 24, 40
GROUP_SIZES = {
    # Blocks of 32 rows, which 8-bit rows come in, and tiles of 64.
    "tile_edges": (31, 32, 33, 0, 1, 63, 40),
    "unrouted_tail": (5, 90, 0, 38),
    "nothing_routed": (0, 0),
    "many_in_a_block": (3,) * 20 + (100, 7),
}
TAIL = GROUP_SIZES["unrouted_tail"]
RUNS = {
    "reference": ("reference", None, ("int8", "float8_e4m3fn")),
    "xla": ("xla", None, EIGHT_BIT_TYPES),
    "tpu_one_core": ("tpu", "TPU v6 lite", ("int8",)),
    "tpu_two_cores": ("tpu", "TPU v5p", ("int8",)),
    "tpu_float8": ("tpu", "TPU7x", ("float8_e4m3fn",)),
}
CASES = [(run, dtype) for run, (_, _, dtypes) in RUNS.items() for dtype in dtypes]
# Programs instead of single operations, which take longer to compile than to run.
quantize = jax.jit(eight_bits.quantize, static_argnames=("dtype", "dimension"))


@pytest.fixture(params=cases(CASES, slow=("one_core", "tpu_float8")), ids="-".join)
def case(request, monkeypatch):
    """Each implementation with each type that it has; small tiles, races detected."""
    run, dtype = request.param
    name, chip, _ = RUNS[run]
    monkeypatch.setattr(tiling, "PART_ROWS", SMALL_PART)
    with emulated(chip) if chip else contextlib.nullcontext():
        yield name, dtype


@pytest.fixture
def case_name(request, case):
    """The key of the case in RUNS."""
    del case
    return request.node.callspec.params["case"][0]


def draw(*shape, seed=0, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def make_plan(name, sizes, num_rows=R, **choices):
    plan = functools.partial(
        plan_rows,
        num_rows=num_rows,
        implementation=name,
        quantization=Quantization(**choices),
    )
    return jax.jit(plan)(jnp.array(sizes, jnp.int32))


def multiplied(x_RD, w_EDF, plan):
    """One compiled program, where `grouped_matmul` itself would be many."""
    return jax.jit(functools.partial(grouped_matmul, groups=plan))(x_RD, w_EDF)


def experts(inputs, groups, **choices):
    """The same of the experts."""
    return jax.jit(functools.partial(expert_mlp, groups=groups, **choices))(*inputs)


def value_and_gradients(run, inputs, grad):
    """The same of both passes."""

    @jax.jit
    def both_passes(inputs, grad):
        value, pull_back = jax.vjp(run, *inputs)
        return value, *pull_back(grad)

    return both_passes(inputs, grad)


def dequantized(array, dtype, dimension, key=None):
    """Returns what the quantised array stands for, in float64."""
    found = quantize(array, dtype, dimension=dimension, key=key)
    scales = np.expand_dims(np.asarray(found.scales, np.float64), dimension)
    return np.asarray(found.values).astype(np.float64) * scales


def spacing_bound(array, dtype, dimension):
    """Returns how far apart at most the two neighbours of each number are.

    int8: a line's numbers are multiples of its largest / 127. float8 with m bits after
    the leading one: at most 2^-m of the number; below the least normal number, which is
    2^(2 - 2^(exponent bits - 1)), multiples of 2^-m of that.
    """
    array = np.abs(np.asarray(array, np.float64))
    scales = array.max(dimension, keepdims=True) / LARGEST[dtype]
    if dtype == "int8":
        return np.broadcast_to(scales, array.shape)
    least = {"float8_e4m3fn": 2.0**-6, "float8_e5m2": 2.0**-14}[dtype]
    return np.maximum(array, least * scales) * 2.0 ** -MANTISSA_BITS[dtype]


def expected_product(x, w_EDF, sizes):
    out, end = np.zeros((x.shape[0], w_EDF.shape[2])), 0
    for w_DF, size in zip(w_EDF, sizes, strict=True):
        out[end : end + size] = x[end : end + size] @ w_DF
        end += size
    return out


def swapped(w_EDF):
    return np.swapaxes(w_EDF, 1, 2)


# Rounding.


@pytest.mark.parametrize("dtype", EIGHT_BIT_TYPES)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dimension", [0, 1])
def test_a_number_errs_by_half_a_step_or_by_one(dtype, rounding, dimension):
    # Sizes from 1 to 1e6 within a line.
    array = draw(64, 96) * 10.0 ** jnp.abs(2 * draw(64, 96, seed=1))
    key = jax.random.key(0) if rounding == "stochastic" else None
    error = np.abs(dequantized(array, dtype, dimension, key) - np.asarray(array))
    share = 0.5 if rounding == "nearest" else 1.0
    # The division by the scale is rounded: by 2^-24 of up to 128 steps.
    bound = (share + 2e-5) * spacing_bound(array, dtype, dimension)
    assert np.all(error <= bound)
    assert np.max(error / bound) > 0.8


def test_nearest_is_to_even_and_as_numpy_rounds():
    # With the largest number in the line the scale is 1.
    values = jnp.array([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]])
    found = quantize(values, "int8", dimension=1)
    assert found.values.tolist() == [[127, 0, 2, 2, 0, -2, -2]]
    for dtype in ("float8_e4m3fn", "float8_e5m2"):
        values = draw(1, 4096) * 2.0 ** (6 * draw(1, 4096, seed=1))
        values = jnp.clip(values, -LARGEST[dtype], LARGEST[dtype])
        values = values.at[0, :4].set(jnp.array([LARGEST[dtype], 17.0, 19.0, 9.0]))
        found = quantize(values, dtype, dimension=1)
        want = np.asarray(values).astype(jnp.dtype(dtype))
        np.testing.assert_array_equal(
            np.asarray(found.values).astype(np.float32), want.astype(np.float32)
        )


@pytest.mark.parametrize("dtype", EIGHT_BIT_TYPES)
def test_stochastic_rounding_is_right_on_average_and_the_key_s(dtype):
    array, num_keys = draw(4, 32), 4096
    keys = jax.random.split(jax.random.key(1), num_keys)

    @jax.jit
    @jax.vmap
    def round_trip(key):
        found = quantize(array, dtype, dimension=1, key=key)
        return found.values.astype(jnp.float32) * found.scales[:, None]

    rounded = round_trip(keys)
    mean = np.asarray(rounded, np.float64).mean(0)
    # A number between neighbours s apart has a standard deviation of at most s / 2;
    # of 128 means of 4096 one in 14,000 such tests is 5 deviations out.
    deviation = spacing_bound(array, dtype, 1) / 2 / np.sqrt(num_keys)
    assert np.all(np.abs(mean - np.asarray(array)) <= 5 * deviation + 1e-7)
    np.testing.assert_array_equal(round_trip(keys[:1]), rounded[:1])
    assert np.any(np.asarray(rounded[0]) != np.asarray(rounded[1]))


@pytest.mark.parametrize("dtype", EIGHT_BIT_TYPES)
def test_lines_of_zeros_tiny_numbers_and_nan(dtype):
    rows = jnp.stack([jnp.zeros(8), jnp.full(8, 1e-30), jnp.full(8, 1e-40)])
    found = quantize(rows, dtype, dimension=1)
    assert np.all(np.isfinite(found.scales)) and np.all(found.scales > 0)
    values = np.asarray(found.values.astype(jnp.float32))
    assert not values[0].any()
    np.testing.assert_allclose(values[1] * found.scales[1], 1e-30, rtol=1e-6)
    # However it is rounded: with a scale of 1, chance would round some of them up to 1.
    assert np.all(found.scales[::2] < 2e-38)
    rows = jnp.ones((3, 8)).at[1, 3].set(jnp.nan).at[2, 5].set(jnp.inf)
    scales = quantize(rows, dtype, dimension=1).scales
    np.testing.assert_array_equal(np.isnan(scales), [False, True, True])


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_one_huge_number_costs_its_own_row_alone(dtype):
    x_RD, w_EDF = draw(64, D), draw(1, D, F, seed=1)
    plan = make_plan("xla", (64,), num_rows=64, dtype=dtype)
    run = jax.jit(functools.partial(grouped_matmul, w_EDF=w_EDF, groups=plan))
    plain, hit = run(x_RD), run(x_RD.at[9, 2].set(1e4))
    is_other_R = np.arange(64) != 9
    np.testing.assert_array_equal(plain[is_other_R], hit[is_other_R])
    # 1e4 / 127 is a step of int8, and 0.04 one of float8 near 0.
    rest = dequantized(x_RD.at[9, 2].set(1e4), dtype, 1)[9]
    assert (np.count_nonzero(rest) == 1) == (dtype == "int8")


# Products.


NUM_GROUPS = max(map(len, GROUP_SIZES.values()))


@functools.partial(jax.jit, static_argnames=("product", "run", "dtype"))
def multiply(product, rows, w_EDF, sizes_E, *, run, dtype):
    """Compiled once for all sizes of a case, in which `run` stands for the chip."""
    choices = Quantization(dtype=dtype, gradient_dtype=dtype)
    plan = plan_rows(
        sizes_E, num_rows=R, implementation=RUNS[run][0], quantization=choices
    )
    return product(rows, w_EDF, plan)


@pytest.mark.parametrize("case", cases(CASES), ids="-".join, indirect=True)
@pytest.mark.parametrize("sizes", GROUP_SIZES.values(), ids=GROUP_SIZES)
def test_products_are_those_of_the_quantised_operands(case, case_name, sizes):
    _, dtype = case
    sizes = (*sizes, *(0,) * (NUM_GROUPS - len(sizes)))
    x_RD, y_RF, w_EDF = draw(R, D), draw(R, F, seed=1), draw(len(sizes), D, F, seed=2)
    # Rows of nobody hold NaN, which must reach nothing.
    is_owned_R1 = jnp.arange(R)[:, None] < sum(sizes)
    x_RD, y_RF = (jnp.where(is_owned_R1, rows, jnp.nan) for rows in (x_RD, y_RF))
    sizes_E = jnp.array(sizes, jnp.int32)
    for product, rows, contracted in (
        (grouped_matmul, x_RD, 1),
        (grouped_matmul_transposed, y_RF, 2),
    ):
        w = dequantized(w_EDF, dtype, contracted)
        expected = expected_product(
            dequantized(rows, dtype, 1), w if contracted == 1 else swapped(w), sizes
        )
        found = multiply(product, rows, w_EDF, sizes_E, run=case_name, dtype=dtype)
        # Exact sums of int8, or float32 sums of up to 40 terms; two scales.
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("dtype", EIGHT_BIT_TYPES)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_product_errs_by_no_more_than_its_bound(dtype, rounding):
    """With x = x' + d, w = w' + e the error is x w - x' w' = d w + x' e.

    Where a number errs by at most half its step (all of it, if stochastic), that is at
    most sum_d |d| |w| + (|x| + |d|) |e|. Other implementations have these products.
    """
    key = jax.random.key(3) if rounding == "stochastic" else None
    x_RD, w_EDF = draw(R, D), draw(4, D, F, seed=2)
    plan = make_plan("xla", TAIL, dtype=dtype, rounding=rounding, key=key)
    out_RF = multiplied(x_RD, w_EDF, plan)
    share = 0.5 if key is None else 1.0
    error_RD = share * spacing_bound(x_RD, dtype, 1)
    error_EDF = share * spacing_bound(w_EDF, dtype, 1)
    x, w = np.abs(np.asarray(x_RD, np.float64)), np.asarray(w_EDF, np.float64)
    bound = expected_product(error_RD, np.abs(w), TAIL)
    bound += expected_product(x + error_RD, error_EDF, TAIL)
    error = np.abs(out_RF - expected_product(np.asarray(x_RD, np.float64), w, TAIL))
    assert np.all(error <= bound + 1e-5)


# Relative errors in the Frobenius norm for normal operands of width 512. A step s errs
# by s^2 / 12 on average, by s^2 / 6 if stochastic, in each operand. int8: the largest
# of 512 normals is 3.1 on average, s = 3.1 / 127, and sqrt(2 / 12) s = 1.0 %. float8
# with m bits after the leading one: s = 2^-m of the power of two below, of which the
# mean square is 0.46 of the numbers', and sqrt(2 * 0.46 / 12) 2^-m = 3.5 and 6.9 %.
RELATIVE_ERROR = {"int8": 0.010, "float8_e4m3fn": 0.035, "float8_e5m2": 0.069}


@pytest.mark.parametrize("dtype", EIGHT_BIT_TYPES)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_the_relative_error_of_normal_operands_is_as_derived(dtype, rounding):
    key = jax.random.key(3) if rounding == "stochastic" else None
    x_RD, w_EDF = draw(128, 512), draw(2, 512, 128, seed=1)
    sizes = (50, 78)
    plan = make_plan("xla", sizes, 128, dtype=dtype, rounding=rounding, key=key)
    found = np.asarray(multiplied(x_RD, w_EDF, plan), np.float64)
    x, w = (np.asarray(array, np.float64) for array in (x_RD, w_EDF))
    exact = expected_product(x, w, sizes)
    expected = RELATIVE_ERROR[dtype] * (1 if key is None else 2**0.5)
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert error == pytest.approx(expected, rel=0.1)


def test_rows_beside_bfloat16_keep_their_dtype_and_the_sums_all_digits(case):
    name, dtype = case
    x_RD, w_EDF = draw(R, D, dtype="bfloat16"), draw(4, D, F, seed=2)
    out_RF = multiplied(x_RD, w_EDF, make_plan(name, TAIL, dtype=dtype))
    assert out_RF.dtype == jnp.bfloat16
    rows, matrices = dequantized(x_RD, dtype, 1), dequantized(w_EDF, dtype, 1)
    expected = expected_product(rows, matrices, TAIL)
    # One rounding to 8 bits, at the end.
    np.testing.assert_allclose(
        np.asarray(out_RF, np.float64), expected, rtol=2.0**-8, atol=1e-4
    )


def test_a_shard_of_the_groups_leaves_the_rows_of_others_zero(case):
    name, dtype = case
    sizes, offset = (70, 9, 0, 50, 30), 1
    x_RD, w_EDF = draw(R, D), draw(3, D, F)
    plan = plan_rows(
        jnp.array(sizes),
        num_rows=R,
        num_groups=3,
        group_offset=jnp.int32(offset),
        implementation=name,
        quantization=Quantization(dtype),
    )
    is_owned_R1 = (np.arange(R) >= 70) & (np.arange(R) < 129)
    x_RD = jnp.where(is_owned_R1[:, None], x_RD, jnp.nan)
    out_RF = multiplied(x_RD, w_EDF, plan)
    rows = dequantized(x_RD[70:129], dtype, 1)
    expected = expected_product(rows, dequantized(w_EDF, dtype, 1), sizes[1:4])
    np.testing.assert_allclose(out_RF[70:129], expected, rtol=2e-6, atol=2e-5)
    assert not np.any(np.asarray(out_RF)[~is_owned_R1])


def test_a_nan_stays_in_its_own_row_or_group(case, case_name):
    _, dtype = case
    x_RD, w_EDF = draw(R, D), draw(NUM_GROUPS, D, F)
    sizes_E = jnp.zeros(NUM_GROUPS, jnp.int32).at[: len(TAIL)].set(jnp.array(TAIL))
    run = functools.partial(multiply, grouped_matmul, run=case_name, dtype=dtype)
    out_RF = run(x_RD.at[7, 2].set(jnp.nan), w_EDF, sizes_E)
    assert np.flatnonzero(np.isnan(out_RF).any(axis=1)).tolist() == [7]
    out_RF = run(x_RD, w_EDF.at[1, 2, 3].set(jnp.nan), sizes_E)
    rows, columns = np.nonzero(np.isnan(out_RF))
    assert (set(rows), set(columns)) == (set(range(5, 95)), {3})


def test_several_tiles_of_columns_take_their_own_scales(monkeypatch):
    # A VMEM that holds half of the columns of each slice.
    width, hidden, sizes = 128, 256, (30, 0, 71, 3)
    small = dataclasses.replace(hardware.TPUS["TPU v6 lite"], vmem_bytes=1_000_000)
    monkeypatch.setitem(hardware.TPUS, "TPU v6 lite", small)
    monkeypatch.setattr(tiling, "PART_ROWS", 32)
    inputs, _ = layer_inputs(4, width=width, hidden=hidden)
    want = experts(inputs, make_plan("reference", sizes))
    with emulated("TPU v6 lite"):
        found = experts(inputs, make_plan("tpu", sizes))
    assert relative(found, want) < 1e-3


# Gradients.


def test_gradients_of_a_product_are_straight_through(case):
    name, dtype = case
    x_RD, w_EDF, grad_RF = draw(R, D), draw(4, D, F, seed=1), draw(R, F, seed=2)
    plan = make_plan(name, TAIL, dtype=dtype)
    plain = plan_rows(jnp.array(TAIL), num_rows=R, implementation=name)
    (_, *grads), (_, *plain_grads) = (
        value_and_gradients(
            functools.partial(grouped_matmul, groups=rows), (x_RD, w_EDF), grad_RF
        )
        for rows in (plan, plain)
    )
    for found, want in zip(grads, plain_grads, strict=True):
        # Tiles begin elsewhere, so that float32 sums have another order.
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_rows_may_be_quantised_and_that_of_weights_is_not():
    x_RD, w_EDF, grad_RF = draw(R, D), draw(4, D, F, seed=1), draw(R, F, seed=2)
    plan = make_plan("xla", TAIL, dtype="float8_e4m3fn", gradient_dtype="float8_e5m2")
    run = functools.partial(grouped_matmul, groups=plan)
    _, grad_x_RD, grad_w_EDF = value_and_gradients(run, (x_RD, w_EDF), grad_RF)
    np.testing.assert_array_equal(
        grad_x_RD, grouped_matmul_transposed(grad_RF, w_EDF, plan)
    )
    w_EFD = swapped(dequantized(w_EDF, "float8_e5m2", 2))
    rows = dequantized(grad_RF, "float8_e5m2", 1)
    expected = expected_product(rows, w_EFD, TAIL)
    np.testing.assert_allclose(grad_x_RD, expected, rtol=2e-6, atol=2e-5)
    np.testing.assert_array_equal(grad_w_EDF, grouped_outer(x_RD, grad_RF, plan))
    # The transposed product's own gradient is a forward product, quantised as such.
    run = functools.partial(grouped_matmul_transposed, w_EDF=w_EDF, groups=plan)
    _, grad_y_RF = value_and_gradients(run, (grad_RF,), x_RD)
    np.testing.assert_array_equal(grad_y_RF, multiplied(x_RD, w_EDF, plan))


# The experts.


def layer_inputs(num_experts, *, width=D, hidden=F, dtype="float32"):
    shapes = ((R, width), (num_experts, width, 2, hidden), (num_experts, hidden, width))
    x_RD, gate_up_ED2F, down_EFD = (
        draw(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes)
    )
    inputs = (
        x_RD,
        gate_up_ED2F * width**-0.5,
        down_EFD * hidden**-0.5,
        jnp.abs(draw(R, seed=3)),
    )
    return inputs, draw(R, width, seed=4, dtype=dtype)


def relative(found, expected):
    found, expected = (np.asarray(a, np.float64) for a in (found, expected))
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def straight_through(product, plan, plain):
    """The definition: the quantised value, with the gradient of the plain product."""

    def run(x, w_EDF):
        value = product(x, w_EDF, plain)
        return value + jax.lax.stop_gradient(product(x, w_EDF, plan) - value)

    return run


def defined_mlp(x_RD, gate_up_ED2F, down_EFD, weights_R, *, plan, plain):
    multiply = straight_through(grouped_matmul, plan, plain)
    E, D, _, F = gate_up_ED2F.shape
    product_RF = multiply(x_RD, gate_up_ED2F.reshape(E, D, 2 * F))
    gate_RF, up_RF = jnp.split(product_RF, 2, axis=1)
    hidden_RF = weights_R[:, None] * (jax.nn.silu(gate_RF) * up_RF)
    return multiply(hidden_RF, down_EFD)


def test_the_experts_and_their_gradients_are_as_defined(case):
    name, dtype = case
    # What is computed again is what was kept (the key's test): kernels show one way.
    save = "nothing" if name == "xla" else "gate_up"
    inputs, grad_RD = layer_inputs(4)
    is_owned_R = jnp.arange(R) < sum(TAIL)
    plan = make_plan(name, TAIL, dtype=dtype)
    found = value_and_gradients(
        functools.partial(expert_mlp, groups=plan, save=save),
        inputs,
        jnp.where(is_owned_R[:, None], grad_RD, jnp.nan),
    )
    definition = functools.partial(
        defined_mlp,
        plan=make_plan("reference", TAIL, dtype=dtype),
        plain=plan_rows(jnp.array(TAIL), num_rows=R, implementation="reference"),
    )
    wanted = value_and_gradients(definition, inputs, grad_RD)
    for got, want in zip(found, wanted, strict=True):
        # The hidden rows agree to float32; where one lies between two neighbours, it
        # may be rounded to either, which is a step of one number in a row.
        assert relative(got, want) < 1e-3


@pytest.mark.parametrize("dtype", EIGHT_BIT_TYPES)
def test_the_experts_are_as_near_as_their_two_products(dtype):
    # Each product errs as derived above, at widths of 24 and 40: narrower rows have a
    # smaller largest number. SwiGLU multiplies two of the first's results.
    inputs, _ = layer_inputs(4)
    found = experts(inputs, make_plan("xla", TAIL, dtype=dtype))
    exact = experts(inputs, jnp.array(TAIL), implementation="reference")
    assert 0 < relative(found, exact) < (1 + 2**0.5) * RELATIVE_ERROR[dtype]


@pytest.mark.parametrize("save", ["gate_up", "nothing"])
def test_the_key_alone_decides_how_the_experts_round(save):
    inputs, grad_RD = layer_inputs(4)

    @jax.jit
    def run(key):
        plan = make_plan("xla", TAIL, rounding="stochastic", key=key)
        value, pull_back = jax.vjp(
            lambda *a: expert_mlp(*a, groups=plan, save=save), *inputs
        )
        return value, *pull_back(grad_RD)

    first, again, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.any(np.asarray(first[0]) != np.asarray(other[0]))


def test_quantised_experts_run_under_shard_map_and_remat():
    axes = ("data", "expert")
    mesh = jax.make_mesh((4, 2), axes, axis_types=(AxisType.Explicit,) * 2)

    def loss(key, x_RD, *weights):
        plan = make_plan("xla", TAIL, rounding="stochastic", key=key)
        run = jax.checkpoint(lambda *a: expert_mlp(*a, groups=plan))
        return jax.lax.psum(jnp.sum(jnp.square(run(x_RD, *weights))), axes)

    rows, everywhere = P(axes), P()
    specs = (everywhere, rows, everywhere, everywhere, rows)
    mapped = jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=everywhere)
    (x_RD, gate_up_ED2F, down_EFD, weights_R), _ = layer_inputs(4)
    inputs = (jnp.tile(x_RD, (8, 1)), gate_up_ED2F, down_EFD, jnp.tile(weights_R, 8))
    with jax.set_mesh(mesh):
        arguments = [
            jax.device_put(value, spec)
            for value, spec in zip(inputs, specs[1:], strict=True)
        ]
        step = jax.jit(jax.grad(mapped, (1, 2, 3, 4)))
        grads = step(jax.random.key(0), *arguments)
    # Eight devices with the same rows: each gradient of a weight is eight times one's.
    plan = make_plan("xla", TAIL, rounding="stochastic", key=jax.random.key(0))
    single = jax.jit(
        jax.grad(
            lambda *a: jnp.sum(jnp.square(expert_mlp(*a, groups=plan))), (0, 1, 2, 3)
        )
    )(x_RD, gate_up_ED2F, down_EFD, weights_R)
    assert relative(grads[1], 8 * np.asarray(single[1])) < 1e-5
    assert relative(np.asarray(grads[0])[:R], single[0]) < 1e-5


# What cannot be.


def test_a_plan_without_quantization_changes_nothing():
    with hardware.pretend("TPU v6 lite"):
        plain = plan_rows(jnp.array(TAIL), num_rows=R, implementation="tpu")
        eight = make_plan("tpu", TAIL)
    assert (plain.tiles.row_align, eight.tiles.row_align) == (tpu.ROW_ALIGN, 32)
    assert plain.quantization is None


def test_the_log_says_that_operands_have_8_bits(caplog):
    choice.log_once.cache_clear()
    caplog.set_level("INFO", "pallas_kernels")
    make_plan("xla", TAIL, dtype="int8")
    assert caplog.messages == ["products of int8 operands: xla on cpu"]


@pytest.mark.parametrize(
    ("chip", "dtype"),
    [
        ("TPU v5 lite", "float8_e4m3fn"),
        ("TPU v5p", "float8_e5m2"),
        ("TPU v6 lite", "float8_e4m3fn"),
        ("TPU7x", "int8"),
    ],
)
def test_what_a_chip_would_convert_is_refused_in_a_sentence(chip, dtype):
    with (
        hardware.pretend(chip) as found,
        pytest.raises(NotImplementedError, match=f"{chip} multiplies .* {dtype}"),
    ):
        make_plan("tpu", TAIL, dtype=dtype)
    own = found.eight_bit_types[0]
    with (
        hardware.pretend(chip),
        pytest.raises(NotImplementedError, match="would convert"),
    ):
        make_plan("tpu", TAIL, dtype=own, gradient_dtype=dtype)


def test_a_choice_that_is_not_there_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="quantised to 'int4'; it must be one of"):
        make_plan("xla", TAIL, dtype="int4")
    with pytest.raises(ValueError, match="rounding='up' must be one of"):
        make_plan("xla", TAIL, rounding="up")
    with pytest.raises(ValueError, match="with no key: stochastic rounding needs"):
        make_plan("xla", TAIL, rounding="stochastic")
    with pytest.raises(ValueError, match="with a key"):
        make_plan("xla", TAIL, key=jax.random.key(0))


# Ling-lite with 8,192 tokens a device.
NUM_ROWS, NUM_EXPERTS, WIDTH, HIDDEN = 49152, 64, 2048, 1408


@pytest.mark.aot
@pytest.mark.parametrize(
    ("chip", "dtype", "gradient_dtype"),
    [
        ("v5e", "int8", None),
        ("v5p", "int8", None),
        ("v6e", "int8", "int8"),
        ("tpu7x", "float8_e4m3fn", "float8_e5m2"),
    ],
)
def test_the_compiler_takes_8_bit_experts_at_ling_lite_s_shapes(
    chip, dtype, gradient_dtype, absent_mesh
):
    mesh = absent_mesh(chip)

    def abstract(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P()))

    def both_passes(sizes_E, grad_RD, *inputs):
        plan = plan_rows(
            sizes_E,
            num_rows=NUM_ROWS,
            implementation="tpu",
            quantization=Quantization(dtype, gradient_dtype),
        )
        y_RD, pull_back = jax.vjp(lambda *a: expert_mlp(*a, groups=plan), *inputs)
        return y_RD, *pull_back(grad_RD)

    with jax.set_mesh(mesh):
        lowered = jax.jit(both_passes).lower(
            abstract(NUM_EXPERTS, dtype=jnp.int32),
            abstract(NUM_ROWS, WIDTH),
            abstract(NUM_ROWS, WIDTH),
            abstract(NUM_EXPERTS, WIDTH, 2, HIDDEN),
            abstract(NUM_EXPERTS, HIDDEN, WIDTH),
            abstract(NUM_ROWS, dtype=jnp.float32),
        )
        text = lowered.compile().as_text()
    assert text is not None
    calls = [line for line in text.splitlines() if '"tpu_custom_call"' in line]
    # Rows and matrices of each kernel; the four products come before the outer ones.
    operands = [call.partition("operand_layout_constraints=")[2] for call in calls]
    found = [
        re.findall(r"(\w+)\[(?:49152,\d{4}|64,\d+,\d+)\]", shapes)[:2]
        for shapes in operands
        if "grouped_outer" not in shapes
    ]
    names = {"int8": "s8", "float8_e4m3fn": "f8e4m3fn", "float8_e5m2": "f8e5m2"}
    expected = [dtype] * 2 + [gradient_dtype] * 2
    assert found == [[names.get(name, "bf16")] * 2 for name in expected]
    assert len(calls) == 6
