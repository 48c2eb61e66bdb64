# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of a step on pods reports, and when it refuses to."""

import pathlib

import pytest

from benchmarks import pod_step
from ring_jax.plan.step_time import StepTime


def side(seconds: float) -> pod_step.Side:
    time = StepTime(
        seconds=seconds,
        low_seconds=0.8 * seconds,
        high_seconds=1.5 * seconds,
        breakdown={"attention": seconds},
        sources={"bundles": seconds},
        collectives=(),
        operations=(),
        loops={},
    )
    return pod_step.Side(time, mfu=0.2, hbm_gib=11.9, compile_seconds=200.0)


def test_an_estimator_that_lost_its_calibration_judges_nothing(capsys):
    accelerator, known = pod_step.CALIBRATION
    pod_step.check_calibration(accelerator, side(1.09 * known))
    assert "+9.0%" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        pod_step.check_calibration(accelerator, side(0.85 * known))
    assert stop.value.code == pod_step.STOPPED_BY_CHECK


def test_other_pods_have_no_known_step():
    pod_step.check_calibration("v6e-64", side(99.0))


def test_the_summary_holds_what_the_line_promises():
    found = side(1.25).summary()
    assert {"mfu", "step_seconds", "hbm_gib"} <= set(found)
    assert found["breakdown_ms"] == {"attention": 1250.0}


def test_a_peer_that_is_not_there_is_told_in_a_line(tmp_path):
    missing = pathlib.Path("/nowhere/bin/python")
    with pytest.raises(SystemExit, match="--maxtext-python=/nowhere/bin/python: No"):
        pod_step.run_peer("v5p-64", missing, tmp_path, tmp_path)
