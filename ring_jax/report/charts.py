# SPDX-License-Identifier: Apache-2.0
"""Geometry of the charts, in percent of the plot; the template draws it.

Percentages rather than pixels let one drawing fill any width: lines are stretched while
text and strokes are not.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ring_jax.report.run_folder import Record

MAX_POINTS = 600
"""Points drawn per line: more than a plot has pixels to tell apart."""


MAX_GAP = 5
"""Logged steps that may lack a metric before its line breaks: a source with a small
share is absent from a batch now and then, and from a stage that does not train it."""

Point = tuple[int, float]


@dataclasses.dataclass(frozen=True)
class Line:
    """One metric over the steps, in stretches without a gap."""

    name: str
    stretches: Sequence[Sequence[Point]]

    @property
    def points(self) -> list[Point]:
        """All points in the order of their steps."""
        return [point for stretch in self.stretches for point in stretch]


@dataclasses.dataclass(frozen=True)
class DrawnLine:
    """A line as the template needs it."""

    name: str
    path: str
    """SVG path data in a box of 100 by 100."""
    points: Sequence[Point]
    last: float


@dataclasses.dataclass(frozen=True)
class Tick:
    """A place on an axis: percent from the left or from the bottom, and its text."""

    place: float
    text: str


@dataclasses.dataclass(frozen=True)
class Band:
    """The steps of one stage behind the lines, in percent from the left."""

    name: str
    left: float
    width: float


@dataclasses.dataclass(frozen=True)
class LineChart:
    """Lines over steps with axes and stage bands; ready to be drawn."""

    title: str
    note: str
    lines: Sequence[DrawnLine]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    bands: Sequence[Band]
    x_range: tuple[float, float]

    @property
    def data(self) -> dict[str, Any]:
        """What the page's script needs to show values under the pointer."""
        lines = [{"name": line.name, "points": line.points} for line in self.lines]
        return {"x": self.x_range, "lines": lines}


def line(records: Sequence[Record], key: str, *, name: str | None = None) -> Line:
    """Collects one metric; records without a finite number are left out."""
    stretches: list[list[Point]] = []
    last_index = -math.inf
    for index, record in enumerate(records):
        value = record.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            if index - last_index > MAX_GAP:
                stretches.append([])
            stretches[-1].append((record["step"], float(value)))
            last_index = index
    total = sum(map(len, stretches))
    return Line(name or key, [_thin_out(part, total=total) for part in stretches])


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    stages: Sequence[tuple[str, int, int]],
    note: str = "",
    scale: Literal["linear", "from_zero", "log"] = "linear",
    y_range: tuple[float, float] | None = None,
) -> LineChart | None:
    """Lays out lines in one plot.

    Args:
      lines: metrics over steps; empty ones are left out.
      title: what is drawn, with its unit.
      stages: (name, first step, last step) of each stage.
      note: a sentence below the title.
      scale: `from_zero` starts the axis at zero; `log` needs positive values.
      y_range: the range to show instead of that of the lines.

    Returns:
      The chart, or None when no line has a point.
    """
    lines = [line for line in lines if line.stretches]
    values = [y for line in lines for _, y in line.points]
    if not values:
        return None
    log = scale == "log" and min(values) > 0
    low, high = y_range or (min(values), max(values))
    y_axis = _log_axis(low, high) if log else _linear_axis(low, high, scale)
    steps = [x for line in lines for x, _ in line.points]
    x_low = min([min(steps), *(first for _, first, _ in stages)])
    x_high = max([max(steps), x_low + 1, *(last for _, _, last in stages)])
    x_range = (x_low, x_high)
    return LineChart(
        title=title,
        note=note,
        lines=[_draw(line, x_range, y_axis) for line in lines],
        x_ticks=_step_ticks(x_range),
        y_ticks=y_axis.ticks(),
        bands=[band for stage in stages if (band := _band(stage, x_range))],
        x_range=x_range,
    )


@dataclasses.dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    marks: Sequence[float]
    log: bool

    def place(self, value: float) -> float:
        if self.log:
            low, high = math.log10(self.low), math.log10(self.high)
            share = (math.log10(value) - low) / (high - low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(100 * share, 2)

    def ticks(self) -> list[Tick]:
        return [Tick(self.place(mark), format_number(mark)) for mark in self.marks]


def _linear_axis(low: float, high: float, scale: str) -> _Axis:
    low = min(low, 0.0) if scale == "from_zero" else low
    step = nice_step((high - low) or abs(high) or 1.0, num_steps=4)
    low, high = step * math.floor(low / step), step * math.ceil(high / step)
    high = high if high > low else low + step
    count = round((high - low) / step)
    return _Axis(low, high, [low + step * i for i in range(count + 1)], log=False)


def _log_axis(low: float, high: float) -> _Axis:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    every = max(1, math.ceil((last - first) / 5))
    marks = [10.0**power for power in range(first, last + 1, every)]
    return _Axis(10.0**first, 10.0**last, marks, log=True)


def nice_step(span: float, *, num_steps: int) -> float:
    """Returns 1, 2 or 5 times a power of ten, about `span / num_steps`."""
    power = 10.0 ** math.floor(math.log10(span / num_steps))
    rough = span / num_steps / power
    # A step a little above the nice one still gives about as many ticks.
    return power * next(nice for nice in (1, 2, 5, 10) if rough <= 1.2 * nice)


def _step_ticks(x_range: tuple[float, float]) -> list[Tick]:
    low, high = x_range
    step = max(1, round(nice_step(high - low, num_steps=5)))
    marks = range(step * math.ceil(low / step), int(high) + 1, step)
    place = 100 / (high - low)
    return [Tick(round((mark - low) * place, 2), f"{mark:,}") for mark in marks]


def _draw(line: Line, x_range: tuple[float, float], y_axis: _Axis) -> DrawnLine:
    low, high = x_range
    path = ""
    for stretch in line.stretches:
        places = [
            f"{round(100 * (x - low) / (high - low), 2):g} "
            f"{round(100 - y_axis.place(y), 2):g}"
            for x, y in stretch
        ]
        # A lone point is drawn as a line to itself, which round caps make a dot.
        places = places if len(places) > 1 else places * 2
        path += "M" + "L".join(places)
    return DrawnLine(line.name, path, line.points, line.points[-1][1])


def _band(stage: tuple[str, int, int], x_range: tuple[float, float]) -> Band | None:
    name, first, last = stage
    low, high = x_range
    # A step's band reaches back to the step before it, so that bands touch.
    left = max(0.0, 100 * (first - 1 - low) / (high - low))
    right = min(100.0, 100 * (last - low) / (high - low))
    return Band(name, round(left, 2), round(right - left, 2)) if right > left else None


def _thin_out(points: list[Point], *, total: int) -> list[Point]:
    # Keeps the lowest and highest point of each group, so that spikes stay visible.
    if total <= MAX_POINTS:
        return points
    size = math.ceil(2 * total / MAX_POINTS)
    kept: list[Point] = []
    for start in range(0, len(points), size):
        group = points[start : start + size]
        kept.extend(sorted({min(group, key=_value), max(group, key=_value)}))
    return kept


def _value(point: Point) -> float:
    return point[1]


@dataclasses.dataclass(frozen=True)
class HeatMap:
    """Load of each expert in each layer at several steps, relative to even load."""

    steps: Sequence[int]
    frames: Sequence[Sequence[Sequence[float]]]
    """Load over mean load, [step][layer][expert]."""

    @property
    def last(self) -> Sequence[Sequence[float]]:
        """The newest frame."""
        return self.frames[-1]


def heat_map(routers: Sequence[Record], *, num_frames: int = 24) -> HeatMap | None:
    """Picks evenly spaced router records, the newest included; None without any."""
    valid = [record for record in routers if _is_table(record.get("load_LE"))]
    if not valid:
        return None
    every = max(1, math.ceil(len(valid) / num_frames))
    picked = valid[::-1][::every][::-1]
    return HeatMap(
        steps=[record["step"] for record in picked],
        frames=[_relative(record) for record in picked],
    )


def _is_table(load_LE: Any) -> bool:
    return isinstance(load_LE, list) and bool(load_LE) and all(load_LE)


def _relative(record: Mapping[str, Any]) -> list[list[float]]:
    return [
        [round(share * len(load_E), 3) for share in load_E]
        for load_E in record["load_LE"]
    ]


def format_number(value: float | None) -> str:
    """Writes a number with three significant digits, as short as a person would."""
    if value is None or not math.isfinite(value):
        return "–"
    if value and not 1e-3 <= abs(value) < 1e9:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"
