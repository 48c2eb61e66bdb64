# SPDX-License-Identifier: Apache-2.0
"""Finds the fastest tiles of an expert layer's kernels on TPUs that are not there.

    python -m pallas_kernels.expert_mlp.tune
    python -m pallas_kernels.expert_mlp.tune --chips=v6e --models=qwen3_30b_a3b
    python -m pallas_kernels.expert_mlp.tune --chips=v5e --shape=64x2048x1408x49152

Each kernel of forward and backward pass is compiled ahead of time with several tiles,
and its schedule run on Zipf-distributed group sizes (`pallas_kernels/schedule`: times
are estimates). From the computed tiles on one field after the other is changed, and a
change is kept that wins half a percent. The best go to `grouped_matmul/tiles.json` as
each kernel is done; entries of other shapes stay. Needs libtpu 0.0.50 (the extra
`tpu`); a chip and a model take some minutes on two cores.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import os
import sys
from typing import Any

from pallas_kernels import hardware
from pallas_kernels.expert_mlp.passes import (
    MODELS,
    Experts,
    Pass,
    passes,
    plan_scalars,
    run_with_tiles,
)
from pallas_kernels.grouped_matmul import tiling
from pallas_kernels.schedule import (
    CHIPS,
    CompileError,
    UnknownValueError,
    compile_kernels,
    estimate,
    zipf_sizes,
)

MIN_GAIN = 0.005
# Matrices, tiles of rows, tiles of results.
RINGS = (
    *((8, 8, 8), (4, 8, 8), (8, 4, 4), (4, 4, 4)),
    *((4, 4, 8), (2, 8, 8), (2, 4, 8), (2, 4, 2)),
)
OUTER_ROW_TILES = (2, 4, 8)
EPILOGUE_COLUMNS = (128, 512)


@dataclasses.dataclass(frozen=True)
class Trial:
    """Tiles, and the seconds that a kernel takes with them, or why there are none."""

    tiles: Any
    seconds: float = float("inf")
    reason: str | None = None
    libtpu_version: str | None = None


def main() -> None:
    """Tunes what the command line names."""
    flags = parse_flags()
    tasks = [
        (chip, experts, pass_)
        for chip in flags.chips
        for experts in flags.experts
        for pass_ in passes(experts)
    ]
    with concurrent.futures.ThreadPoolExecutor(flags.jobs) as pool:
        for entry in pool.map(tune, *zip(*tasks, strict=True)):
            save(entry)


def parse_flags() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chips", default=",".join(CHIPS))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--shape", help="experts x model dim x expert dim x rows")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    flags = parser.parse_args()
    flags.chips, models = flags.chips.split(","), flags.models.split(",")
    for names, known in ((flags.chips, CHIPS), (models, MODELS)):
        if unknown := sorted(set(names) - set(known)):
            parser.error(f"{', '.join(unknown)}: not one of {', '.join(known)}")
    # Some models have experts alike.
    flags.experts = [*dict.fromkeys(MODELS[name] for name in models)]
    if flags.shape is not None:
        sizes = flags.shape.split("x")
        if len(sizes) != 4 or not all(size.isdecimal() and int(size) for size in sizes):
            parser.error(f"--shape={flags.shape}: it must be like 64x2048x1408x49152")
        flags.experts = [Experts(*map(int, sizes))]
    return flags


def tune(chip: str, experts: Experts, pass_: Pass) -> dict[str, Any]:
    """Returns the entry of `tiles.json` for one kernel on one chip."""
    target = CHIPS[chip].tpu
    attempt = functools.partial(try_tiles, chip, experts, pass_)
    computed = best = attempt(tiling.compute_tiles(pass_.shape, target))
    if computed.reason is not None:
        print(f"tune: {chip}, {pass_.name}: {computed.reason}", file=sys.stderr)
        # As `ring` ends where the environment, not the user, is at fault.
        sys.exit(4)
    for changes in what_to_change(pass_.shape):
        for change in changes:
            tiles = dataclasses.replace(best.tiles, **change)
            if is_worth_trying(tiles, best.tiles, pass_.shape, target):
                trial = attempt(tiles)
                if trial.seconds < best.seconds * (1 - MIN_GAIN):
                    best = trial
    roofline = pass_.work.roofline_seconds(target)
    print(
        f"{chip}, {pass_.name}, {experts}: {1e6 * best.seconds:.0f} us, "
        f"{roofline / best.seconds:.1%} of the roofline; computed tiles "
        f"{1e6 * computed.seconds:.0f} us; {best.tiles}",
        flush=True,
    )
    return {
        "device_kind": target.name,
        "shape": dataclasses.asdict(pass_.shape),
        "tiles": dataclasses.asdict(best.tiles),
        "num_rows": experts.num_rows,
        "estimated_us": round(1e6 * best.seconds, 1),
        "estimated_us_of_computed": round(1e6 * computed.seconds, 1),
        "libtpu": best.libtpu_version,
    }


def what_to_change(shape: tiling.Shape) -> list[list[dict[str, int]]]:
    """Lists values to try, of fields together, one list after the other."""
    if isinstance(shape, tiling.OuterShape):
        return [[{"row_tiles": count} for count in OUTER_ROW_TILES]]
    rings = [
        {"matrices": matrices, "row_tiles": rows, "result_tiles": results}
        for matrices, rows, results in RINGS
    ]
    columns = [{"epilogue_columns": count} for count in EPILOGUE_COLUMNS]
    is_fused = shape.product_slices + shape.slices_read > 1
    return [rings, columns] if is_fused else [rings]


def is_worth_trying(
    tiles: Any, best: Any, shape: tiling.Shape, target: hardware.Tpu
) -> bool:
    """Returns whether tiles fit and are not only shorter rings of a product."""
    if tiles == best or tiling.unfit(shape, tiles, target):
        return False
    if isinstance(tiles, tiling.OuterTiles):
        return True
    longer = [
        getattr(tiles, name) - getattr(best, name)
        for name in ("matrices", "row_tiles", "result_tiles")
    ]
    return not any(longer) or max(longer) > 0


def try_tiles(chip: str, experts: Experts, pass_: Pass, tiles: Any) -> Trial:
    """Compiles a kernel with some tiles and runs its schedule."""
    fn = functools.partial(run_with_tiles, tiles, pass_.run)
    try:
        compilation = compile_kernels(fn, *pass_.arguments, chip=chip)
        (kernel,) = compilation.kernels
        sizes = tuple(zipf_sizes(experts.num_rows, experts.num_experts).tolist())
        scalars = plan_scalars(CHIPS[chip].device_kind, experts.num_rows, sizes)
        seconds = estimate(kernel, scalars, work=pass_.work).seconds
    except (CompileError, UnknownValueError, ValueError) as error:
        return Trial(tiles, reason=str(error))
    return Trial(tiles, seconds, libtpu_version=compilation.libtpu_version)


def save(entry: dict[str, Any]) -> None:
    """Puts an entry into `tiles.json`, instead of the one of the same shape."""

    def key(entry: dict[str, Any]) -> str:
        return json.dumps([entry["device_kind"], entry["shape"]])

    entries = json.loads(tiling.PATH.read_text(encoding="utf-8"))
    entries = [other for other in entries if key(other) != key(entry)]
    lines = [json.dumps(each) for each in sorted([*entries, entry], key=key)]
    temporary = tiling.PATH.with_suffix(".new")
    temporary.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    tiling.load(temporary)
    os.replace(temporary, tiling.PATH)


if __name__ == "__main__":
    main()
