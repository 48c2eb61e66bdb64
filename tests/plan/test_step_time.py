# SPDX-License-Identifier: Apache-2.0
"""The walk of a schedule: overlap, loops and categories, with times known by hand."""

import pytest

from pallas_kernels.hardware import TPUS
from ring_jax.plan.hlo import parse_module
from ring_jax.plan.links import PlacedMesh
from ring_jax.plan.op_cost import hbm_bytes, num_flops
from ring_jax.plan.step_time import COMPUTE_UNCERTAINTY, StepTime, estimate_step

V5E = TPUS["TPU v5 lite"]
# Two neighbours: one link one way each, as neither axis spans its pod.
PAIR = PlacedMesh({"fsdp": 2}, ((0, 0, 0, 0, 0), (0, 1, 0, 0, 0)), V5E)
FOUR = PlacedMesh(
    {"data": 2, "fsdp": 2}, tuple((0, x, y, 0, 0) for x in (0, 1) for y in (0, 1)), V5E
)
MATRIX_BYTES = 2 * 4096 * 4096
# A product of 4096^3 is bound by the matrix units, 2 * 4096^3 / peak.
PRODUCT_SECONDS = 2 * 4096**3 / V5E.flops_per_second
GATHER_SECONDS = MATRIX_BYTES / 2 / V5E.link_bytes_per_second
PRODUCT = "bf16[4096,4096]{1,0} dot(%a, %b), lhs_contracting_dims={1}"
GATHER = "bf16[4096,4096]{1,0} all-gather(%w), replica_groups={{0,1}}, dimensions={0}"


def estimate(*lines: str, mesh: PlacedMesh = PAIR, others: str = "") -> StepTime:
    """Estimates a program of two matrices and half a one, without dumps."""
    text = "HloModule m, is_scheduled=true\n\n" + others + "\nENTRY %main () -> f32[] {"
    body = (
        "%a = bf16[4096,4096]{1,0} parameter(0)",
        "%b = bf16[4096,4096]{1,0} parameter(1)",
        "%w = bf16[2048,4096]{1,0} parameter(2)",
        *lines,
        "ROOT %end = () tuple()",
    )
    hlo = text + "".join(f"\n  {line}" for line in body) + "\n}\n"
    return estimate_step(
        hlo, mesh, dump_dir=None, kernel_scalars=lambda kernel, computation: None
    )


def test_operations_follow_each_other():
    time = estimate(f"%p = {PRODUCT}", f"%q = {PRODUCT}")
    assert time.seconds == pytest.approx(2 * PRODUCT_SECONDS)
    assert time.sources == pytest.approx({"roofline": 2 * PRODUCT_SECONDS})


def test_a_synchronous_collective_stops_the_core():
    time = estimate(f"%p = {PRODUCT}", f"%g = {GATHER}", f"%q = {PRODUCT}")
    assert time.seconds == pytest.approx(2 * PRODUCT_SECONDS + GATHER_SECONDS)
    (use,) = time.collectives
    assert not use.is_async
    assert use.exposed_seconds == pytest.approx(GATHER_SECONDS)
    assert time.breakdown["exposed collectives over fsdp"] == pytest.approx(
        GATHER_SECONDS
    )


def start(name: str, operand: str = "%w", groups: str = "{{0,1}}") -> str:
    return (
        f"%{name} = (bf16[2048,4096]{{1,0}}, bf16[4096,4096]{{1,0}}) "
        f"all-gather-start({operand}), replica_groups={groups}, dimensions={{0}}"
    )


def done(name: str) -> str:
    return f"%{name}.done = bf16[4096,4096]{{1,0}} all-gather-done(%{name})"


def test_an_asynchronous_collective_costs_what_the_core_waits():
    assert PRODUCT_SECONDS > GATHER_SECONDS > PRODUCT_SECONDS / 4
    hidden = estimate(start("g"), f"%p = {PRODUCT}", done("g"))
    assert hidden.seconds == pytest.approx(PRODUCT_SECONDS)
    assert hidden.collectives[0].is_async
    assert hidden.collectives[0].exposed_seconds == 0

    quarter = "bf16[1024,4096]{1,0} dot(%a, %b), lhs_contracting_dims={1}"
    waiting = estimate(start("g"), f"%p = {quarter}", done("g"))
    assert waiting.seconds == pytest.approx(GATHER_SECONDS)
    assert waiting.collectives[0].exposed_seconds == pytest.approx(
        GATHER_SECONDS - PRODUCT_SECONDS / 4
    )


CHAINED = f"%g = {GATHER}, " + 'frontend_attributes={chain_id="7"}'
WHOLE = "bf16[4096,4096]{1,0}"


def part_of_chain(name: str, root: str, *parameters: str) -> str:
    lines = (*parameters, CHAINED, f"ROOT {root}")
    body = "".join(f"  {line}\n" for line in lines)
    return f"%{name} () -> bf16[4096,4096] {{\n{body}}}\n\n"


def chain(name: str, target: str) -> str:
    root = f'%r = {WHOLE} custom-call(%g), custom_call_target="{target}"'
    return part_of_chain(name, root, "%w = bf16[2048,4096]{1,0} parameter(0)")


CHAIN = (
    chain("begin", "AsyncCollectiveStart")
    + part_of_chain(
        "drive",
        f"%p = {PRODUCT}",
        f"%a = {WHOLE} parameter(0)",
        f"%b = {WHOLE} parameter(1)",
        "%w = bf16[2048,4096]{1,0} parameter(2)",
    )
    + chain("finish", "AsyncCollectiveDone")
)


def test_a_collective_in_a_chain_of_fusions_runs_once_and_beside_their_work():
    time = estimate(
        f"%start = {WHOLE} fusion(%w), kind=kCustom, calls=%begin",
        f"%step = {WHOLE} fusion(%a, %b, %w), kind=kOutput, calls=%drive",
        f"%done = {WHOLE} fusion(%w), kind=kCustom, calls=%finish",
        others=CHAIN,
    )
    assert time.seconds == pytest.approx(PRODUCT_SECONDS)
    (use,) = time.collectives
    assert (use.times, use.is_async, use.exposed_seconds) == (1, True, 0)


def test_collectives_over_one_axis_share_its_links():
    time = estimate(start("g"), start("h"), f"%p = {PRODUCT}", done("g"), done("h"))
    # Each alone would be hidden.
    assert 2 * GATHER_SECONDS > PRODUCT_SECONDS > GATHER_SECONDS
    assert time.seconds == pytest.approx(2 * GATHER_SECONDS)


def test_collectives_over_different_axes_run_at_once():
    lines = (
        start("g", groups="{{0,1},{2,3}}"),
        start("h", groups="{{0,2},{1,3}}"),
        f"%p = {PRODUCT}",
        done("g"),
        done("h"),
    )
    time = estimate(*lines, mesh=FOUR)
    assert [use.collective.axes for use in time.collectives] == [("fsdp",), ("data",)]
    assert time.seconds == pytest.approx(PRODUCT_SECONDS)


def test_a_copy_beside_the_core_takes_the_bandwidth_of_hbm():
    copy = (
        "%c = (bf16[4096,4096]{1,0:S(1)}, bf16[4096,4096]{1,0}, u32[]{:S(2)}) "
        "copy-start(%a)"
    )
    wait = "%c.done = bf16[4096,4096]{1,0:S(1)} copy-done(%c)"
    time = estimate(copy, wait)
    assert time.seconds == pytest.approx(MATRIX_BYTES / V5E.hbm_bytes_per_second)
    assert list(time.breakdown) == ["exposed copies"]
    assert estimate(copy, f"%p = {PRODUCT}", wait).seconds == pytest.approx(
        PRODUCT_SECONDS
    )


LOOP = """
%body (p: (s32[], bf16[4096,4096])) -> (s32[], bf16[4096,4096]) {
  %p = (s32[], bf16[4096,4096]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %a = bf16[4096,4096]{1,0} get-tuple-element(%p), index=1
  %w = bf16[2048,4096]{1,0} slice(%a), slice={[0:2048], [0:4096]}
  START
  %product = bf16[4096,4096]{1,0} dot(%a, %a), lhs_contracting_dims={1}
  %g.done = bf16[4096,4096]{1,0} all-gather-done(%g)
  ROOT %out = (s32[], bf16[4096,4096]{1,0}) tuple(%next, %g.done)
}

%cond (q: (s32[], bf16[4096,4096])) -> pred[] {
  %q = (s32[], bf16[4096,4096]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %n = s32[] BOUND
  ROOT %lt = pred[] compare(%j, %n), direction=LT
}
""".replace("START", start("g"))
RUN_LOOP = (
    "%zero = s32[] constant(0)",
    "%state = (s32[], bf16[4096,4096]{1,0}) tuple(%zero, %a)",
    "%loop = (s32[], bf16[4096,4096]{1,0}) while(%state), condition=%cond, body=%body",
)


def test_the_body_of_a_loop_counts_as_often_as_it_runs():
    time = estimate(*RUN_LOOP, others=LOOP.replace("BOUND", "constant(27)"))
    assert time.loops == {"loop": 27}
    slices = 2 * MATRIX_BYTES / 2 / V5E.hbm_bytes_per_second
    assert time.seconds == pytest.approx(27 * (PRODUCT_SECONDS + slices))
    (use,) = time.collectives
    assert use.times == 27
    assert use.seconds == pytest.approx(27 * GATHER_SECONDS)
    assert sum(time.breakdown.values()) == pytest.approx(time.seconds)


def test_a_loop_whose_bound_depends_on_data_is_told_of_and_counts_once():
    unknown = LOOP.replace("BOUND", "custom-call(%q), custom_call_target=bound")
    time = estimate(*RUN_LOOP, others=unknown)
    assert time.loops == {"loop": None}
    assert time.collectives[0].times == 1


def test_the_range_holds_faster_links_and_slower_cores():
    time = estimate(f"%g = {GATHER}", f"%p = {PRODUCT}")
    assert time.low_seconds == pytest.approx(GATHER_SECONDS / 2 + PRODUCT_SECONDS)
    assert time.high_seconds == pytest.approx(
        2 * GATHER_SECONDS + COMPUTE_UNCERTAINTY * PRODUCT_SECONDS
    )


def scoped(scope: str) -> str:
    path = f"jit(train_step)/transpose(jvp({scope}))/while/body/dot_general"
    return f'%{scope} = {PRODUCT}, metadata={{op_name="{path}"}}'


def test_the_breakdown_goes_by_named_scopes():
    path = "jit(train_step)/jvp()/while/body/moe/shard_map/dispatch/gather"
    moved = f'%d = {PRODUCT}, metadata={{op_name="{path}"}}'
    time = estimate(
        scoped("attention"), scoped("cross_entropy"), moved, scoped("optimizers")
    )
    assert time.breakdown == pytest.approx(
        {
            "attention": PRODUCT_SECONDS,
            "head and loss": PRODUCT_SECONDS,
            "router and permutation": PRODUCT_SECONDS,
            "other": PRODUCT_SECONDS,
        }
    )


def test_throughput_and_mfu_have_their_definitions():
    time = estimate(f"%p = {PRODUCT}")
    # All that the step does is model FLOPs, and the matrix units never wait.
    flops = 2 * 2 * 4096**3
    assert time.mfu(flops, num_devices=2, tpu=V5E) == pytest.approx(1.0)
    speed = time.tokens_per_second_per_chip(1024, num_devices=2, tpu=V5E)
    assert speed == pytest.approx(512 / PRODUCT_SECONDS)


def test_a_kernel_whose_operands_nobody_knows_is_marked():
    kernel = (
        "%k.1 = bf16[4096,4096]{1,0} custom-call(%a), "
        'custom_call_target="tpu_custom_call"'
    )
    time = estimate(kernel)
    (unknown,) = time.operations
    assert unknown.source == "unknown"
    assert unknown.reason == "k.1: nobody says what its scalar operands are."
    assert time.seconds == pytest.approx(2 * MATRIX_BYTES / V5E.hbm_bytes_per_second)


FUSIONS = """HloModule m, is_scheduled=true

%update (stack: f32[8,128,128], x: f32[128,128], i: s32[]) -> f32[8,128,128] {
  %stack = f32[8,128,128]{2,1,0} parameter(0)
  %x = f32[128,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %one = f32[1,128,128]{2,1,0} bitcast(%x)
  ROOT %u = f32[8,128,128]{2,1,0} dynamic-update-slice(%stack, %one, %i, %zero, %zero)
}

%convolve (l: bf16[64,32], r: bf16[32,16]) -> bf16[64,16] {
  %l = bf16[64,32]{1,0} parameter(0)
  %r = bf16[32,16]{1,0} parameter(1)
  ROOT %c = bf16[64,16]{1,0} convolution(%l, %r), dim_labels=bf_io->bf
}

ENTRY %main () -> f32[] {
  %stack.1 = f32[8,128,128]{2,1,0} parameter(0)
  %x.1 = f32[128,128]{1,0} parameter(1)
  %v.1 = f32[128,128]{1,0:S(1)} parameter(2)
  %i.1 = s32[]{:S(6)} parameter(3)
  %l.1 = bf16[64,32]{1,0} parameter(4)
  %r.1 = bf16[32,16]{1,0:S(1)} parameter(5)
  %in_place = f32[8,128,128]{2,1,0} fusion(%stack.1, %x.1, %i.1), calls=%update
  %from_vmem = f32[8,128,128]{2,1,0} fusion(%stack.1, %v.1, %i.1), calls=%update
  ROOT %product = bf16[64,16]{1,0} fusion(%l.1, %r.1), calls=%convolve
}
"""


@pytest.mark.parametrize(
    ("name", "num_bytes"),
    [
        # What is updated in place is not read, and only the update is written.
        ("in_place", 2 * 4 * 128 * 128),
        ("from_vmem", 4 * 128 * 128),
        ("product", 2 * (64 * 32 + 64 * 16)),
    ],
)
def test_bytes_are_those_that_go_to_hbm(name, num_bytes):
    module = parse_module(FUSIONS)
    found = hbm_bytes(module.entry.by_name[name], module.entry, module)
    assert found == num_bytes


def test_a_product_inside_a_fusion_has_its_flops():
    module = parse_module(FUSIONS)
    product = module.entry.by_name["product"]
    assert num_flops(product, module.entry, module) == 2 * 64 * 32 * 16


@pytest.mark.parametrize(
    ("left", "right", "result", "window", "labels", "flops"),
    [
        pytest.param(
            *("[16,64,32]", "[16,32,8]", "[16,64,8]"),
            *("size=16 stride=15 pad=0_0 lhs_dilate=16", "0bf_0io->0bf"),
            2 * 16 * 64 * 32 * 8,
            id="hbd,hde->hbe",
        ),
        pytest.param(
            *("[64,32,1]", "[32,16,8]", "[64,16,8]"),
            *("size=16 pad=15_15 rhs_reversal=1", "bf0_i0o->b0f"),
            2 * 64 * 32 * 16 * 8,
            id="bd,dhe->bhe",
        ),
        pytest.param(
            *("[64,16,8]", "[32,16,8]", "[64,32,1]"),
            *("size=16", "b0f_o0i->bf0"),
            2 * 64 * 32 * 16 * 8,
            id="bhe,dhe->bd",
        ),
    ],
)
def test_a_product_written_as_a_convolution_counts_no_holes_and_no_padding(
    left, right, result, window, labels, flops
):
    # As libtpu writes these einsums.
    module = parse_module(
        "HloModule m, is_scheduled=true\n\nENTRY %main () -> f32[] {\n"
        f"  %l = bf16{left}{{2,1,0}} parameter(0)\n"
        f"  %r = bf16{right}{{2,1,0}} parameter(1)\n"
        f"  ROOT %c = bf16{result}{{2,1,0}} convolution(%l, %r), "
        f"window={{{window}}}, dim_labels={labels}\n}}\n"
    )
    assert num_flops(module.entry.root, module.entry, module) == flops
