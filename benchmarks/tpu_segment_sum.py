# SPDX-License-Identifier: Apache-2.0
"""Rows back to tokens on a TPU that is not there: the kernel, and what XLA makes of it.

    python -m benchmarks.tpu_segment_sum

A device of four that share Ling-lite's experts has 32,768 tokens, room for 61,440 rows
of width 2,048 in bfloat16, and rows of 49,273 pairs (6 of 64 experts a token, drawn
evenly; 16 are here).

- pairs: a row gathered for each of the 196,608 pairs, and six of them summed.
- rows: the rows gathered into the order of tokens, and `segment_sum`.

All of it estimates (`pallas_kernels/schedule`, libtpu's own dumps). But for v5e gathers
run on the sparse cores, whose code is not dumped: each counts as the bytes that it
reads and writes over HBM's bandwidth, a lower bound.
"""

import argparse
import functools
import importlib
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.schedule import (
    CHIPS,
    Work,
    compile_into,
    compile_kernels,
    estimate,
)
from pallas_kernels.segment_sum import segment_sum
from pallas_kernels.segment_sum.tpu import TILE, chunk_rows, plan_tiles
from ring_jax.model.dispatch import gather_rows
from ring_jax.plan.dumps import Dumps
from ring_jax.plan.hlo import parse_module

M, A, R, D = 32_768, 6, 61_440, 2048
NUM_EXPERTS, NUM_HERE = 64, 16
OUT_DTYPES = ("float32", "bfloat16")
LEAST_SECONDS = 1e-5
"""Of an operation that is listed."""


def main() -> None:
    """Prints two tables and last one JSON line."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    line: dict[str, Any] = {
        "benchmark": "tpu_segment_sum",
        "is_estimated": True,
        "kernel": {},
        "ways": {},
    }
    print("| chip | sums | kernel ms | of HBM's roofline | bundles | VMEM MiB |")
    print("|---|---|---|---|---|---|")
    for chip in CHIPS:
        for out_dtype in OUT_DTYPES:
            figures = kernel_figures(chip, out_dtype)
            line["kernel"][f"{chip} {out_dtype}"] = figures
            print(
                f"| {chip} | {out_dtype} | {figures['ms']:.3f} "
                f"| {100 * figures['share_of_roofline']:.1f} % "
                f"| {figures['bundles']} | {figures['vmem_mib']:.1f} |"
            )
    print("\n| chip | way | ms of each operation | together |")
    print("|---|---|---|---|")
    for chip in CHIPS:
        kernel_ms = line["kernel"][f"{chip} float32"]["ms"]
        ways = {
            "pairs": xla_operations(chip, sum_pairs, M, A),
            "rows": xla_operations(chip, put_in_order, R) | {"segment_sum": kernel_ms},
        }
        for way, operations in ways.items():
            total = sum(operations.values())
            line["ways"][f"{chip} {way}"] = operations | {"together": round(total, 4)}
            each = ", ".join(f"{name} {ms:.3f}" for name, ms in operations.items())
            print(f"| {chip} | {way} | {each} | {total:.2f} |")
    print(json.dumps(line))


def kernel_figures(chip: str, out_dtype: str) -> dict[str, Any]:
    """Returns what the kernel takes on a chip."""
    ends_M = routed_ends()
    fn = functools.partial(segment_sum, out_dtype=out_dtype, implementation="tpu")
    compilation = compile_kernels(fn, _rows(R), _numbers(M), chip=chip)
    (kernel,) = compilation.kernels
    plan, _, _ = plan_tiles(
        jnp.asarray(ends_M),
        chunk=chunk_rows(R, num_tiles=M // TILE),
        num_cores=kernel.tpu.num_cores,
    )
    scalars = dict(enumerate(map(np.asarray, jax.tree.leaves(plan))))
    num_bytes = int(ends_M[-1]) * D * 2 + M * D * jnp.dtype(out_dtype).itemsize
    result = estimate(kernel, scalars, work=Work(0, num_bytes))
    return {
        "ms": round(1e3 * result.seconds, 4),
        "share_of_roofline": round(result.share_of_roofline, 4),
        "bundles": kernel.num_bundles,
        "vmem_mib": round(kernel.vmem_bytes / 2**20, 1),
        "libtpu": compilation.libtpu_version,
    }


def xla_operations(chip: str, fn: Callable, *gathered: int) -> dict[str, float]:
    """Returns ms of each operation of a function of rows and so many rows' numbers."""
    with tempfile.TemporaryDirectory() as name:
        arguments = _rows(R), _numbers(*gathered)
        reply = compile_into(Path(name), fn, *arguments, chip=chip)
        module = parse_module(reply["hlo"])
        dumps = Dumps(module, Path(name), CHIPS[chip].tpu)
        found = {}
        for instruction in module.entry.instructions:
            path = dumps.find(instruction, module.entry)
            seconds = path and dumps.seconds(path)
            if seconds and seconds > LEAST_SECONDS:
                found[instruction.name] = round(1e3 * seconds, 4)
    if not any("gather" in name for name in found):
        seconds = 4 * math.prod(gathered) * D / CHIPS[chip].tpu.hbm_bytes_per_second
        found["gather, at least"] = round(1e3 * seconds, 4)
    return found


def sum_pairs(y_RD: jax.Array, row_MA: jax.Array) -> jax.Array:
    """Sums a row for each pair, zeros for a pair that has none here."""
    return jnp.sum(gather_rows(y_RD, row_MA).astype(jnp.float32), axis=1)


def put_in_order(y_RD: jax.Array, row_R: jax.Array) -> jax.Array:
    """Gathers rows into the order of tokens."""
    return y_RD.at[row_R].get(mode="promise_in_bounds")


def routed_ends() -> np.ndarray:
    """Returns where each token's rows end; i32[M]."""
    rng = np.random.default_rng(0)
    experts_MA = np.argsort(rng.random((M, NUM_EXPERTS)), axis=1)[:, :A]
    return np.cumsum((experts_MA < NUM_HERE).sum(axis=1)).astype(np.int32)


def _rows(num_rows: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((num_rows, D), jnp.bfloat16)


def _numbers(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


if __name__ == "__main__":
    # The compiler's process imports the functions by their module's name.
    importlib.import_module("benchmarks.tpu_segment_sum").main()
