# SPDX-License-Identifier: Apache-2.0
"""What the meter says of time."""

import types

import jax.numpy as jnp
import pytest

from ring_jax.batch import Batch
from ring_jax.train import metrics


def test_the_wait_for_data_is_a_share_of_the_time_since_the_last_reading(
    tiny_run, monkeypatch
):
    now = 0.0
    clock = types.SimpleNamespace(perf_counter=lambda: now)
    monkeypatch.setattr(metrics, "time", clock)
    meter = metrics.Meter(tiny_run, 1e12, num_devices=1, started=0.0)
    ones_BT = jnp.ones((2, 4), jnp.int32)
    batch = Batch(*[ones_BT] * 6)
    for wait, step in ((1.0, 4.0), (2.0, 3.0)):
        with meter.waiting():
            now += wait
        meter.add(batch)
        now += step
    reading = meter.read()
    assert reading["throughput/data_wait_share"] == pytest.approx(3 / 10)
    assert reading["throughput/tokens_per_second"] == pytest.approx(16 / 10)
    with meter.waiting():
        now += 1.0
    meter.restart()
    meter.add(batch)
    now += 1.0
    assert meter.read()["throughput/data_wait_share"] == 0.0
