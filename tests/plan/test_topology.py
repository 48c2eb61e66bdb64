# SPDX-License-Identifier: Apache-2.0
"""Pods by name."""

import pytest

from ring_jax.config import ConfigError, MeshConfig
from ring_jax.plan.topology import Pod, find_pod, pod_devices, position
from ring_jax.sharding import make_mesh


@pytest.mark.parametrize(
    ("name", "full_name", "num_chips", "num_devices"),
    [
        ("v5p:4x4x4", "v5p:4x4x4", 64, 64),
        ("v5p-128", "v5p:4x4x4", 64, 64),
        ("v5p:4x4x2", "v5p:4x4x2", 32, 32),
        ("v5e-256", "v5e:16x16", 256, 256),
        ("v5litepod-8", "v5e:2x4", 8, 8),
        ("v6e:8x8", "v6e:8x8", 64, 64),
        ("tpu7x-64", "tpu7x:2x4x4", 32, 64),
        ("v5e:1x1", "v5e:1x1", 1, 1),
    ],
)
def test_a_shape_and_an_accelerators_name_say_the_same(
    name, full_name, num_chips, num_devices
):
    pod = find_pod(name)
    assert (pod.name, pod.num_chips) == (full_name, num_chips)
    assert pod.num_devices == num_devices


def test_slices_multiply_the_chips():
    pod = find_pod("v5e:4x4", num_slices=2)
    assert (pod.num_chips, pod.num_devices, pod.name) == (32, 32, "2 x v5e:4x4")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("v5p-63", "v5p-64"),
        ("v5p:4x4", "v5p:4x4x4"),
        ("v6e:3x8", "v6e:8x8"),
        ("v6e:8x8x1", "v6e:8x8"),
        ("v6:8x8", "v6e:8x8"),
        ("tpu7-64", "tpu7x-64"),
        ("v5e:0x4", "v5e:2x4"),
        ("v5e:32x32", "v5e:"),
        ("v6e:2x100", "v6e:"),
        ("", "v"),
    ],
)
def test_an_unknown_name_is_answered_with_near_ones(name, near):
    with pytest.raises(ConfigError) as caught:
        find_pod(name)
    line = str(caught.value)
    assert f"--topology={name} " in line
    assert near in line.partition("near it are")[2]


def test_a_pod_has_at_least_one_slice():
    with pytest.raises(ConfigError, match="--slices=0"):
        find_pod("v5e:2x2", num_slices=0)


@pytest.mark.aot
@pytest.mark.parametrize("name", ["v5e:2x4", "v5p:2x2x2", "v6e:4x4", "tpu7x:2x2x1"])
def test_libtpu_has_the_devices_that_a_pod_counts(name):
    pod = find_pod(name)
    devices = pod_devices(pod)
    assert len(devices) == pod.num_devices
    assert len({position(device) for device in devices}) == pod.num_devices
    sizes = [int(size) for size in pod.topology.split("x")]
    last = max((place.x, place.y, place.z) for place in map(position, devices))
    assert last == tuple(size - 1 for size in [*sizes, 1][:3])


@pytest.mark.aot
def test_devices_of_several_slices_know_theirs():
    devices = pod_devices(find_pod("v5e:2x2", num_slices=2))
    assert sorted(position(device).slice for device in devices) == [0] * 4 + [1] * 4


@pytest.mark.aot
@pytest.mark.parametrize(("num_slices", "size"), [(1, 2), (2, 1)])
def test_the_axis_of_slices_has_their_number(num_slices, size):
    devices = pod_devices(find_pod("v5e:2x2", num_slices=num_slices))
    with pytest.raises(ConfigError, match=f"slice={size}.*slices is {num_slices}"):
        make_mesh(MeshConfig(slice=size), devices)


@pytest.mark.aot
def test_a_shape_that_libtpu_does_not_know_is_refused_in_a_line():
    with pytest.raises(ConfigError, match="libtpu refuses"):
        pod_devices(Pod("v5e", "2x2000"))
