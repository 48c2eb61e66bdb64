# SPDX-License-Identifier: Apache-2.0
"""Whose dump times an operation, and what its scalar operands are."""

import numpy as np
import pytest

from benchmarks import maxtext_kernels
from pallas_kernels.hardware import TPUS
from pallas_kernels.schedule import UnknownValueError
from ring_jax.plan.dumps import Dumps
from ring_jax.plan.hlo import Instruction, Module, parse_module
from ring_jax.plan.kernel_scalars import our_kernels
from ring_jax.plan.op_cost import OpCosts

V5E = TPUS["TPU v5 lite"]
PROGRAM = """HloModule m, is_scheduled=true

%doubled (p: f32[4096,4096]) -> f32[4096,4096] {
  %p = f32[4096,4096]{1,0} parameter(0)
  ROOT %twice = f32[4096,4096]{1,0} add(%p, %p)
}

%doubled.clone (q: f32[4096,4096]) -> f32[4096,4096] {
  %q = f32[4096,4096]{1,0} parameter(0)
  ROOT %twice.1 = f32[4096,4096]{1,0} add(%q, %q), metadata={op_name="again"}
}

%squared (r: f32[4096,4096]) -> f32[4096,4096] {
  %r = f32[4096,4096]{1,0} parameter(0)
  ROOT %square = f32[4096,4096]{1,0} multiply(%r, %r)
}

ENTRY %main () -> f32[] {
  %x = f32[4096,4096]{1,0} parameter(0)
  %fusion.1 = f32[4096,4096]{1,0} fusion(%x), kind=kLoop, calls=%doubled
  %fusion.2 = f32[4096,4096]{1,0} fusion(%fusion.1), kind=kLoop, calls=%doubled.clone
  %fusion.3 = f32[4096,4096]{1,0} fusion(%fusion.2), kind=kLoop, calls=%squared
  %fusion.4 = f32[8,8]{1,0} fusion(%x), kind=kLoop, calls=%squared, \
backend_config={"window_config":{"estimated_cycles":"3006"}}
  ROOT %end = () tuple()
}
"""
OPERAND = "inlined_call_operand.<no memory space> [shape: s32[], index: 0, kind: input]"
# Bundles: one a cycle.
LONG = "".join(f"{hex(n):>6}   :  {{ %v1_v0 = vadd %v2_v1 }}\n" for n in range(1503))
BRANCH = f"""
   0x0   :  {{ %s1_s0 = {OPERAND} }}
   0x1   :  {{ %p1_p0 = scmp.gt.s32.totalorder %s1_s0, 0 }}
   0x2   :  {{ %1 = sbr.rel (%p1_p0) target = $region9 }}
"""
ON_VECTORS = """
   0x0   :  { %p1_p0 = scmp.gt.s32.totalorder %s1_s0, 0 }
   0x1   :  { %1 = sbr.rel (%p1_p0) target = $region9 }
"""


@pytest.fixture
def module() -> Module:
    return parse_module(PROGRAM)


def dumps(module: Module, tmp_path, **texts: str) -> Dumps:
    for name, text in texts.items():
        name = name.replace("_", ".")
        (tmp_path / f"1234-{name}-01-final_bundles.txt").write_text(text)
        (tmp_path / f"1234-{name}-00-schedule-analysis_final_bundles.txt").touch()
    return Dumps(module, tmp_path, V5E)


def seconds(found: Dumps, module: Module, name: str) -> float | None:
    path = found.find(module.entry.by_name[name], module.entry)
    return None if path is None else found.seconds(path)


def test_an_operation_that_differs_in_names_only_has_its_twins_dump(module, tmp_path):
    found = dumps(module, tmp_path, fusion_1=LONG)
    microsecond = 1503 / V5E.clock_hz
    assert seconds(found, module, "fusion.1") == pytest.approx(microsecond)
    assert seconds(found, module, "fusion.2") == pytest.approx(microsecond)
    assert seconds(found, module, "fusion.3") is None


def test_operands_that_nobody_knows_are_0(module, tmp_path):
    found = dumps(module, tmp_path, fusion_1=BRANCH)
    # With any other value the branch would lead to where the dump shows nothing.
    assert seconds(found, module, "fusion.1") == pytest.approx(3 / V5E.clock_hz)


def test_a_path_that_depends_on_vectors_has_no_time_however_often_asked(
    module, tmp_path
):
    found = dumps(module, tmp_path, fusion_1=ON_VECTORS)
    for _ in range(2):
        with pytest.raises(UnknownValueError, match=r"fusion\.1: .*vector data"):
            seconds(found, module, "fusion.1")


def cost(module: Module, found: Dumps | None, name: str, *, times: float = 1000.0):
    costs = OpCosts(module, V5E, found, lambda kernel, computation: None)
    return costs.cost(module.entry.by_name[name], module.entry, times=times)


def test_bundles_come_before_the_roofline(module, tmp_path):
    found = dumps(module, tmp_path, fusion_1=LONG)
    assert cost(module, found, "fusion.2").source == "bundles"
    roofline = cost(module, found, "fusion.3")
    assert roofline.source == "roofline"
    num_bytes = 2 * 4 * 4096**2
    assert roofline.seconds == pytest.approx(num_bytes / V5E.hbm_bytes_per_second)


def test_where_no_bundles_can_run_the_cost_says_why(module, tmp_path):
    found = dumps(module, tmp_path, fusion_1=ON_VECTORS)
    assert "vector data" in cost(module, found, "fusion.2").reason
    assert cost(module, found, "fusion.3").reason == (
        "fusion.3: its code was not dumped."
    )


def test_what_takes_next_to_nothing_has_the_compilers_own_figure(module, tmp_path):
    found = dumps(module, tmp_path, fusion_4="")
    small = cost(module, found, "fusion.4", times=1.0)
    assert small.source == "cycles"
    assert small.seconds == pytest.approx(3006 / V5E.clock_hz)


def kernel(
    name: str, *shapes: str, result: str | None = None
) -> tuple[Instruction, Module]:
    lines = [f"%a{n} = {shape} parameter({n})" for n, shape in enumerate(shapes)]
    operands = ", ".join(f"%a{n}" for n in range(len(shapes)))
    call = f"ROOT %{name} = {result or shapes[-1]} custom-call({operands})"
    body = "\n  ".join([*lines, f'{call}, custom_call_target="tpu_custom_call"'])
    text = "HloModule m, is_scheduled=true\n\nENTRY %main () -> f32[] {\n  "
    module = parse_module(f"{text}{body}\n}}\n")
    return module.entry.root, module


@pytest.mark.parametrize("name", ["forward.3", "keyvaluegradient.1"])
def test_attention_visits_the_blocks_below_the_diagonal(name):
    arrays = ("s32[2,1,4096]", "bf16[2,4,4,4096,128]", "bf16[1,2,4,4096,128]")
    call, module = kernel(f"packed_attention_{name}", *arrays)
    scalars = our_kernels("TPU v5p")(call, module.entry)
    assert scalars is not None
    # Of 8 x 8 blocks in each of two rows, 36 are on or below the diagonal.
    assert scalars[0].tolist() == [2 * 36]
    owner_J, other_J = scalars[1][:72], scalars[2][:72]
    later, earlier = (other_J, owner_J) if "key" in name else (owner_J, other_J)
    assert np.all(later % 8 >= earlier % 8)


def test_a_device_visits_its_share_of_a_row_that_is_split():
    # A row of 8 blocks over 4 devices: the first has blocks 0 and 7.
    arrays = ("s32[1,1,1024]", "bf16[1,4,4,1024,128]", "bf16[4,1,4,1024,128]")
    call, module = kernel("packed_attention_forward.1", *arrays)
    scalars = our_kernels("TPU v5p")(call, module.entry)
    assert scalars is not None
    assert scalars[0].tolist() == [1 + 8]


def test_expert_kernels_get_the_sizes_of_a_trained_router():
    call, module = kernel(
        "grouped_outer.2",
        "bf16[4096,256]{1,0}",
        "bf16[4096,512]{1,0}",
        "bf16[8,256,512]",
    )
    scalars = our_kernels("TPU v6 lite")(call, module.entry)
    assert scalars is not None
    # The groups' ends are among the leaves of the plan: all rows belong to a group.
    assert any(4096 in np.asarray(leaf).reshape(-1) for leaf in scalars.values())
    routed = our_kernels("TPU v6 lite", num_routed_rows=1024)(call, module.entry)
    assert routed is not None
    leaves = [np.asarray(leaf).reshape(-1) for leaf in routed.values()]
    assert any(1024 in leaf for leaf in leaves)
    assert not any(4096 in leaf for leaf in leaves)


def test_sums_of_a_token_s_rows_read_the_rows_that_are_used():
    # Five tiles of 128 tokens, on two cores: three tiles, and two.
    arrays = ("s32[6]", "s32[2]", "s32[5,128]", "s32[5,128]", "bf16[960,256]")
    call, module = kernel("segment_sum.3", *arrays, result="f32[640,256]")
    scalars = our_kernels("TPU v5p", num_routed_rows=640)(call, module.entry)
    assert scalars is not None
    assert scalars[0].tolist() == [0, 128, 256, 384, 512, 640]
    assert scalars[1].tolist() == [3, 2]
    scalars = our_kernels("TPU v5p")(call, module.entry)
    assert scalars is not None
    assert scalars[0][-1] == 960


def test_other_kernels_have_no_known_operands():
    call, module = kernel("somebody_elses.1", "f32[8]{0}")
    assert our_kernels("TPU v5p")(call, module.entry) is None


def test_megablox_visits_each_tile_once_for_each_group_in_it():
    # 768 rows a group in tiles of 512: a tile and a half each.
    scalars = maxtext_kernels.megablox_scalars(49_152, 64, 159)
    assert scalars[0].tolist() == [128]
    assert scalars[1][:3].tolist() == [0, 768, 1536]
    assert scalars[2][:4].tolist() == [0, 0, 1, 1]
    assert scalars[3][:4].tolist() == [0, 1, 1, 2]


def test_splash_masks_are_packed_four_rows_a_word():
    kinds = maxtext_kernels.splash_scalars(8, is_keys=False)[1].reshape(2, 128)
    rows = [
        [int(kinds[i // 4, j]) >> 8 * (i % 4) & 255 for j in range(8)] for i in range(8)
    ]
    assert rows[2] == [2, 2, 1, 0, 0, 0, 0, 0]
    assert np.count_nonzero(rows) == 36
