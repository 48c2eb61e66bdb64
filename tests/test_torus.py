# SPDX-License-Identifier: Apache-2.0
"""Devices of a torus in the shape of a mesh."""

import dataclasses

import numpy as np
import pytest

from ring_jax import torus


@dataclasses.dataclass(frozen=True)
class Chip:
    coords: tuple[int, ...]
    core_on_chip: int = 0


def chips(*shape: int, cores: int = 1) -> list[Chip]:
    return [
        Chip(tuple(map(int, place)), core)
        for place in np.ndindex(*shape)
        for core in range(cores)
    ]


def sizes(**given: int) -> dict[str, int]:
    axes = ("data", "fsdp", "context", "expert", "tensor")
    return {axis: given.get(axis, 1) for axis in axes}


@pytest.mark.parametrize(
    "shape, cores, mesh",
    [
        ((4, 4, 2), 1, {"fsdp": 8, "expert": 4}),
        ((16, 16), 1, {"fsdp": 16, "context": 4, "expert": 4}),
        ((8, 8), 1, {"data": 2, "fsdp": 32}),
        ((2, 4, 4), 2, {"fsdp": 16, "expert": 4}),
        ((2, 2, 1), 1, {"tensor": 2, "fsdp": 2}),
    ],
)
def test_every_device_has_one_place(shape, cores, mesh):
    devices = chips(*shape, cores=cores)
    arranged = torus.arrange(devices, sizes(**mesh))
    assert arranged.shape == tuple(sizes(**mesh).values())
    assert set(arranged.flat) == set(devices)


def test_four_experts_stand_in_a_square_of_neighbours():
    arranged = torus.arrange(chips(4, 4, 2), sizes(fsdp=8, expert=4))
    for group in arranged.reshape(8, 4):
        places = np.array([chip.coords for chip in group])
        assert sorted(np.ptp(places, axis=0)) == [0, 1, 1]


def test_an_axis_of_the_mesh_is_spread_over_the_torus():
    arranged = torus.arrange(chips(4, 4, 4), sizes(fsdp=8, data=8))
    places = np.array([chip.coords for chip in arranged.reshape(8, 8)[0]])
    assert list(np.ptp(places, axis=0)) == [1, 1, 1]


def test_devices_that_fill_no_box_are_left_to_jax():
    devices = chips(2, 2)[:3]
    with pytest.raises(ValueError, match="mesh_shape|devices|number"):
        torus.arrange(devices, sizes(fsdp=4))
