# SPDX-License-Identifier: Apache-2.0
"""Charts keep what matters of a run when they lay it out in a small box."""

import math
import re

import pytest

from ring_jax.report import charts
from ring_jax.report.item_changes import split_thinking
from ring_jax.report.levels import LevelScore


def records(values):
    return [{"step": i + 1, "x": value} for i, value in enumerate(values)]


def layout(values, **options):
    line = charts.line(records(values), "x")
    return charts.line_chart([line], title="x", stages=[], **options)


def test_a_spike_survives_thinning_out():
    values = [1.0] * 20_000
    values[12_345] = 99.0
    line = charts.line(records(values), "x")
    assert len(line.points) <= charts.MAX_POINTS
    assert (12_346, 99.0) in line.points
    assert list(line.points) == sorted(line.points)


@pytest.mark.parametrize("scale", ["linear", "from_zero", "log"])
@pytest.mark.parametrize(
    "values", [[5.0], [2.0, 2.0], [1e-9, 1e9], [0.0, 0.0], [3, -4]]
)
def test_every_point_lies_inside_the_box(values, scale):
    chart = layout(values, scale=scale)
    assert chart is not None
    numbers = [float(n) for n in re.findall(r"[-\d.e+]+", chart.lines[0].path)]
    # Places are rounded to two digits.
    assert all(-0.01 <= n <= 100.01 for n in numbers)
    assert all(
        -0.01 <= tick.place <= 100.01 for tick in [*chart.y_ticks, *chart.x_ticks]
    )
    assert len(chart.y_ticks) >= 2


def test_a_line_without_finite_points_is_no_chart():
    assert layout([math.nan, math.inf]) is None


def test_a_line_breaks_where_a_stage_did_not_train_its_source():
    absent = [{"step": step} for step in range(21, 41)]
    later = [{"step": step, "x": 2.0} for step in range(41, 61)]
    line = charts.line([*records([1.0] * 20), *absent, *later], "x")
    assert [len(stretch) for stretch in line.stretches] == [20, 20]
    chart = charts.line_chart([line], title="x", stages=[])
    assert chart is not None and chart.lines[0].path.count("M") == 2


def test_a_line_goes_on_over_a_batch_without_its_source():
    line = charts.line(records([1.0, None, None, 2.0, 3.0]), "x")
    assert line.stretches == [[(1, 1.0), (4, 2.0), (5, 3.0)]]


def test_bands_of_stages_touch_and_cover_the_plot():
    line = charts.line(records(range(30)), "x")
    stages = [("a", 1, 10), ("b", 11, 25), ("c", 26, 30)]
    chart = charts.line_chart([line], title="x", stages=stages)
    assert chart is not None
    edges = [0.0]
    for band in chart.bands:
        assert band.left == pytest.approx(edges[-1], abs=0.02)  # rounded to 0.01
        edges.append(band.left + band.width)
    assert edges[-1] == pytest.approx(100, abs=0.02)


def test_a_heat_map_shows_load_over_mean_and_ends_with_the_newest():
    routers = [
        {"step": step, "load_LE": [[0.5, 0.25, 0.25, 0.0]]} for step in range(1, 101)
    ]
    chart = charts.heat_map(routers, num_frames=7)
    assert chart is not None
    assert chart.last == [[2.0, 1.0, 1.0, 0.0]]
    assert len(chart.frames) <= 7 and chart.steps[-1] == 100
    assert charts.heat_map([{"step": 1, "load_LE": []}]) is None


def test_the_interval_holds_the_accuracy_and_narrows_with_items():
    few, many = (LevelScore(num_items=n, accuracy=0.25).interval for n in (16, 1600))
    assert few[0] < many[0] < 0.25 < many[1] < few[1]
    # Wilson's own example of no success: the upper end is z^2 / (n + z^2).
    none = LevelScore(num_items=10, accuracy=0.0).interval
    assert none == pytest.approx((0.0, 1.96**2 / (10 + 1.96**2)))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>a</think>b", [("think", "<think>a</think>"), ("said", "b")]),
        ("a</think>b", [("think", "a</think>"), ("said", "b")]),
        ("<think>never ends", [("think", "<think>never ends")]),
        ("plain", [("said", "plain")]),
        ("", []),
    ],
)
def test_thinking_is_found_however_it_is_opened(text, parts):
    assert list(split_thinking(text)) == parts
