# SPDX-License-Identifier: Apache-2.0
"""The schedule of real kernels, by the TPU's own compiler; needs the extra [tpu]."""

import json
import pathlib

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
from pallas_kernels.schedule import CHIPS, CompileError, compile_kernels, estimate

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
