# SPDX-License-Identifier: Apache-2.0
"""The fused head and cross-entropy: time on this machine, memory on every chip.

    python -m benchmarks.cross_entropy

Time: 1,024 tokens, width 2,048, 8,192 columns, chunks of 512, value and both gradients,
against plain matmuls of the same FLOPs over all tokens at once: three for the weighted
sum, four for results per token. Calls are interleaved, so that a slow moment of the
machine hits all alike, and medians are compared.

Memory: what the compiler's plan holds beside arguments and results (`temp_size` of
`memory_analysis`) at Ling-lite's head, 126,464 columns of width 2,048, for 8,192 and
for 32,768 tokens in bfloat16; value and both gradients. The head is the float32 that
the optimizer keeps, so its float32 gradient is a result, and its bfloat16 copy counts.
TPUs are not needed, but their compiler is: without libtpu theirs is left out.
"""

import argparse
import importlib.util
import json
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from benchmarks.conditions import conditions
from benchmarks.grouped_matmul import medians
from pallas_kernels.linear_cross_entropy import (
    CHUNK_TOKENS,
    TokenWeights,
    linear_cross_entropy,
    linear_cross_entropy_sum,
)

NUM_TOKENS, WIDTH, NUM_COLUMNS = 1024, 2048, 8192
DTYPES = ("float32", "bfloat16")
Z_LOSS_COEF = 1e-4
LING_LITE_COLUMNS = 126_464
BATCHES = (8192, 32_768)
TOPOLOGIES = {
    "v5e": "v5e:2x2",
    "v5p": "v5:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}


def main() -> None:
    """Measures both, prints two tables and last one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9, help="calls of each")
    flags = parser.parse_args()
    line: dict[str, Any] = {"benchmark": "cross_entropy"}
    for dtype in DTYPES:
        for name, (ours, plain) in measure(dtype, flags.repeats).items():
            print(f"{dtype:>9} {name:4} {ours:8.0f} ms, matmuls {plain:8.0f} ms")
            line[f"ratio_to_matmuls_{name}_{dtype}"] = round(ours / plain, 3)
    for chip, device in chips().items():
        for name, loss in LOSSES.items():
            gigabytes = [temporary_gigabytes(loss, device, M) for M in BATCHES]
            print(f"{chip:>9} {name:4} {gigabytes} GB at {BATCHES} tokens")
            line[f"temporary_gigabytes_{name}_{chip}"] = gigabytes
    print(json.dumps(line | {"chunk_tokens": CHUNK_TOKENS} | conditions()))


def loss_by_sum(
    hidden_MD: jax.Array, head_DV: jax.Array, targets_M: jax.Array, weights_M: jax.Array
) -> jax.Array:
    """Returns the loss as training forms it."""
    weights = TokenWeights(weights_M, z_loss_M=Z_LOSS_COEF * weights_M)
    return linear_cross_entropy_sum(hidden_MD, head_DV, targets_M, weights)[0]


def loss_by_token(
    hidden_MD: jax.Array, head_DV: jax.Array, targets_M: jax.Array, weights_M: jax.Array
) -> jax.Array:
    """Returns the same loss from results per token."""
    results = linear_cross_entropy(hidden_MD, head_DV, targets_M)
    return jnp.sum(weights_M * results.loss(Z_LOSS_COEF))


LOSSES = {"sum": loss_by_sum, "each": loss_by_token}


def measure(dtype: str, repeats: int) -> dict[str, tuple[float, float]]:
    """Returns milliseconds of ours and of plain matmuls, by operation."""
    keys = jax.random.split(jax.random.key(0), 4)
    hidden_MD = jax.random.normal(keys[0], (NUM_TOKENS, WIDTH), dtype)
    head_DV = jax.random.normal(keys[1], (WIDTH, NUM_COLUMNS)) / WIDTH**0.5
    grad_MV = jax.random.normal(keys[2], (NUM_TOKENS, NUM_COLUMNS), dtype)
    targets_M = jax.random.randint(keys[3], (NUM_TOKENS,), 0, NUM_COLUMNS)
    arguments = hidden_MD, head_DV, targets_M, jnp.ones(NUM_TOKENS)
    matrices = hidden_MD, head_DV.astype(dtype), grad_MV

    gradients = {name: with_gradients(loss) for name, loss in LOSSES.items()}
    milliseconds = medians(
        {name: (lambda x, f=f: f(*x), arguments) for name, f in gradients.items()}
        | {"logits": (lambda x: logits(*x[:2]), matrices)}
        | {"three": (lambda x: (logits(*x[:2]), both_gradients(*x)), matrices)},
        repeats,
    )
    three = milliseconds["three"]
    return {
        "sum": (milliseconds["sum"], three),
        "each": (milliseconds["each"], three + milliseconds["logits"]),
    }


def with_gradients(loss: Callable[..., jax.Array]) -> Any:
    """Compiles a loss and its gradients."""
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


@jax.jit
def logits(hidden_MD: jax.Array, head_DV: jax.Array) -> jax.Array:
    """Multiplies forward."""
    return jnp.dot(hidden_MD, head_DV, preferred_element_type=jnp.float32)


@jax.jit
def both_gradients(
    hidden_MD: jax.Array, head_DV: jax.Array, grad_MV: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Multiplies as the gradients of `logits` do."""
    grad_DV = jnp.dot(hidden_MD.T, grad_MV, preferred_element_type=jnp.float32)
    return jnp.dot(grad_MV, head_DV.T), grad_DV


def chips() -> dict[str, Any]:
    """Returns a device of each kind that can be compiled for here, by name."""
    found = {jax.devices()[0].platform: jax.devices()[0]}
    if importlib.util.find_spec("libtpu") is None:
        return found
    # Another process may have the compiler loaded, and no machine is asked what it is.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    for chip, topology in TOPOLOGIES.items():
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=topology
        )
        found[chip] = description.devices[0]
    return found


def temporary_gigabytes(
    loss: Callable[..., jax.Array], device: Any, num_tokens: int
) -> float:
    """Returns what a device would hold beside arguments and results; 10^9 bytes."""
    shapes = shapes_of(
        num_tokens, LING_LITE_COLUMNS, "bfloat16", SingleDeviceSharding(device)
    )
    memory = with_gradients(loss).lower(*shapes).compile().memory_analysis()
    return round(memory.temp_size_in_bytes / 1e9, 3)


def shapes_of(
    num_tokens: int,
    num_columns: int,
    dtype: str,
    sharding: SingleDeviceSharding | None = None,
) -> list[jax.ShapeDtypeStruct]:
    """Returns what hidden, head, targets and weights look like."""
    return [
        jax.ShapeDtypeStruct(shape, kind, sharding=sharding)
        for shape, kind in (
            ((num_tokens, WIDTH), dtype),
            ((WIDTH, num_columns), "float32"),
            ((num_tokens,), "int32"),
            ((num_tokens,), "float32"),
        )
    ]


if __name__ == "__main__":
    main()
