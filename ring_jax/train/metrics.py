# SPDX-License-Identifier: Apache-2.0
"""From a step's arrays to the numbers that people read."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.hardware import peak_flops_per_second
from ring_jax.batch import Batch
from ring_jax.config import TOKEN_CLASSES, RunConfig
from ring_jax.model.flops import flops_per_token
from ring_jax.objectives.training_loss import LossStats
from ring_jax.train.step import StepMetrics


def readable(
    metrics: StepMetrics, sources: Sequence[str]
) -> tuple[dict[str, float], list[list[float]]]:
    """Returns a step's named numbers, and the load of each expert of each layer."""
    host: StepMetrics = jax.device_get(metrics)
    router = host.stats.router
    low, high = (int(word) for word in host.num_trained_tokens)
    num_experts = router.load_E.shape[-1]
    named = {
        "train/loss": float(host.loss),
        "train/cross_entropy": float(host.stats.cross_entropy),
        "train/grad_norm": float(host.grad_norm),
        "train/trained_tokens": low + (high << 32),
        "router/balance_loss": float(np.mean(router.balance_loss)),
        "router/z_loss": float(np.mean(router.z_loss)),
        "router/max_load": float(np.max(router.load_E) * num_experts),
    }
    named |= _means(host.stats, sources) | _class_tokens(host.stats)
    return named, np.round(router.load_E, 6).tolist()


def _means(stats: LossStats, sources: Sequence[str]) -> dict[str, float]:
    means = {}
    for group, names, sums in (
        ("source", sources, stats.source_sums),
        ("class", TOKEN_CLASSES, stats.class_sums),
    ):
        for name, total, weight in zip(names, sums[0], sums[1], strict=True):
            if weight > 0:
                means[f"loss/{group}/{name}"] = float(total / weight)
    return means


def _class_tokens(stats: LossStats) -> dict[str, int]:
    """Counts the step's targets of each token class, trained or not."""
    counts = dict(zip(TOKEN_CLASSES, stats.class_sums[1], strict=True))
    return {f"tokens/class/{name}": int(counts[name]) for name in TOKEN_CLASSES[1:]}


@dataclasses.dataclass
class Meter:
    """Measures tokens per second, MFU and the wait for data between two readings.

    MFU = tokens per second * FLOPs per token / (devices * peak FLOP/s of a device),
    with `model.flops.flops_per_token` at the batch's own mean context. Tokens are those
    of documents; padding is work that was not asked for, and counts as none.

    The wait for data is the time in which the loop takes the next batch and places it
    on the mesh. Devices may still be at work on a step by then, so that they wait for
    no more than this.
    """

    config: RunConfig
    peak_flops: float | None
    num_devices: int
    sums: jax.Array | None = None
    """f32[2], tokens and what they attend to, summed on the devices."""
    started: float = dataclasses.field(default_factory=time.perf_counter)
    waited: float = 0.0
    """Seconds of the wait for data."""

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time of the block as waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def add(self, batch: Batch) -> None:
        """Counts the tokens of a batch on the mesh, of which a host may have a part."""
        counted = _count(batch.segments_BT, batch.positions_BT)
        self.sums = counted if self.sums is None else self.sums + counted

    def restart(self) -> None:
        """Forgets what was counted: compilation, grading and saves are not training."""
        self.sums = None
        self.started = time.perf_counter()
        self.waited = 0.0

    def read(self) -> dict[str, float]:
        """Returns throughput since the last reading, and starts anew."""
        seconds = time.perf_counter() - self.started
        if self.sums is None:
            return {}
        tokens, context_sum = jax.device_get(self.sums).tolist()
        rate = tokens / seconds
        reading = {
            "throughput/tokens_per_second": rate,
            "throughput/data_wait_share": self.waited / seconds,
        }
        if self.peak_flops is not None:
            context = 1.0 + context_sum / tokens
            flops = flops_per_token(self.config.model, mean_context=context)
            reading["throughput/mfu"] = (
                rate * flops / (self.num_devices * self.peak_flops)
            )
        self.restart()
        return reading


@jax.jit
def _count(segments_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
    is_token_BT = segments_BT > 0
    context_BT = jnp.where(is_token_BT, positions_BT, 0)
    # Positions of a large batch at long context sum beyond an int32.
    return jnp.stack(
        [
            jnp.sum(is_token_BT, dtype=jnp.float32),
            jnp.sum(context_BT, dtype=jnp.float32),
        ]
    )


def peak_flops_of(config: RunConfig, device: Any) -> float | None:
    """Returns FLOP/s of one device: the config's, the chip table's, or this CPU's own.

    A CPU has no data sheet that means much; its peak is the best rate that a large
    dense float32 matmul reaches here, shared by the devices that it emulates.
    """
    if config.train.peak_flops_per_second is not None:
        return config.train.peak_flops_per_second
    if device.platform == "cpu":
        return _measured_flops(device) / jax.local_device_count()
    return peak_flops_per_second(device.device_kind)


def _measured_flops(device: Any) -> float:
    width, repeats = 1024, 5
    x = jax.device_put(jnp.ones((width, width), jnp.float32), device)
    multiply = jax.jit(jnp.matmul)
    multiply(x, x).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        multiply(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2.0 * width**3 / min(seconds)


def describe(record: dict[str, Any], *, num_steps: int) -> str:
    """Says a train record in one line, for the terminal and `log.txt`."""
    line = (
        f"{record['stage']} step {record['stage_step']:,} of {num_steps:,}: "
        f"loss {record['train/loss']:.3f}, grad norm {record['train/grad_norm']:.2f}"
    )
    rate = record.get("throughput/tokens_per_second")
    return line if rate is None else f"{line}, {rate:,.0f} tokens/s"
