# SPDX-License-Identifier: Apache-2.0
"""Grouped matmul against one dense matmul of the same useful FLOPs, on this machine.

    python -m benchmarks.grouped_matmul

64 experts, 12,288 rows (2,048 tokens, 6 experts each), K 256, N 352, group sizes from a
multinomial. The peers: one matrix for all rows, which is what a perfect grouped matmul
would cost, and `jax.lax.ragged_dot`. Calls are interleaved, so that a slow moment of
the machine hits all alike, and medians are compared. Forward is the product; with
gradients it is the product and both gradients.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.conditions import conditions
from pallas_kernels.grouped_matmul import grouped_matmul

NUM_EXPERTS, NUM_ROWS, WIDTH_IN, WIDTH_OUT = 64, 12_288, 256, 352
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Operands:
    """One draw of everything that the contestants read."""

    x_RD: jax.Array
    w_EDF: jax.Array
    grad_RF: jax.Array
    group_sizes_E: jax.Array


type Product = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def main() -> None:
    """Times all contestants, prints a table and last one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=31, help="calls of each")
    parser.add_argument("--peer-repeats", type=int, default=3, help="of ragged_dot")
    flags = parser.parse_args()
    figures = {}
    print(f"{'':24}{'dense':>10}{'ours':>10}{'ragged_dot':>12}   ours / dense")
    for dtype in DTYPES:
        for direction, milliseconds in measure(dtype, flags).items():
            dense, ours, ragged = milliseconds.values()
            print(
                f"{dtype:>9} {direction:13} {dense:7.2f} ms{ours:7.2f} ms"
                f"{ragged:9.1f} ms   {ours / dense:.2f}"
            )
            figures[dtype, direction] = ours / dense, ours / ragged
    print(json.dumps(summary(figures)))


def measure(dtype: str, flags: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Returns median milliseconds by direction ("forward", ...) and contestant."""
    operands = draw(dtype)
    result = {}
    for direction, build in (("forward", forward), ("with gradients", with_gradients)):
        ours = {
            "dense": (
                build(dense),
                dataclasses.replace(operands, w_EDF=operands.w_EDF[:1]),
            ),
            "ours": (build(grouped_matmul), operands),
        }
        peer = {"ragged_dot": (build(jax.lax.ragged_dot), operands)}
        result[direction] = medians(ours, flags.repeats) | medians(
            peer, flags.peer_repeats
        )
    return result


def draw(dtype: str) -> Operands:
    """Returns operands of the benchmark's shape; always the same."""
    rng = np.random.default_rng(0)
    shapes = {
        "x_RD": (NUM_ROWS, WIDTH_IN),
        "w_EDF": (NUM_EXPERTS, WIDTH_IN, WIDTH_OUT),
        "grad_RF": (NUM_ROWS, WIDTH_OUT),
    }
    arrays = {
        name: jnp.asarray(rng.standard_normal(shape, np.float32), dtype)
        for name, shape in shapes.items()
    }
    sizes_E = rng.multinomial(NUM_ROWS, np.full(NUM_EXPERTS, 1 / NUM_EXPERTS))
    return Operands(**arrays, group_sizes_E=jnp.asarray(sizes_E, jnp.int32))


def dense(x_RD: jax.Array, w_1DF: jax.Array, group_sizes_E: jax.Array) -> jax.Array:
    """Multiplies all rows by one matrix."""
    del group_sizes_E
    return x_RD @ w_1DF[0]


def forward(product: Product) -> Callable[[Operands], jax.Array]:
    """Builds a call of the product alone."""
    compiled = jax.jit(product)
    return lambda o: compiled(o.x_RD, o.w_EDF, o.group_sizes_E)


def with_gradients(product: Product) -> Callable[[Operands], tuple]:
    """Builds a call of the product and of both its gradients."""

    @jax.jit
    def compiled(x_RD, w_EDF, group_sizes_E, grad_RF):
        out_RF, pull_back = jax.vjp(
            lambda x_RD, w_EDF: product(x_RD, w_EDF, group_sizes_E), x_RD, w_EDF
        )
        return out_RF, pull_back(grad_RF)

    return lambda o: compiled(o.x_RD, o.w_EDF, o.group_sizes_E, o.grad_RF)


def medians(
    contestants: Mapping[str, tuple[Callable, Any]], repeats: int
) -> dict[str, float]:
    """Calls all contestants in turn, after one call to compile; milliseconds."""
    seconds = {name: [] for name in contestants}
    for call, operands in contestants.values():
        jax.block_until_ready(call(operands))
    for _ in range(repeats):
        for name, (call, operands) in contestants.items():
            start = time.perf_counter()
            jax.block_until_ready(call(operands))
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(times) for name, times in seconds.items()}


def summary(figures: Mapping[tuple[str, str], tuple[float, float]]) -> dict:
    """Returns the JSON line: the worse direction of float32, then everything."""
    float32 = [ratios for (dtype, _), ratios in figures.items() if dtype == "float32"]
    line = {
        "benchmark": "grouped_matmul",
        "ratio_to_dense": max(to_dense for to_dense, _ in float32),
        "ratio_to_ragged_dot": max(to_ragged for _, to_ragged in float32),
    }
    for (dtype, direction), (to_dense, _) in figures.items():
        line[f"ratio_to_dense_{dtype}_{direction.replace(' ', '_')}"] = to_dense
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}
    return rounded | conditions()


if __name__ == "__main__":
    main()
