# SPDX-License-Identifier: Apache-2.0
"""Geometry of a radar chart, in units of its SVG box; the template draws it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

WIDTH, HEIGHT = 430, 310
_CENTRE = (WIDTH / 2, HEIGHT / 2)
_RADIUS = 125

MIN_AXES = 3
"""Fewer directions span no area."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """One direction: its end, and where its name stands."""

    name: str
    x: float
    y: float
    text_x: float
    text_y: float
    anchor: Literal["start", "middle", "end"]


@dataclasses.dataclass(frozen=True)
class Outline:
    """The scores of one model: closed where it has all, else broken at what lacks."""

    name: str
    slot: int
    is_reference: bool
    path: str
    is_closed: bool
    dots: Sequence[tuple[float, float, str]]
    """Place and text of each score."""


@dataclasses.dataclass(frozen=True)
class Radar:
    """Scores of several models over the same directions, 0 in the middle."""

    axes: Sequence[Axis]
    rings: Sequence[tuple[float, str]]
    """Score as text -> the path of its ring, as (label height, path)."""
    outlines: Sequence[Outline]
    chance: str
    """Path through the chance levels; empty where one is not known."""
    centre: tuple[float, float] = _CENTRE
    box: str = f"0 0 {WIDTH} {HEIGHT}"


@dataclasses.dataclass(frozen=True)
class Scores:
    """What one model scored along each direction; None where it has no score."""

    name: str
    slot: int
    is_reference: bool
    values: Sequence[float | None]


def radar(
    names: Sequence[str], models: Sequence[Scores], chances: Sequence[float | None]
) -> Radar | None:
    """Lays out a radar chart; None for fewer than `MIN_AXES` directions."""
    if len(names) < MIN_AXES:
        return None
    known = [chance for chance in chances if chance is not None]
    return Radar(
        axes=[_axis(name, i, len(names)) for i, name in enumerate(names)],
        rings=[
            (round(_CENTRE[1] - _RADIUS * share, 1), _path([share] * len(names))[0])
            for share in (0.25, 0.5, 0.75, 1.0)
        ],
        outlines=[_outline(model, names) for model in models],
        chance=_path(chances)[0] if len(known) == len(names) else "",
    )


def _place(index: int, count: int, share: float) -> tuple[float, float]:
    angle = 2 * math.pi * index / count - math.pi / 2
    x = _CENTRE[0] + _RADIUS * share * math.cos(angle)
    y = _CENTRE[1] + _RADIUS * share * math.sin(angle)
    return round(x, 1), round(y, 1)


def _axis(name: str, index: int, count: int) -> Axis:
    x, y = _place(index, count, 1.0)
    text_x, text_y = _place(index, count, 1.1)
    across = text_x - _CENTRE[0]
    anchor = "middle" if abs(across) < 8 else "start" if across > 0 else "end"
    return Axis(name, x, y, text_x, text_y, anchor)


def _outline(model: Scores, names: Sequence[str]) -> Outline:
    path, is_closed = _path(model.values)
    dots = [
        (*_place(i, len(names), value), f"{model.name}, {name}: {100 * value:.1f} %")
        for i, (name, value) in enumerate(zip(names, model.values, strict=True))
        if value is not None
    ]
    return Outline(model.name, model.slot, model.is_reference, path, is_closed, dots)


def _path(values: Sequence[float | None]) -> tuple[str, bool]:
    count = len(values)
    places = [None if v is None else _place(i, count, v) for i, v in enumerate(values)]
    if None not in places:
        return f"M{'L'.join(f'{p[0]:g} {p[1]:g}' for p in places if p)}Z", True
    edges = [
        f"M{a[0]:g} {a[1]:g}L{b[0]:g} {b[1]:g}"
        for i, a in enumerate(places)
        if a and (b := places[(i + 1) % count])
    ]
    return "".join(edges), False
