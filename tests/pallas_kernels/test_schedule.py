# SPDX-License-Identifier: Apache-2.0
"""The dumps' parser and the timeline, on bundle texts written for these tests."""

import dataclasses
import importlib.metadata

import numpy as np
import pytest

from pallas_kernels import hardware
from pallas_kernels.schedule import (
    CompileError,
    Kernel,
    UnknownValueError,
    Work,
    compile,
    compile_kernels,
    compiler_process,
    estimate,
)
from pallas_kernels.schedule.blocks import Blocks
from pallas_kernels.schedule.bundles import Matmul, parse_program
from pallas_kernels.schedule.timeline import DMA_LATENCY_SECONDS, GRANULE_BYTES, run

# Round numbers: a cycle is a microsecond, and HBM moves a granule in one.
TPU = dataclasses.replace(
    hardware.TPUS["TPU v6 lite"],
    clock_hz=1e6,
    hbm_bytes_per_second=GRANULE_BYTES * 1e6,
)
LATENCY_CYCLES = DMA_LATENCY_SECONDS * 1e6


def program_of(*bundles: str):
    """A program of one bundle a line; `@7` before one starts region 7."""
    lines = []
    for address, bundle in enumerate(bundles):
        region, _, body = bundle.rpartition("@")[2].partition(" ")
        start = f" /* Start region {region} */" if bundle.startswith("@") else ""
        body = body if bundle.startswith("@") else bundle
        lines.append(f"{hex(address):>6}   :  {{ {body} }}{start}")
    return parse_program("kernel", "\n".join(lines))


def time(*bundles: str, scalars=None, tpu=TPU, core=0):
    blocks = Blocks(
        program_of(*bundles),
        cycles_per_matmul=tpu.cycles_per_matmul,
        num_delay_slots=tpu.num_delay_slots,
    )
    return run(blocks, scalars or {}, tpu=tpu, core=core)


def cycles(*bundles: str, **kwargs) -> float:
    return time(*bundles, **kwargs).seconds * TPU.clock_hz


SCALAR = "%s1_s0 = inlined_call_operand.<no memory space> [shape: s32[], index: 0, \
kind: input]"
NOTHING = "%v1_v0 = vadd.s32 %v2_v1, %v3_v2"


def test_a_dump_without_bundles_is_refused_with_the_version_that_is_read():
    with pytest.raises(ValueError, match="libtpu .* 0.0.50"):
        parse_program("kernel", "LH: loop header\n")


def test_a_comment_may_be_broken_into_lines():
    program = parse_program("k", "0x0 : { %s1_s1 = smov 3 /* hlo:\n k\n */ }\n0x1 : {}")
    assert [len(bundle.instructions) for bundle in program.bundles] == [1, 0]


def test_a_bundle_is_split_into_what_time_depends_on():
    program = program_of(
        "%s1_s1 = smov 3  ;;  %9 = vmatmul.mubr.bf16.gmra.mxu1 %v1_v1  ;;  "
        "%v3_v3 = vpop.f32.mrf.mxu0  ;;  %8 = vst [vmem:[#allocation9_spill]] %v4_v4"
    )
    (bundle,) = program.bundles
    assert [instruction.opcode for instruction in bundle.instructions] == ["smov"]
    assert bundle.matmuls == (Matmul("mxu1", "packed"),)
    assert bundle.pops == ("mxu0",)
    assert program.num_spills == 1


def test_operands_in_scalar_memory_have_sizes():
    program = program_of(
        SCALAR,
        "%s2_s1 = inlined_call_operand.vmem [shape: s32[3,4], index: 1, kind: input]",
        "%s3_s2 = inlined_call_operand.hbm [shape: bf16[8,128], index: 2, kind: input]",
    )
    assert program.scalar_sizes == {0: 1, 1: 12}


def test_every_bundle_takes_a_cycle():
    assert cycles(NOTHING, NOTHING, "") == pytest.approx(3)


BRANCH = [
    SCALAR,
    "%p1_p0 = scmp.gt.s32.totalorder %s1_s0, 0",
    "%1 = sbr.rel (%p1_p0) target = $region2",
    *["%s9_s9 = sadd.s32 %s9_s9, 1"] * 6,
    f"@2 {NOTHING}",
]


@pytest.mark.parametrize(("value", "expected"), [(1, 3 + 4 + 1), (0, 3 + 6 + 1)])
def test_a_branch_taken_still_runs_its_four_delay_slots(value, expected):
    assert cycles(*BRANCH, scalars={0: np.array(value)}) == pytest.approx(expected)


def test_a_branch_of_tpu7x_runs_six_delay_slots():
    # What a loop carries on is computed there.
    tpu = dataclasses.replace(TPU, num_delay_slots=6)
    bundles = ["%1 = sbr.rel target = $region2", *[""] * 8, "@2 "]
    assert cycles(*bundles, tpu=tpu) == pytest.approx(1 + 6 + 1)


def test_a_region_that_starts_sooner_ends_the_delay_slots():
    bundles = ["%1 = sbr.rel target = $region2", "", "@1 ", "", "@2 "]
    assert cycles(*bundles) == pytest.approx(3)


LOOP = [
    SCALAR,
    "%s2_s1 = smov 0",
    "@1 %s3_s1 = sphi %s2_s1, %s4_s1",
    "%s4_s1 = sadd.s32 1, %s3_s1",
    "%p1_p0 = scmp.lt.s32.totalorder %s4_s1, %s1_s0",
    "%1 = sbr.rel (%p1_p0) target = $region1",
    *[""] * 4,
]


@pytest.mark.parametrize("num_times", [1, 5])
def test_a_merge_takes_the_definition_of_the_edge_just_taken(num_times):
    expected = 2 + 8 * num_times
    assert cycles(*LOOP, scalars={0: np.array(num_times)}) == pytest.approx(expected)


def test_a_loop_without_end_is_refused(monkeypatch):
    monkeypatch.setattr("pallas_kernels.schedule.timeline.MAX_BLOCKS_RUN", 100)
    with pytest.raises(UnknownValueError, match="no end after 101 blocks"):
        cycles(*LOOP, scalars={0: np.array(10**6)})


def test_a_loop_may_take_long_if_it_turns_seldom():
    num_bundles, num_times = 10_000, 3_000
    long = [*LOOP[:4], *[NOTHING] * num_bundles, *LOOP[4:]]
    expected = 2 + num_times * (8 + num_bundles)
    assert cycles(*long, scalars={0: np.array(num_times)}) == pytest.approx(expected)


def test_a_branch_on_an_operand_that_is_not_given_is_refused():
    with pytest.raises(UnknownValueError, match=r"do not determine.*sbr\.rel"):
        cycles(*BRANCH)


def test_a_branch_to_where_the_dump_shows_nothing_is_refused():
    with pytest.raises(UnknownValueError, match="region 9"):
        cycles("%1 = sbr.rel target = $region9")


def dma(num_granules: int, *, predicate: str = "", flag: int = 0) -> str:
    return (
        f"%1 = dma.hbm_to_vmem {predicate}/*hbm=*/[#allocation8], "
        f"/*size_in_granules=*/{num_granules}, /*vmem=*/[#allocation9], "
        f"/*dst_syncflagno=*/[#allocation7 + ${hex(flag)}]"
    )


def wait(num_granules: int, *, flag: int = 0) -> str:
    return f"%2 = dma.done.wait [#allocation7 + ${hex(flag)}], {num_granules}"


def test_a_wait_stalls_until_its_dma_has_arrived():
    line = time(dma(100), *[NOTHING] * 9, wait(100), NOTHING)
    assert line.seconds * 1e6 == pytest.approx(100 + LATENCY_CYCLES + 2)
    assert line.compute_seconds * 1e6 == pytest.approx(12)
    assert (line.hbm_bytes, line.num_dmas) == (100 * GRANULE_BYTES, 1)


SHARED = [
    # A semaphore of two cores, as a DMA names it: this core's in the lower 16 bits, in
    # the upper ones the same with a mask of cores.
    "%s1_s0 = sor.u32 [#allocation7], 24576",
    "%s2_s1 = sshll.u32 %s1_s0, 16",
    "%s3_s2 = sor.u32 [#allocation7], %s2_s1",
    dma(100).replace("/*dst_syncflagno=*/[#allocation7 + $0x0]", "%s3_s2"),
]


def test_a_dma_may_signal_the_semaphores_of_several_cores():
    line = time(*SHARED, wait(100))
    assert line.seconds * 1e6 == pytest.approx(3 + 100 + LATENCY_CYCLES + 1)


def test_what_another_core_fetches_arrives_with_this_cores_share():
    line = time(*SHARED, wait(200))
    assert line.seconds * 1e6 == pytest.approx(3 + 100 + LATENCY_CYCLES + 1)


def test_a_wait_for_what_is_there_costs_a_bundle():
    bundles = [dma(10), *[NOTHING] * 19, wait(10), NOTHING]
    assert cycles(*bundles) == pytest.approx(len(bundles))


def test_dmas_share_one_queue():
    expected = 150 + LATENCY_CYCLES + 1
    assert cycles(dma(100), dma(50, flag=1), wait(50, flag=1)) == pytest.approx(
        expected
    )


def test_the_cores_share_the_bandwidth():
    two = dataclasses.replace(TPU, num_cores=2)
    expected = 200 + LATENCY_CYCLES + 1
    assert cycles(dma(100), wait(100), tpu=two) == pytest.approx(expected)


def test_what_was_waited_for_is_not_there_a_second_time():
    taken = "%3 = vsyncadd [#allocation7], 4294967196"  # -100
    with pytest.raises(UnknownValueError, match="DMAs bring 0"):
        cycles(dma(100), wait(100), taken, wait(100))


@pytest.mark.parametrize(("value", "num_dmas"), [(0, 0), (1, 1)])
def test_a_predicate_skips_an_instruction(value, num_dmas):
    line = time(
        SCALAR,
        "%p1_p0 = scmp.eq.s32.totalorder %s1_s0, 0",
        dma(10, predicate="(!%p1_p0), "),
        scalars={0: np.array(value)},
    )
    assert line.num_dmas == num_dmas


def test_a_choice_takes_the_last_value_if_its_predicate_holds():
    bundles = [
        SCALAR,
        "%p1_p0 = scmp.eq.s32.totalorder %s1_s0, 0",
        "%s2_s1 = smov (%p1_p0), 10, 20",
        dma(1).replace("/*size_in_granules=*/1", "%s2_s1"),
    ]
    for value, granules in ((0, 20), (1, 10)):
        line = time(*bundles, scalars={0: np.array(value)})
        assert line.hbm_bytes == granules * GRANULE_BYTES


def test_moves_of_newer_compilers_are_read():
    choice = "%s2_s1 = smov.u32 (%p1_p0), 10, 20"
    line = time(
        SCALAR,
        "%p1_p0 = scmp.eq.s32.totalorder %s1_s0, 0",
        choice,
        dma(1).replace("/*size_in_granules=*/1", "%s2_s1"),
        scalars={0: np.array(0)},
    )
    assert line.hbm_bytes == 20 * GRANULE_BYTES


def test_a_dma_of_unknown_size_is_refused():
    with pytest.raises(UnknownValueError, match="vector data"):
        cycles(SCALAR, dma(1).replace("/*size_in_granules=*/1", "%s1_s0"))


@pytest.mark.parametrize(("memory", "shift"), [("vmem", 4), ("vmem", 0), ("hbm", 0)])
def test_an_operand_copied_to_scalar_memory_is_read_from_there(memory, shift):
    line = time(
        f"%s0_s0 = inlined_call_operand.{memory} [shape: s32[3], index: 0, kind: "
        "input]",
        # DMAs take addresses of VMEM in smaller units.
        f"%s1_s0 = sshll.u32 %s0_s0, {shift}",
        f"%2 = dma.{memory}_to_smem %s1_s0, 16, [#allocation4], [#allocation1]",
        "%3 = dma.done.wait [#allocation1], 16",
        "%s2_s1 = sld [smem:[#allocation4 + $0x2]]",
        dma(1).replace("/*size_in_granules=*/1", "%s2_s1"),
        scalars={0: np.array([5, 6, 7])},
    )
    assert line.hbm_bytes == 7 * GRANULE_BYTES


def test_a_core_knows_its_number():
    bundles = [
        "%s1_s0 = sld [smem:[#allocation0]] /* core id */",
        dma(1).replace("/*size_in_granules=*/1", "%s1_s0"),
    ]
    assert [time(*bundles, core=core).hbm_bytes for core in (0, 1)] == [0, 32]


@pytest.mark.parametrize(
    ("kind", "expected"), [("DivAndRem", 3 * 32), ("kRem", 2 * 32), ("kDiv", 3 * 32)]
)
def test_a_division_queues_its_results(kind, expected):
    line = time(
        f"%4 = sdivrem.u32 17, 5 /* {kind} */",
        "%s1_s0 = spop.drf %4",
        dma(1).replace("/*size_in_granules=*/1", "%s1_s0"),
    )
    assert line.hbm_bytes == expected


MATMUL = "%v1 = vmatmul.mubr.bf16.gmra.mxu0 %v2_v2"
POP = "%v3 = vpop.f32.mrf.mxu0"


def test_a_result_is_taken_out_when_its_matmul_is_done():
    pace = TPU.cycles_per_matmul
    assert cycles(MATMUL, POP) == pytest.approx(pace + 1)


def test_a_matrix_unit_serves_in_order():
    pace = TPU.cycles_per_matmul
    assert cycles(MATMUL, MATMUL, MATMUL, POP, POP, POP) == pytest.approx(3 * pace + 1)


def test_latched_rows_are_half_as_many_and_come_out_at_once():
    pace = TPU.cycles_per_matmul
    latched = "%v1 = vmatmul.lmr.bf16.gmra.16.mxu0"
    # Two latched matmuls are the rows of one packed, whose result has two parts.
    bundles = [MATMUL, latched, latched, POP, POP, POP, POP]
    program = program_of(*bundles)
    block = Blocks(program, cycles_per_matmul=pace, num_delay_slots=4).at(0)
    first, other = pace, pace + pace // 2
    assert block.issue_cycle[3:] == (first, first + 1, other, 2 * pace)


def test_rows_of_float32_come_out_in_one_part():
    pace = TPU.cycles_per_matmul
    program = program_of(MATMUL.replace("bf16", "f32"), MATMUL, POP, POP, POP)
    block = Blocks(program, cycles_per_matmul=pace, num_delay_slots=4).at(0)
    assert block.issue_cycle[2:] == (pace, 2 * pace, 2 * pace + 1)


def test_two_matrix_units_serve_at_once():
    pace = TPU.cycles_per_matmul
    bundle = f"{MATMUL}  ;;  {MATMUL.replace('mxu0', 'mxu1')}"
    pops = f"{POP}  ;;  {POP.replace('mxu0', 'mxu1')}"
    assert cycles(bundle, pops) == pytest.approx(pace + 1)


def test_a_buffered_result_waits_for_its_own_place():
    pace = TPU.cycles_per_matmul
    first, second = (
        f"%9 = vmatmul.mubr.bf16.gmra.mrb[{place}].mxu0 %v2_v2" for place in (0, 1)
    )
    pop = "%v3 = vpop.f32.mrb[0].mxu0"
    program = program_of(first, second, pop, pop)
    block = Blocks(program, cycles_per_matmul=pace, num_delay_slots=4).at(0)
    assert block.issue_cycle[2:] == (pace, pace + 1)


def test_a_block_ends_with_idle_matrix_units():
    assert cycles(MATMUL, MATMUL) == pytest.approx(2 * TPU.cycles_per_matmul)


def test_the_hot_block_is_the_one_with_most_matmuls():
    back = "%1 = sbr.rel target = $region2"
    program = program_of(MATMUL, POP, f"@2 {MATMUL}", MATMUL, POP, POP, back)
    block = Blocks(program, cycles_per_matmul=8, num_delay_slots=4).hottest()
    assert (block.first, block.num_bundles, block.num_matmuls) == (2, 5, 2)
    assert block.cycles == 2 * 8 + 2


@pytest.mark.parametrize(
    ("scalars", "message"),
    [({0: np.zeros(2)}, "0 has 1 i32 values, and 2"), ({1: np.zeros(1)}, "1 has no")],
)
def test_operands_that_the_kernel_does_not_have_are_refused(scalars, message):
    kernel = Kernel(program_of(SCALAR), TPU, vmem_bytes=0)
    with pytest.raises(ValueError, match=message):
        estimate(kernel, scalars, work=Work(1.0, 1.0))


def test_shares_are_of_what_the_slowest_core_takes():
    two = dataclasses.replace(TPU, num_cores=2)
    kernel = Kernel(
        program_of(
            "%s1_s0 = sld [smem:[#allocation0]] /* core id */",
            dma(1).replace("/*size_in_granules=*/1", "%s1_s0"),
            wait(1).replace(", 1", ", %s1_s0"),
        ),
        two,
        vmem_bytes=0,
    )
    work = Work(flops=two.flops_per_second * 1e-6, num_bytes=GRANULE_BYTES)
    result = estimate(kernel, {}, work=work)
    expected = (2 + 1 + LATENCY_CYCLES + 1) * 1e-6
    assert result.seconds == pytest.approx(expected)
    assert result.compute_seconds == pytest.approx(3e-6)
    assert result.hbm_bytes == GRANULE_BYTES
    assert result.num_busy_cores == 0
    assert result.share_of_peak == pytest.approx(1e-6 / expected)
    assert result.share_of_roofline == pytest.approx(1e-6 / expected)


def test_an_unknown_chip_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match="v5e.*tpu7x"):
        compile_kernels(np.sum, chip="v3")


def test_an_interpreter_that_is_not_there_is_named():
    with pytest.raises(CompileError, match="no-such-python"):
        compile_kernels(np.sum, chip="v6e", python="no-such-python")


def test_a_missing_compiler_is_named_with_its_package(monkeypatch):
    def find_nothing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", find_nothing)
    with pytest.raises(ModuleNotFoundError, match="pip install libtpu"):
        compiler_process.main()


HLO = """HloModule jit_f

%fused (p: f32[1048576]) -> f32[1048576] {
  ROOT %inner = f32[1048576]{0} copy(%p)
}

ENTRY %main (x: bf16[64,2048,1408], s: s32[64]) -> bf16[8] {
  %x = bf16[64,2048,1408]{2,1,0} parameter(0)
  %copy.1 = bf16[64,2048,1408]{1,2,0} copy(%x), metadata={op_name="x"}
  %small = s32[64]{0} fusion(%s), kind=kLoop, calls=%fused
  ROOT %gmm.1 = bf16[49152,1408]{1,0} custom-call(%x), \
custom_call_target="tpu_custom_call", backend_config={"used_scoped_memory_configs":[\
{"memory_space":"1","offset":"0","size":"4096"}]}
}
"""


def test_the_program_names_its_kernels_and_the_large_operations_around_them(tmp_path):
    dump = tmp_path / "17-gmm.1-72-final_bundles.txt"
    dump.write_text("   0   :  { %s1_s1 = smov 3 }\n")
    (tmp_path / "17-gmm.1-71-schedule-analysis_final_bundles.txt").write_text("1\n")
    (kernel,) = compile.read_kernels(HLO, tmp_path, TPU)
    assert (kernel.name, kernel.num_bundles, kernel.vmem_bytes) == ("gmm.1", 1, 4096)
    assert compile.large_ops(HLO) == ["copy.1 bf16[64,2048,1408]"]
    dump.unlink()
    with pytest.raises(CompileError, match=r"no final bundles of gmm\.1"):
        compile.read_kernels(HLO, tmp_path, TPU)
