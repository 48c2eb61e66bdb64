# SPDX-License-Identifier: Apache-2.0
"""What the benchmark makes of estimates, without a compiler."""

import json
import types

import numpy as np
import pytest

from benchmarks import tpu_grouped_matmul as benchmark
from benchmarks.tpu_contestants import Shape, ours
from pallas_kernels.schedule import CHIPS, Estimate, Kernel
from pallas_kernels.schedule.bundles import parse_program
from pallas_kernels.schedule.compile import Compilation
from pallas_kernels.schedule.timeline import Timeline

TPU = CHIPS["v6e"].tpu


def outcome_of(task, *, seconds: float) -> benchmark.Outcome:
    kernel = Kernel(parse_program("kernel", "0x0 : { %s1_s1 = smov 3 }"), TPU, 4096)
    result = Estimate((Timeline(seconds=seconds),), task.contestant.work, TPU)
    return benchmark.Outcome(
        task,
        kernel,
        Compilation((kernel,), (), seconds=1.0, libtpu_version="0.0.50.1"),
        dict.fromkeys(task.groups, result),
    )


@pytest.fixture
def run_benchmark(monkeypatch, capsys):
    """Runs it on v6e with kernels that all take the same time; returns its lines."""

    def run(calibrated_seconds: float) -> list[str]:
        flags = types.SimpleNamespace(
            chips=["v6e"], kernels=["ours", "megablox"], tokamax_python=None, jobs=1
        )
        monkeypatch.setattr(benchmark, "parse_flags", lambda: flags)
        monkeypatch.setattr(benchmark, "run_tasks", fake_tasks(calibrated_seconds))
        benchmark.main()
        return capsys.readouterr().out.splitlines()

    return run


def fake_tasks(calibrated_seconds: float):
    def run_tasks(tasks, *, jobs):
        del jobs
        return [
            outcome_of(
                task,
                seconds=calibrated_seconds if task.row == "calibration" else 1e-3,
            )
            for task in tasks
        ]

    return run_tasks


def test_the_last_line_has_percent_of_the_roofline_by_chip_and_pass(run_benchmark):
    line = json.loads(run_benchmark(666e-6)[-1])
    assert line["v6e"]["forward"] == line["v6e"]["megablox"]["forward"] == 43.2
    assert set(line["v6e"]) == {
        *("forward", "dlhs", "drhs", "megablox", "rows", "layer_microseconds")
    }
    # Six kernels of ours, nine of megablox; 1.3 GB around ours at 1,640 GB/s.
    layer = line["v6e"]["layer_microseconds"]
    assert (layer["ours"][0], layer["megablox"][0]) == (6000, 9000)
    assert layer["ours"][1] == pytest.approx(777, abs=1)
    assert line["libtpu"] == "0.0.50.1"
    assert {row["product"] for row in line["v6e"]["rows"]} >= {
        "projection, R = 49,152, forward",
        "projection, R = 196,608, drhs",
        "gate+up, forward",
        "down, dlhs",
    }


@pytest.mark.parametrize("seconds", [620e-6, 720e-6])
def test_nothing_is_judged_if_a_calibration_row_is_out_by_5_percent(
    run_benchmark, capsys, seconds
):
    with pytest.raises(SystemExit, match="out by more than 5 %"):
        run_benchmark(seconds)
    printed = capsys.readouterr().out
    assert "residual" in printed
    assert "ours |" not in printed


def test_a_reason_stands_where_there_is_no_figure():
    assert benchmark.better(None, "it does not compile") == "it does not compile"
    assert benchmark.better(40.0, "it does not compile") == 40.0
    assert benchmark.better(40.0, 50.0) == 50.0


def test_the_roofline_counts_operands_and_result_once_each():
    work = Shape(49_152, 2048, 1408).work()
    assert work.flops == pytest.approx(283.5e9, rel=1e-3)
    assert work.num_bytes == pytest.approx(709e6, rel=1e-3)
    assert work.roofline_seconds(TPU) == pytest.approx(432e-6, rel=1e-3)


@pytest.mark.parametrize("groups", benchmark.GROUPS)
def test_group_sizes_sum_to_the_rows(groups):
    assert benchmark.group_sizes(groups, benchmark.projection()).sum() == 49_152


@pytest.mark.parametrize("chip", CHIPS)
def test_our_scalar_operands_are_a_plan_of_the_group_sizes(chip):
    shape = Shape(64, 128, 128, num_experts=2)
    contestant = ours(shape, "forward", chip)
    kernel = Kernel(parse_program("kernel", "0x0 : {}"), CHIPS[chip].tpu, 0)
    scalars = contestant.bind(kernel, np.array([16, 48]))
    assert list(scalars) == list(range(len(scalars)))
    assert all(values.dtype == np.int32 for values in scalars.values())
