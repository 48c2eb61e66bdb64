# SPDX-License-Identifier: Apache-2.0
"""The schedule of real kernels, by the TPU's own compiler; needs the extra [tpu]."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.tpu_contestants import (
    LAYER,
    PASSES,
    Contestant,
    Pass,
    Shape,
    ours,
    ours_in_layer,
)
from benchmarks.tpu_grouped_matmul import (
    MAX_RESIDUAL,
    SIMULATED,
    Task,
    calibration_task,
    group_sizes,
    residual_of,
    run_task,
)
from pallas_kernels.attention import packed_attention
from pallas_kernels.attention.flash import Spans
from pallas_kernels.attention.tpu import BLOCK, plan_visits
from pallas_kernels.schedule import (
    CHIPS,
    CompileError,
    Work,
    compile_kernels,
    estimate,
)

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "schedule"
TOLERANCE = 0.01
PROJECTION = Shape(49_152, 2048, 1408)

pytestmark = pytest.mark.aot


def test_a_megablox_kernel_takes_the_time_that_another_simulator_gives():
    (reference,) = (row for row in SIMULATED if row.chip == "v6e")
    outcome = run_task(calibration_task(reference))
    assert outcome.reason is None
    assert abs(residual_of(reference, outcome)) < MAX_RESIDUAL


def test_our_kernel_moves_every_byte_once_and_stays_below_the_roofline():
    contestant = ours(PROJECTION, "forward", "v6e")
    compilation = compile_kernels(contestant.fn, *contestant.arguments, chip="v6e")
    (kernel,) = compilation.kernels
    work = PROJECTION.work()
    scalars = contestant.bind(kernel, group_sizes("zipf", PROJECTION))
    result = estimate(kernel, scalars, work=work)
    # Tiles begin at multiples of 16 rows, so that some rows are read twice.
    assert work.num_bytes <= result.hbm_bytes < 1.02 * work.num_bytes
    assert 0.3 < result.share_of_roofline < 1
    with pytest.raises(ValueError, match="Plan for the rows"):
        estimate(kernel, {0: scalars[0][:-1]}, work=work)


def test_attention_on_a_long_row_reads_its_visits_from_vmem_and_makes_all_of_them():
    # XLA works the list of visits out in VMEM; a core runs 23 million bundles.
    T, G, K, H = 65_536, 2, 2, 128
    query, key = (
        jax.ShapeDtypeStruct((1, T, num_heads, H), jnp.bfloat16)
        for num_heads in (G * K, K)
    )
    segments = jax.ShapeDtypeStruct((1, T), jnp.int32)
    (kernel,) = compile_kernels(
        packed_attention, query, key, key, segments, chip="v5p"
    ).kernels
    texts = [i.text for bundle in kernel.program.bundles for i in bundle.instructions]
    (visits,) = (text for text in texts if "index: 1," in text)
    assert "inlined_call_operand.vmem" in visits
    num_blocks = T // BLOCK
    for document, num_visits in (
        (T, num_blocks * (num_blocks + 1) // 2),
        (BLOCK, num_blocks),
    ):
        scalars = visit_scalars(T, document)
        assert scalars[0] == num_visits
        cores = estimate(kernel, scalars, work=Work(1.0, 1.0)).cores
        # In products of 16 x 128 by 128 x 128, twice as many halves of the second.
        scores, mixed = BLOCK // 16 * (BLOCK // 128), 2 * H // 16 * (BLOCK // 128) ** 2
        num_matmuls = num_visits * G * K * (scores + mixed)
        assert sum(core.num_matmuls for core in cores) == num_matmuls


def visit_scalars(num_positions: int, document: int) -> dict[int, np.ndarray]:
    """The scalar operands of attention on a row of documents of one length."""
    position_T = np.arange(num_positions, dtype=np.int32)
    blocks_J = position_T[::BLOCK]
    start_BT = jnp.asarray(position_T // document * document)[None]
    visits, num_visits = plan_visits(
        Spans(start_BT, blocks_J, blocks_J), owned_by="query"
    )
    leaves = (num_visits, *jax.tree.leaves(visits))
    return dict(enumerate(np.asarray(leaf).reshape(-1) for leaf in leaves))


def test_a_program_that_does_not_compile_is_told_in_a_sentence():
    with pytest.raises(CompileError, match="TypeError"):
        compile_kernels(sorted, chip="v6e")


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
def test_compiled_kernels_stay_within_their_budgets(chip, request):
    found = budgets(chip)
    path = GOLDEN / f"{chip}.json"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    golden = json.loads(path.read_text(encoding="utf-8"))
    assert found["libtpu"] == golden["libtpu"], "renew with pytest --update-golden"
    for kernel, figures in golden["kernels"].items():
        assert found["kernels"][kernel] == pytest.approx(figures, rel=TOLERANCE)


def budgets(chip: str) -> dict:
    """Bundles, spills and VMEM of our kernels, which the compiler's version sets."""
    contestants: list[tuple[str, Pass, Contestant]] = [
        *(("projection", pass_, ours(PROJECTION, pass_, chip)) for pass_ in PASSES),
        *((row, pass_, ours_in_layer(row, pass_, chip)) for row, pass_ in LAYER),
    ]
    outcomes = {
        f"{row} {pass_}": run_task(Task(chip, row, pass_, PROJECTION, contestant, ()))
        for row, pass_, contestant in contestants
    }
    versions, kernels = set(), {}
    for name, outcome in outcomes.items():
        kernel, compilation = outcome.kernel, outcome.compilation
        assert kernel is not None and compilation is not None, outcome.reason
        versions.add(compilation.libtpu_version)
        kernels[name] = {
            "bundles": kernel.num_bundles,
            "hot_block_bundles": kernel.hot_block.num_bundles,
            "spills": kernel.num_spills,
            "vmem_bytes": kernel.vmem_bytes,
        }
    return {"libtpu": versions.pop(), "kernels": kernels}
