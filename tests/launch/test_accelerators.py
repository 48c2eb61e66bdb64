# SPDX-License-Identifier: Apache-2.0
"""Slices by name."""

import pytest

from ring_jax.cluster import GENERATIONS, Slice, UnknownNameError, find_slice


@pytest.mark.parametrize(
    ("name", "topology", "num_chips", "num_hosts"),
    [
        ("v5p-64", "2x4x4", 32, 8),
        ("v6e-256", "16x16", 256, 64),
        ("v5e-256", "16x16", 256, 64),
        ("v5litepod-8", "2x4", 8, 2),
        ("tpu7x-128", "4x4x4", 64, 16),
    ],
)
def test_a_name_counts_cores_or_chips_as_its_generation_does(
    name, topology, num_chips, num_hosts
):
    found = find_slice(name)
    assert found.topology == topology
    assert (found.num_chips, found.num_hosts) == (num_chips, num_hosts)


@pytest.mark.parametrize("generation", GENERATIONS.values(), ids=GENERATIONS)
def test_each_size_has_one_topology_and_finds_it_again(generation):
    slices = [Slice(generation, topology) for topology in generation.topologies]
    assert len({candidate.name for candidate in slices}) == len(slices)
    assert all(find_slice(candidate.name) == candidate for candidate in slices)


@pytest.mark.parametrize("name", ["v5p", "v5p-", "v5p-63", "v9-8", "", "v6e-0256"])
def test_an_unknown_name_is_answered_with_those_that_there_are(name):
    with pytest.raises(UnknownNameError, match=r"v6e-256|v5p-64"):
        find_slice(name)
