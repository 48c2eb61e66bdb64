# SPDX-License-Identifier: Apache-2.0
"""The experts' SwiGLU on every implementation, against its definition in float32."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels import hardware
from pallas_kernels.expert_mlp import expert_mlp, reference
from pallas_kernels.grouped_matmul import plan_rows, tiling
from tests.emulated_tpu import cases, emulated

SMALL_PART = 64
R, D, F = 200, 8, 16
# Both ways to save, with sizes that try the tiles' edges; as many groups in all, so
# that there is one compilation a way.
CASES = {
    "tile_edges": ("gate_up", (63, 64, 65, 0, 1, *(0,) * 59)),
    "all_to_one": ("nothing", (0, 200, *(0,) * 62)),
    "unrouted_tail": ("gate_up", (5, 90, 0, 38, *(0,) * 60)),
    "nothing_routed": ("nothing", (0,) * 64),
    # Zipf's law over 64 experts: most have a row or two, in blocks that they share.
    "zipf": ("gate_up", tuple(int(40 / rank) for rank in range(1, 65))),
}
TAIL = (5, 90, 0, 38)
# Sums of a few dozen products of order 1 in another order, in float32 and rounded to
# bfloat16's 8 bits at each of the steps: gate and up, hidden, result.
TOLERANCE = {"float32": 5e-5, "bfloat16": 5e-2}
RUNS = {
    "reference": ("reference", None),
    "xla": ("xla", None),
    "tpu_one_core": ("tpu", "TPU v6 lite"),
    "tpu_two_cores": ("tpu", "TPU v5p"),
}


@pytest.fixture(params=cases(RUNS))
def implementation(request, monkeypatch):
    """Each implementation; the TPU's with small tiles, races detected, memory NaN."""
    name, chip = RUNS[request.param]
    if chip is None:
        yield name
        return
    monkeypatch.setattr(tiling, "PART_ROWS", SMALL_PART)
    with emulated(chip):
        yield name


def operands(num_groups, *, dtype="float32", width=D, hidden=F, num_rows=R):
    """Returns x, gate_up, down, row weights (all that has a gradient) and dy."""
    rng = np.random.default_rng(num_groups)

    def draw(*shape, dtype=dtype):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    x_RD, grad_RD = draw(num_rows, width), draw(num_rows, width)
    gate_up_ED2F = draw(num_groups, width, 2, hidden) * width**-0.5
    down_EFD = draw(num_groups, hidden, width) * hidden**-0.5
    weights_R = jnp.abs(draw(num_rows, dtype="float32"))
    return (x_RD, gate_up_ED2F, down_EFD, weights_R), grad_RD


def of_groups(function, groups, **options):
    return lambda *inputs: function(*inputs, groups, **options)


@functools.partial(jax.jit, static_argnames="group_offset")
def defined(inputs, grad_RD, sizes_E, *, group_offset=0):
    """Value and gradients by the definition."""
    run = of_groups(reference.expert_mlp, sizes_E, group_offset=group_offset)
    return value_and_gradients(run, inputs, grad_RD)


def value_and_gradients(function, inputs, grad_RD):
    y_RD, pull_back = jax.vjp(function, *inputs)
    return y_RD, *pull_back(grad_RD)


def assert_close(found, expected, dtype="float32"):
    for got, want in zip(found, expected, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(
            np.asarray(got, np.float32),
            np.asarray(want, np.float32),
            rtol=TOLERANCE[dtype],
            # Relative to the largest, of which a cancelling sum has the rounding.
            atol=TOLERANCE[dtype] * (1 + float(jnp.max(jnp.abs(want)))),
        )


@functools.partial(jax.jit, static_argnames=("run", "save"))
def both_passes(inputs, grad_RD, sizes_E, *, run, save):
    """Compiled once for all sizes of as many groups, by the names of RUNS."""
    layer = functools.partial(expert_mlp, save=save, implementation=RUNS[run][0])
    return value_and_gradients(of_groups(layer, sizes_E), inputs, grad_RD)


@pytest.mark.parametrize(("save", "group_sizes"), CASES.values(), ids=CASES)
def test_value_and_gradients_match_the_definition(
    implementation, save, group_sizes, request
):
    del implementation
    run = request.node.callspec.params["implementation"]
    inputs, grad_RD = operands(len(group_sizes))
    sizes_E = jnp.array(group_sizes, jnp.int32)
    expected = defined(inputs, grad_RD, sizes_E)
    # Rows of nobody hold NaN, which must reach nothing.
    is_owned_R = jnp.arange(R) < sum(group_sizes)
    x_RD, gate_up_ED2F, down_EFD, weights_R = inputs
    x_RD, grad_RD = (
        jnp.where(is_owned_R[:, None], rows, jnp.nan) for rows in (x_RD, grad_RD)
    )
    inputs = (x_RD, gate_up_ED2F, down_EFD, jnp.where(is_owned_R, weights_R, jnp.nan))
    found = both_passes(inputs, grad_RD, sizes_E, run=run, save=save)
    assert_close(found, expected)


def test_bfloat16_rounds_the_result_once_and_keeps_the_weights_dtypes(implementation):
    sizes_E = jnp.array(TAIL, jnp.int32)
    inputs, grad_RD = operands(4)
    half, grad_half_RD = operands(4, dtype="bfloat16")
    # Float32 master weights beside bfloat16 rows.
    mixed = (half[0], *inputs[1:])
    rounded = [array.astype(jnp.float32) for array in (*half[:3], inputs[3])]
    expected = defined(rounded, grad_half_RD.astype(jnp.float32), sizes_E)
    run = of_groups(
        functools.partial(expert_mlp, implementation=implementation), sizes_E
    )
    passes = jax.jit(functools.partial(value_and_gradients, run))
    found = passes(mixed, grad_half_RD)
    dtypes = [array.dtype for array in found]
    assert dtypes == [jnp.bfloat16, jnp.bfloat16, *[jnp.float32] * 3]
    assert_close(found, expected, "bfloat16")


@functools.partial(jax.jit, static_argnames=("run",))
def both_passes_of_two(inputs, grad_RD, sizes_E, group_offset, *, run):
    """As `both_passes`, with two of the groups here."""
    plan = plan_rows(
        sizes_E,
        num_rows=R,
        num_groups=2,
        group_offset=group_offset,
        implementation=RUNS[run][0],
    )
    return value_and_gradients(of_groups(expert_mlp, plan), inputs, grad_RD)


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_a_shard_of_the_experts_leaves_the_rows_of_others_zero(
    implementation, offset, request
):
    del implementation
    run = request.node.callspec.params["implementation"]
    group_sizes = (70, 9, 0, 50, 30)
    sizes_E = jnp.array(group_sizes, jnp.int32)
    inputs, grad_RD = operands(2)
    begin, end = sum(group_sizes[:offset]), sum(group_sizes[: offset + 2])
    expected = defined(inputs, grad_RD, sizes_E, group_offset=offset)
    is_owned_R1 = ((np.arange(R) >= begin) & (np.arange(R) < end))[:, None]
    x_RD, *rest = inputs
    x_RD, grad_RD = (jnp.where(is_owned_R1, a, jnp.nan) for a in (x_RD, grad_RD))
    inputs = (x_RD, *rest)
    found = both_passes_of_two(inputs, grad_RD, sizes_E, jnp.int32(offset), run=run)
    assert_close(found, expected)


def test_widths_in_several_tiles_match_the_definition(monkeypatch):
    # Half of VMEM's share holds half of the columns: gate and up come in two slices
    # each, and the sums over the columns in two parts.
    width, hidden, group_sizes = 128, 256, (30, 0, 71, 3)
    small = dataclasses.replace(hardware.TPUS["TPU v6 lite"], vmem_bytes=2_000_000)
    monkeypatch.setitem(hardware.TPUS, "TPU v6 lite", small)
    monkeypatch.setattr(tiling, "PART_ROWS", 32)
    inputs, grad_RD = operands(4, width=width, hidden=hidden)
    sizes_E = jnp.array(group_sizes, jnp.int32)
    expected = defined(inputs, grad_RD, sizes_E)
    with emulated("TPU v6 lite"):
        run = of_groups(expert_mlp, sizes_E, implementation="tpu")
        found = jax.jit(functools.partial(value_and_gradients, run))(inputs, grad_RD)
    assert_close(found, expected)


def test_scanned_and_rematerialised_layers_match_a_plain_loop():
    inputs, _ = operands(4)
    sizes_E = jnp.array(TAIL, jnp.int32)
    run = functools.partial(expert_mlp, save="nothing")

    def scanned(x_RD, *weights):
        @jax.checkpoint
        def layer(x_RD, _):
            return x_RD + of_groups(run, sizes_E)(x_RD, *weights), None

        return jnp.sum(jnp.square(jax.lax.scan(layer, x_RD, length=2)[0]))

    def looped(x_RD, *weights):
        for _ in range(2):
            x_RD += of_groups(reference.expert_mlp, sizes_E)(x_RD, *weights)
        return jnp.sum(jnp.square(x_RD))

    found = jax.jit(jax.grad(scanned, (0, 1, 2, 3)))(*inputs)
    assert_close(found, jax.grad(looped, (0, 1, 2, 3))(*inputs))


def test_kernels_lay_out_where_the_weights_are_shared_by_devices():
    axes = ("data", "expert")
    mesh = jax.make_mesh((4, 2), axes, axis_types=(AxisType.Explicit,) * 2)
    rows, everywhere = P(axes), P()

    def loss(sizes_E, *inputs):
        run = of_groups(expert_mlp, sizes_E, implementation="tpu")
        return jax.lax.psum(jnp.sum(run(*inputs)), axes)

    inputs, _ = operands(4, num_rows=8 * R)
    specs = (rows, rows, everywhere, everywhere, rows)
    mapped = jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=everywhere)
    with jax.set_mesh(mesh), hardware.pretend("TPU v5p"):
        arrays = (jnp.zeros(8 * 4, jnp.int32), *inputs)
        arguments = [
            jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(mesh, spec))
            for a, spec in zip(arrays, specs, strict=True)
        ]
        found = jax.eval_shape(jax.grad(mapped, (1, 2, 3, 4)), *arguments)
    # A gradient is laid out as its array: those of the weights are summed.
    assert [len(a.sharding.spec[0] or ()) for a in found] == [2, 0, 0, 2]


def test_forward_and_backward_plan_the_rows_once():
    sizes_E = jnp.array(TAIL, jnp.int32)
    inputs, _ = operands(4)

    def loss(*inputs):
        run = of_groups(expert_mlp, sizes_E, implementation="tpu")
        return jnp.sum(run(*inputs))

    with hardware.pretend("TPU v5p"):
        text = str(jax.make_jaxpr(jax.grad(loss, (0, 1, 2, 3)))(*inputs))
    # Two kernels forward and four backward; one sum that places the groups, one that
    # counts their tiles and one that numbers those with tiles.
    assert text.count("pallas_call[") == 6
    assert text.count("cumsum[") == 3


def test_a_refusal_is_a_sentence():
    (x_RD, gate_up_ED2F, down_EFD, weights_R), _ = operands(2)
    sizes_E = jnp.array([3, 4])
    with pytest.raises(ValueError, match=r"must be \[R, D\], \[E, D, 2, F\]"):
        expert_mlp(x_RD, gate_up_ED2F, down_EFD[:, 1:], weights_R, sizes_E)
    with pytest.raises(ValueError, match=r"must be \[R, D\], \[E, D, 2, F\]"):
        expert_mlp(x_RD, gate_up_ED2F, down_EFD, weights_R[1:], sizes_E)
    run = functools.partial(expert_mlp, x_RD, gate_up_ED2F, down_EFD, weights_R)
    with pytest.raises(ValueError, match="none may be negative"):
        run(jnp.array([-1, 4]))
    with pytest.raises(ValueError, match="nor their sum above the rows"):
        run(jnp.array([R, 1]))
    with pytest.raises(ValueError, match='"gate_up" or "nothing"'):
        run(sizes_E, save="everything")  # pyright: ignore[reportArgumentType]  (wrong on purpose)
    with pytest.raises(ValueError, match="within the 2 that have sizes"):
        plan_rows(
            sizes_E, num_rows=R, num_groups=2, group_offset=1, implementation="xla"
        )
    plan = plan_rows(sizes_E, num_rows=R + 1, implementation="xla")
    with pytest.raises(ValueError, match="the plan is for 201 rows"):
        run(plan)
    half = x_RD.astype(jnp.float16)
    with pytest.raises(NotImplementedError, match="xla cannot run: .* float16"):
        expert_mlp(
            half, gate_up_ED2F, down_EFD, weights_R, sizes_E, implementation="xla"
        )


# Ling-lite with 8,192 tokens a device. Saving nothing has the plain product too.
NUM_ROWS, NUM_EXPERTS, WIDTH, HIDDEN = 49152, 64, 2048, 1408
PRODUCTS = {
    "expert_gate_up": 1,
    "grouped_matmul": 1,
    "expert_hidden_gradient_transposed": 1,
    "grouped_matmul_transposed": 1,
    "grouped_outer": 2,
}


@pytest.mark.aot
@pytest.mark.parametrize(
    ("name", "save"),
    [
        *[(name, "gate_up") for name in ("v5e", "v5p", "v6e", "tpu7x")],
        ("v5p", "nothing"),
    ],
)
def test_the_compiler_takes_both_passes_at_ling_lite_s_shapes(name, save, absent_mesh):
    mesh = absent_mesh(name)

    def abstract(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P()))

    def both_passes(sizes_E, grad_RD, *inputs):
        run = functools.partial(expert_mlp, save=save)
        return value_and_gradients(of_groups(run, sizes_E), inputs, grad_RD)

    with jax.set_mesh(mesh):
        # No implementation is named: a mesh of TPUs is enough to choose the kernels.
        compiled = (
            jax.jit(both_passes)
            .lower(
                abstract(NUM_EXPERTS, dtype=jnp.int32),
                abstract(NUM_ROWS, WIDTH),
                abstract(NUM_ROWS, WIDTH),
                abstract(NUM_EXPERTS, WIDTH, 2, HIDDEN),
                abstract(NUM_EXPERTS, HIDDEN, WIDTH),
                abstract(NUM_ROWS, dtype=jnp.float32),
            )
            .compile()
        )
    text = compiled.as_text()
    assert text is not None
    expected = PRODUCTS | ({"grouped_matmul": 2} if save == "nothing" else {})
    calls = [line for line in text.splitlines() if '"tpu_custom_call"' in line]
    found = {k: sum(f"({k})" in call for call in calls) for k in expected}
    assert (found, len(calls)) == (expected, sum(expected.values()))
