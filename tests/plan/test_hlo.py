# SPDX-License-Identifier: Apache-2.0
"""Reading scheduled HLO, on small modules written by hand in the compiler's format."""

import pytest

from ring_jax.plan.hlo import HBM, parse_module
from ring_jax.plan.loops import trip_count

HEADER = "HloModule step, is_scheduled=true, num_partitions=4\n\n"
# A scan of 8 turns as libtpu prints it: no count, but bounds that are constants.
SCAN = (
    HEADER
    + """
%body (p: (s32[], f32[4,8], s32[])) -> (s32[], f32[4,8], s32[]) {
  %p = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}, s32[]) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %i.copy = s32[]{:T(128)S(6)} copy(%i)
  %one = s32[] constant(1)
  %next = s32[] add(%i.copy, %one)
  %x = f32[4,8]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %same = s32[] get-tuple-element(%p), index=2
  ROOT %out = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}, s32[]) tuple(%next, %x, %same)
}

%cond (q: (s32[], f32[4,8], s32[])) -> pred[] {
  %q = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}, s32[]) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  %n = s32[] constant(8)
  ROOT %lt = pred[] compare(%j, %n), direction=LT
}

ENTRY %main (x: f32[4,8]) -> f32[4,8] {
  %x.1 = f32[4,8]{1,0:T(8,128)} parameter(0), metadata={op_name="x"}
  %zero = s32[] constant(0)
  %zero.copy = s32[] copy(%zero)
  %start = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}, s32[]) tuple(%zero.copy, %x.1, \
%zero)
  %loop = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}, s32[]) while(%start), \
condition=%cond, body=%body
  ROOT %result = f32[4,8]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""
)


def loop_count(text: str) -> int | None:
    module = parse_module(text)
    return trip_count(module, module.entry.by_name["loop"], module.entry)


def test_shapes_have_their_bytes_and_their_memory():
    module = parse_module(
        HEADER
        + """
ENTRY %main (a: bf16[8,128]) -> bf16[8,128] {
  %a = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %start = (bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, bf16[8,128]{1,0:T(8,128)(2,1)}, \
/*index=2*/u32[]{:S(2)}) copy-start(%a)
  ROOT %done = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} copy-done(%start)
}
"""
    )
    target, source, context = module.entry.by_name["start"].shapes
    assert (target.memory_space, source.memory_space) == (1, HBM)
    assert source.num_bytes == 2 * 8 * 128
    assert (context.dtype, context.dims, context.num_bytes) == ("u32", (), 4)
    assert module.entry.root.operands == ("start",)


def test_a_kernel_with_line_breaks_in_its_attributes_is_one_instruction():
    module = parse_module(
        HEADER
        + """
ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %splash.7 = f32[8]{0} custom-call(%a), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="jit(step)/attention/pallas_call" stack_frame_id=3}
  ROOT %b = f32[8]{0} copy(%splash.7)
}
"""
    )
    kernel = module.entry.by_name["splash.7"]
    assert kernel.is_pallas
    assert kernel.op_name == "jit(step)/attention/pallas_call"
    assert module.entry.root.name == "b"


def test_a_computation_of_another_thread_ends_where_it_says_so():
    module = parse_module(
        HEADER
        + """
%gather (p: f32[8]) -> f32[8] {
  ROOT %p = f32[8]{0} parameter(0)
}, execution_thread="sparsecore"

ENTRY %main (a: f32[8]) -> f32[8] {
  ROOT %a = f32[8]{0} parameter(0)
}
"""
    )
    assert list(module.computations) == ["gather", "main"]


def test_attributes_are_read_with_their_brackets():
    module = parse_module(
        HEADER
        + """
ENTRY %main (a: f32[8]) -> f32[32] {
  %a = f32[8]{0} parameter(0)
  ROOT %g = f32[32]{0} all-gather(%a), channel_id=1, replica_groups={{0,1},{2,3}}, \
dimensions={0}, backend_config={"x":"a, b={"}
}
"""
    )
    texts = module.entry.root.attribute_texts
    assert texts["replica_groups"] == "{{0,1},{2,3}}"
    assert texts["channel_id"] == "1"
    assert texts["backend_config"] == '{"x":"a, b={"}'


def test_a_module_that_is_not_scheduled_is_refused():
    with pytest.raises(ValueError, match="not scheduled"):
        parse_module("HloModule step\n\nENTRY %main () -> f32[] {\n}\n")


def test_a_scan_runs_as_often_as_its_bounds_say():
    assert loop_count(SCAN) == 8


def test_the_compilers_own_count_comes_first():
    known = 'body=%body, backend_config={"known_trip_count":{"n":"5"}}'
    assert loop_count(SCAN.replace("body=%body", known)) == 5


def test_a_stride_that_the_compiler_moved_into_the_state_is_found():
    moved = SCAN.replace("add(%i.copy, %one)", "add(%i.copy, %same)").replace(
        "tuple(%zero.copy, %x.1, %zero)", "tuple(%zero.copy, %x.1, %two)"
    )
    moved = moved.replace("  %zero.copy", "  %two = s32[] constant(2)\n  %zero.copy")
    assert loop_count(moved) == 4


def test_a_condition_inside_a_fusion_is_read():
    fused = SCAN.replace(
        "  ROOT %lt = pred[] compare(%j, %n), direction=LT",
        "  ROOT %lt = pred[] fusion(%n, %j), kind=kLoop, calls=%compare",
    ).replace(
        "%cond (q",
        """%compare (a: s32[], b: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %gt = pred[] compare(%a, %b), direction=GT
}

%cond (q""",
    )
    assert loop_count(fused) == 8


def test_a_bound_that_depends_on_data_gives_no_count():
    from_data = SCAN.replace("  %n = s32[] constant(8)", "").replace(
        "compare(%j, %n)", "compare(%j, %k)"
    )
    from_data = from_data.replace(
        "  ROOT %lt", "  %k = s32[] get-tuple-element(%q), index=2\n  ROOT %lt"
    ).replace("  %zero = s32[] constant(0)", "  %zero = s32[] parameter(1)")
    assert loop_count(from_data) is None
