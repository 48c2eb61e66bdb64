# SPDX-License-Identifier: Apache-2.0
"""Grouped products on TPUs that are not there: time by the real compiler's schedule.

    python -m benchmarks.tpu_grouped_matmul
    python -m benchmarks.tpu_grouped_matmul --chips=v6e --kernels=ours,megablox
    python -m benchmarks.tpu_grouped_matmul --tokamax-python=TOKAMAX_ENV/bin/python

Estimated, not measured (`pallas_kernels/schedule`): kernels are compiled ahead of time
and their schedules run on group sizes. Only the kernel of each product counts; what XLA
does around it is named where it is large. 64 experts, width 2048, expert width 1408,
bfloat16. The bound is max(FLOPs / peak, bytes / bandwidth of HBM), operands and result
once each.

Before it judges, it gives the time of megablox kernels that another simulator of such
dumps gave, and the medians that tokamax measured on v5e; if the former are out by more
than 5 %, nothing else is printed. Needs libtpu 0.0.50 (the extra `tpu`).
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import sys
from collections.abc import Iterable, Sequence

import numpy as np

from benchmarks.conditions import conditions
from benchmarks.tpu_contestants import (
    PASSES,
    Contestant,
    Pass,
    Shape,
    Tiling,
    megablox_product,
    ours,
    ours_in_layer,
    ragged_dot,
    tokamax_v1,
    tokamax_v2,
)
from pallas_kernels.schedule import (
    CHIPS,
    Compilation,
    CompileError,
    Estimate,
    Kernel,
    UnknownValueError,
    compile_kernels,
    estimate,
    zipf_sizes,
)

MODEL_DIM, EXPERT_DIM = 2048, 1408
ROWS = (49_152, 196_608)
FIRST_ROW = f"projection, R = {ROWS[0]:,}"
EXPERTS_PER_TOKEN = 6
KERNELS = ("ours", "megablox", "ragged_dot", "tokamax")
GROUPS = ("zipf", "even", "multinomial")
HEADLINE = "zipf"
MAX_RESIDUAL = 0.05


@dataclasses.dataclass(frozen=True)
class Reference:
    """A time that somebody else gives for a megablox kernel."""

    chip: str
    pass_: Pass
    shape: Shape
    tiling: Tiling
    groups: str
    microseconds: float
    is_measured: bool = False


def projection(num_rows: int = ROWS[0]) -> Shape:
    """Returns the shape of one of gate, up."""
    return Shape(num_rows, MODEL_DIM, EXPERT_DIM)


# Ling-lite's expert layer: gate and up side by side.
LAYER = {
    "gate+up": Shape(ROWS[0], MODEL_DIM, 2 * EXPERT_DIM),
    "down": Shape(ROWS[0], EXPERT_DIM, MODEL_DIM),
}

# Another simulator of the same compiler's dumps (libtpu 0.0.52), Zipf shares.
SIMULATED = (
    Reference("v5e", "forward", projection(), Tiling(256, 2048, 1408), "zipf", 1945),
    Reference("v5p", "forward", projection(), Tiling(256, 2048, 768), "zipf", 922),
    Reference("v6e", "forward", projection(), Tiling(256, 2048, 1408), "zipf", 666),
    Reference("tpu7x", "forward", projection(), Tiling(256, 2048, 1408), "zipf", 416),
)
# Medians on a TPU v5e that tokamax 0.0.17 keeps (data/autotuning/tpu_v5_lite), of its
# first version, with the tilings and group sizes kept there.
MEASURED = (
    Reference(
        "v5e",
        "forward",
        Shape(131_072, 2048, 768, num_experts=128),
        Tiling(256, 2048, 768),
        "tokamax",
        2829,
        is_measured=True,
    ),
    Reference(
        "v5e",
        "forward",
        Shape(131_072, 4096, 1536, num_experts=128),
        Tiling(128, 4096, 768),
        "tokamax",
        10_932,
        is_measured=True,
    ),
    Reference(
        "v5e",
        "dlhs",
        Shape(131_072, 4096, 1536, num_experts=128),
        Tiling(512, 1536, 1024),
        "tokamax",
        12_530,
        is_measured=True,
    ),
    Reference(
        "v5e",
        "drhs",
        Shape(131_072, 4096, 1536, num_experts=128),
        Tiling(256, 1024, 1536),
        "tokamax",
        12_744,
        is_measured=True,
    ),
)
# fmt: off
TOKAMAX_SIZES = (
    1281, 1596, 1345, 1216, 945, 1441, 976, 1990, 2151, 856, 1767, 1180, 1268, 2066,
    158, 194, 45, 1858, 1737, 0, 2184, 0, 1030, 1742, 264, 1428, 320, 2108, 1164, 925,
    590, 1728, 1018, 1268, 41, 1378, 0, 1377, 2106, 1522, 802, 975, 1557, 134, 1488,
    1497, 469, 287, 704, 0, 1272, 979, 2206, 227, 466, 360, 0, 565, 1041, 545, 354, 246,
    1465, 308, 438, 0, 1832, 216, 1870, 214, 2179, 1046, 2180, 1350, 1650, 87, 631, 268,
    661, 265, 709, 924, 0, 1545, 1264, 592, 1168, 209, 1285, 2074, 711, 1489, 294, 1599,
    646, 408, 1309, 0, 1850, 10, 0, 602, 1641, 2148, 555, 1286, 1321, 1277, 498, 2126,
    998, 1889, 1561, 664, 1816, 885, 1967, 1297, 1968, 1546, 1619, 1119, 2134, 0, 946,
    1353, 0, 673,
)
# fmt: on

# The fastest of some ten that were tried with Zipf shares, the best first; a second one
# where it is better for even groups. On two cores the result's width is cut in two.
MEGABLOX_TILINGS: dict[str, dict[Pass, tuple[Tiling, ...]]] = {
    "v5e": {
        "forward": (Tiling(128, 2048, 1408), Tiling(256, 2048, 1408)),
        "dlhs": (Tiling(128, 1408, 2048), Tiling(256, 1408, 2048)),
        "drhs": (Tiling(256, 2048, 1408, needs_more_vmem=True),),
    },
    "v5p": {
        "forward": (Tiling(128, 2048, 768), Tiling(256, 2048, 768)),
        "dlhs": (Tiling(128, 1408, 1024), Tiling(256, 1408, 1024)),
        "drhs": (Tiling(256, 2048, 768),),
    },
    "v6e": {
        "forward": (Tiling(512, 2048, 1408), Tiling(256, 2048, 1408)),
        "dlhs": (Tiling(256, 1408, 2048), Tiling(512, 1408, 2048)),
        "drhs": (Tiling(256, 2048, 1408),),
    },
    "tpu7x": {
        "forward": (Tiling(256, 2048, 1408),),
        "dlhs": (Tiling(256, 1408, 2048),),
        "drhs": (Tiling(256, 2048, 1408),),
    },
}


@dataclasses.dataclass(frozen=True)
class Task:
    """A kernel to compile and to run on group sizes."""

    chip: str
    row: str
    pass_: Pass
    shape: Shape
    contestant: Contestant
    groups: tuple[str, ...] = GROUPS


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a task: a kernel and its times, or the reason there are none."""

    task: Task
    kernel: Kernel | None = None
    compilation: Compilation | None = None
    estimates: dict[str, Estimate] = dataclasses.field(default_factory=dict)
    reason: str | None = None


def main() -> None:
    """Calibrates, compiles, prints tables and last one JSON line."""
    flags = parse_flags()
    run_all = functools.partial(run_tasks, jobs=flags.jobs)
    references = [
        reference
        for reference in (*SIMULATED, *MEASURED)
        if reference.chip in flags.chips
    ]
    checked = run_all([calibration_task(reference) for reference in references])
    residuals = print_calibration(references, checked)
    if any(abs(residual) > MAX_RESIDUAL for residual in residuals):
        sys.exit(
            "A calibration row is out by more than 5 %: this compiler's dumps are not "
            "what the model was made for, and no figure of ours is given."
        )
    outcomes = run_all([task for chip in flags.chips for task in tasks(chip, flags)])
    print_rows(outcomes)
    print_layers(outcomes)
    print_programs(outcomes)
    print(json.dumps(summary(references, checked, outcomes)))


def parse_flags() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chips", type=names_of(CHIPS), default=[*CHIPS])
    parser.add_argument("--kernels", type=names_of(KERNELS), default=[*KERNELS])
    parser.add_argument("--tokamax-python", help="of an environment with tokamax")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    return parser.parse_args()


def names_of(known: Iterable[str]):
    """Returns a parser of comma-separated names."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"{unknown} not in {[*known]}")
        return names

    return parse


def tasks(chip: str, flags: argparse.Namespace) -> list[Task]:
    """Lists what a chip's table needs; the large R for the single projection only."""
    shapes = {f"projection, R = {rows:,}": projection(rows) for rows in ROWS} | LAYER
    return [
        Task(chip, row, pass_, shape, contestant)
        for row, shape in shapes.items()
        for pass_ in PASSES
        for contestant in contestants(row, shape, pass_, chip, flags)
    ]


def contestants(
    row: str, shape: Shape, pass_: Pass, chip: str, flags: argparse.Namespace
) -> list[Contestant]:
    """Returns ours, and the peers asked for; in the layer's rows those that it needs.

    Megablox has no rows of gate and up: as peers use it, they are two projections.
    """
    is_alone = row not in LAYER
    found, tilings = [], megablox_tilings(chip, row, pass_)
    if "ours" in flags.kernels:
        found.append(
            ours(shape, pass_, chip) if is_alone else ours_in_layer(row, pass_, chip)
        )
    if "megablox" in flags.kernels:
        found += [megablox_product(shape, pass_, tiling) for tiling in tilings]
    if "ragged_dot" in flags.kernels and is_alone:
        found.append(ragged_dot(shape, pass_))
    # Its second version takes half a minute to compile.
    has_tokamax = "tokamax" in flags.kernels and flags.tokamax_python
    if has_tokamax and shape == projection():
        python = flags.tokamax_python
        found.append(tokamax_v1(shape, pass_, tilings[0], python=python))
        found.append(tokamax_v2(shape, pass_, python=python))
    return found


def megablox_tilings(chip: str, row: str, pass_: Pass) -> tuple[Tiling, ...]:
    """Returns the best for a row's shape; the down projection is gate's transposed."""
    if row == "gate+up":
        return ()
    of_gate = MEGABLOX_TILINGS[chip]
    if row != "down":
        return of_gate[pass_]
    if pass_ == "drhs":
        return tuple(
            dataclasses.replace(
                tiling, width_in=EXPERT_DIM, width_out=of_gate["dlhs"][0].width_out
            )
            for tiling in of_gate["drhs"]
        )
    return of_gate["dlhs" if pass_ == "forward" else "forward"]


def calibration_task(reference: Reference) -> Task:
    """Returns the task whose time the reference gives."""
    shape, pass_ = reference.shape, reference.pass_
    contestant = megablox_product(shape, pass_, reference.tiling)
    groups = (reference.groups,)
    return Task(reference.chip, "calibration", pass_, shape, contestant, groups)


def run_tasks(tasks: Sequence[Task], *, jobs: int) -> list[Outcome]:
    """Compiles and runs, a few at a time; says so as it goes."""
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        outcomes = []
        for outcome in pool.map(run_task, tasks):
            print(progress(outcome), file=sys.stderr, flush=True)
            outcomes.append(outcome)
    return outcomes


def run_task(task: Task) -> Outcome:
    """Compiles the kernel and estimates its time for each list of group sizes."""
    contestant = task.contestant
    try:
        compilation = compile_kernels(
            contestant.fn,
            *contestant.arguments,
            chip=task.chip,
            compiler_options=contestant.options,
            python=contestant.python or sys.executable,
        )
        kernel = max(
            compilation.kernels, key=lambda kernel: kernel.hot_block.num_matmuls
        )
        estimates = {
            groups: estimate(
                kernel,
                contestant.bind(kernel, group_sizes(groups, task.shape)),
                work=contestant.work,
            )
            for groups in task.groups
        }
    except (CompileError, UnknownValueError, ValueError) as error:
        return Outcome(task, reason=str(error))
    return Outcome(task, kernel, compilation, estimates)


def group_sizes(groups: str, shape: Shape) -> np.ndarray:
    """Returns rows by expert; always the same."""
    R, E = shape.num_rows, shape.num_experts
    match groups:
        case "tokamax":
            return np.array(TOKAMAX_SIZES)
        case "even":
            return np.full(E, R // E)
        case "multinomial":
            return np.random.default_rng(0).multinomial(R, np.full(E, 1 / E))
        case _:
            return zipf_sizes(R, E)


def progress(outcome: Outcome) -> str:
    """Says in a line what became of a task."""
    task = outcome.task
    what = f"{task.chip} {task.row} {task.pass_} {task.contestant.name}"
    if outcome.compilation is None:
        return f"{what}: {outcome.reason}"
    times = ", ".join(
        f"{groups} {1e6 * value.seconds:.0f} us"
        for groups, value in outcome.estimates.items()
    )
    return f"{what}: compiled in {outcome.compilation.seconds:.0f} s; {times}"


def print_calibration(
    references: Sequence[Reference], outcomes: Sequence[Outcome]
) -> list[float]:
    """Prints the residuals; returns those of the rows that must fit."""
    print("| chip | megablox | tile | reference us | ours us | residual |")
    print("|---|---|---|---|---|---|")
    residuals = []
    for reference, outcome in zip(references, outcomes, strict=True):
        if outcome.kernel is None:
            sys.exit(f"calibration, {reference.chip}: {outcome.reason}")
        residual = residual_of(reference, outcome)
        shape, kind = reference.shape, "simulated"
        if reference.is_measured:
            kind = "measured"
        else:
            residuals.append(residual)
        print(
            f"| {reference.chip} | {reference.pass_} {shape.num_rows} x "
            f"{shape.width_in} x {shape.width_out}, {shape.num_experts} groups "
            f"| {reference.tiling} | {reference.microseconds:.0f}, {kind} "
            f"| {microseconds(outcome, reference.groups):.0f} | {residual:+.1%} |"
        )
    return residuals


def residual_of(reference: Reference, outcome: Outcome) -> float:
    """Returns the relative error against the reference."""
    return microseconds(outcome, reference.groups) / reference.microseconds - 1


def microseconds(outcome: Outcome, groups: str) -> float:
    """Returns the estimated time."""
    return 1e6 * outcome.estimates[groups].seconds


def print_rows(outcomes: Sequence[Outcome]) -> None:
    """Prints percent of the roofline, and the time, for each list of group sizes."""
    print("\n| chip | product | kernel | Zipf | even | multinomial | peak, Zipf |")
    print("|---|---|---|---|---|---|---|")
    for outcome in outcomes:
        task = outcome.task
        head = f"| {task.chip} | {task.row}, {task.pass_} | {task.contestant.name} |"
        if outcome.reason is not None:
            print(f"{head} {outcome.reason[:120]} | | | |")
            continue
        cells = " | ".join(
            f"{100 * outcome.estimates[groups].share_of_roofline:.1f} % "
            f"({microseconds(outcome, groups):.0f} us)"
            for groups in GROUPS
        )
        peak = 100 * outcome.estimates[HEADLINE].share_of_peak
        print(f"{head} {cells} | {peak:.1f} % |")


def print_layers(outcomes: Sequence[Outcome]) -> None:
    """Prints the time of the whole expert layer, where all of its kernels are there."""
    print("\n| chip | layer of | kernels us | around them at least us | together |")
    print("|---|---|---|---|---|")
    for chip, by_family in layers(outcomes).items():
        for family, (kernels, around) in by_family.items():
            print(
                f"| {chip} | {family} | {1e6 * kernels:.0f} | {1e6 * around:.0f} "
                f"| {1e6 * (kernels + around):.0f} |"
            )


def layers(outcomes: Sequence[Outcome]) -> dict[str, dict[str, tuple[float, float]]]:
    """Returns seconds forward and backward by chip and family, Zipf shares.

    First those of the kernels: six of ours; nine of megablox, as its users have them,
    with gate and up apart. Then those of what XLA does around them, as if that had all
    of HBM's bandwidth and fused perfectly: a lower bound.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for chip in dict.fromkeys(outcome.task.chip for outcome in outcomes):
        for family, rows in (
            ("ours", ("gate+up", "down")),
            ("megablox", (FIRST_ROW, FIRST_ROW, "down")),
        ):
            times = [
                min(
                    (
                        outcome.estimates[HEADLINE].seconds
                        for outcome in outcomes
                        if outcome.reason is None
                        and (outcome.task.chip, outcome.task.row) == (chip, row)
                        and outcome.task.pass_ == pass_
                        and outcome.task.contestant.family == family
                    ),
                    default=None,
                )
                for row in rows
                for pass_ in PASSES
            ]
            if None not in times:
                bandwidth = CHIPS[chip].tpu.hbm_bytes_per_second
                around = bytes_around(family) / bandwidth
                found.setdefault(chip, {})[family] = sum(filter(None, times)), around
    return found


def bytes_around(family: str) -> int:
    """Returns what a layer reads and writes outside of its kernels, bfloat16.

    Of both: dispatch and combine are gathers of R rows, forward and backward, from and
    to M tokens. Of megablox, which fuses nothing: SwiGLU (2 F in, F out), its gradient
    (3 F in, 2 F out), both operands of `tgmm` transposed, the sum of two gradients of
    x, and the routing weights' gradient, which reads the layer's rows.
    """
    R, M = ROWS[0], ROWS[0] // EXPERTS_PER_TOKEN
    by_model_dim, by_expert_dim = 6 * R + 2 * M, 0
    if family == "megablox":
        by_model_dim += (2 + 3 + 1) * R
        by_expert_dim += (3 + 5 + 2) * R
    return 2 * (by_model_dim * MODEL_DIM + by_expert_dim * EXPERT_DIM)


def print_programs(outcomes: Sequence[Outcome]) -> None:
    """Prints what is exact: the compiled programs."""
    print(
        "\n| chip | product | kernel | bundles | hot block | matmul share | spills "
        "| VMEM MiB | cores at work | compiled in s | large operations around it |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for outcome in outcomes:
        kernel, compilation = outcome.kernel, outcome.compilation
        if kernel is None or compilation is None:
            continue
        task = outcome.task
        print(
            f"| {task.chip} | {task.row}, {task.pass_} | {task.contestant.name} "
            f"| {kernel.num_bundles} | {kernel.hot_block.num_bundles} "
            f"| {100 * kernel.matmul_share:.1f} % | {kernel.num_spills} "
            f"| {kernel.vmem_bytes / 2**20:.1f} "
            f"| {outcome.estimates[HEADLINE].num_busy_cores} of {kernel.tpu.num_cores} "
            f"| {compilation.seconds:.0f} "
            f"| {', '.join(compilation.large_ops) or 'none'} |"
        )


def summary(
    references: Sequence[Reference],
    checked: Sequence[Outcome],
    outcomes: Sequence[Outcome],
) -> dict:
    """Returns the JSON line: by chip, percent of the roofline at Zipf shares."""
    line: dict = {"benchmark": "tpu_grouped_matmul", "is_estimated": True}
    for outcome in outcomes:
        task = outcome.task
        chip = line.setdefault(task.chip, {})
        if task.shape == projection():
            family = task.contestant.family
            place = chip if family == "ours" else chip.setdefault(family, {})
            place[task.pass_] = better(place.get(task.pass_), headline(outcome))
        chip.setdefault("rows", []).append(row_of(outcome))
    for chip, by_family in layers(outcomes).items():
        line[chip]["layer_microseconds"] = {
            family: [round(1e6 * seconds) for seconds in both]
            for family, both in by_family.items()
        }
    return line | {
        "libtpu": next(o.compilation.libtpu_version for o in checked if o.compilation),
        "calibration": [
            {
                "chip": reference.chip,
                "kernel": f"megablox {reference.pass_} {reference.tiling}",
                "reference": "measured" if reference.is_measured else "simulated",
                "microseconds": reference.microseconds,
                "residual": round(residual_of(reference, outcome), 4),
            }
            for reference, outcome in zip(references, checked, strict=True)
        ],
        **conditions(),
    }


def headline(outcome: Outcome) -> float | str:
    """Returns percent of the roofline at Zipf shares, or why there is none."""
    if outcome.reason is not None:
        return outcome.reason[:120]
    return round(100 * outcome.estimates[HEADLINE].share_of_roofline, 1)


def better(a: float | str | None, b: float | str) -> float | str:
    """Returns the larger percentage; a reason stands only where there is none."""
    numbers = [value for value in (a, b) if isinstance(value, float)]
    return max(numbers) if numbers else b


def row_of(outcome: Outcome) -> dict:
    """Returns a table's row for the JSON line."""
    task, kernel = outcome.task, outcome.kernel
    row = {
        "product": f"{task.row}, {task.pass_}",
        "kernel": task.contestant.name,
        "percent_of_roofline": headline(outcome),
    }
    if kernel is None:
        return row
    return row | {
        "microseconds": {
            groups: round(microseconds(outcome, groups), 1)
            for groups in outcome.estimates
        },
        "bundles": kernel.num_bundles,
        "hot_block_bundles": kernel.hot_block.num_bundles,
        "spills": kernel.num_spills,
        "vmem_bytes": kernel.vmem_bytes,
        "cores_at_work": outcome.estimates[HEADLINE].num_busy_cores,
    }


if __name__ == "__main__":
    main()
