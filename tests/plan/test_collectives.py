# SPDX-License-Identifier: Apache-2.0
"""Groups, axes, bytes and times of collectives, against answers worked out by hand."""

import itertools

import pytest

from pallas_kernels.hardware import TPUS
from ring_jax.plan.collectives import Collective, read_collective
from ring_jax.plan.device_groups import mesh_axes, replica_groups
from ring_jax.plan.hlo import Instruction, parse_module
from ring_jax.plan.links import HOP_SECONDS, PlacedMesh

V5P, V6E = TPUS["TPU v5p"], TPUS["TPU v6 lite"]
RING_3D = '{"emitter":"RotatedPincerEmitter","debug":"active_dims:111 dim_sizes:4,4,4"}'
RING_1D = '{"emitter":"1DAllGatherNonMajorDimImbalanced","debug":"group_size = 8"}'


def placed(mesh_shape: dict[str, int], torus, *, tpu=V5P, num_slices=1) -> PlacedMesh:
    """Places a mesh on slices in the order of coordinates."""
    x, y, z = map(range, torus)
    places = itertools.product(range(num_slices), x, y, z, range(1))
    return PlacedMesh(mesh_shape, tuple(places), tpu)


def instruction(line: str) -> Instruction:
    module = parse_module(
        "HloModule m, is_scheduled=true\n\nENTRY %main () -> f32[] {\n"
        f"  %a = bf16[8192,8192]{{1,0}} parameter(0)\n  ROOT {line}\n}}\n"
    )
    return module.entry.root


def collective(line: str, mesh: PlacedMesh) -> Collective:
    module = parse_module(
        "HloModule m, is_scheduled=true\n\nENTRY %main () -> f32[] {\n"
        f"  %a = bf16[8192,8192]{{1,0}} parameter(0)\n  ROOT {line}\n}}\n"
    )
    found = read_collective(module.entry.root, module.entry, mesh)
    assert found is not None
    return found


OPERAND_BYTES = 2 * 8192 * 8192


@pytest.mark.parametrize(
    ("groups", "expected"),
    {
        "written": ("{{0,1},{2,3}}", [[0, 1], [2, 3]]),
        "iota": ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        "transposed iota": ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        "axes": ("mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        "other axis": ("mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        "both axes": ("mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        "part of an axis": ("mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        "devices in another order": (
            "mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}",
            [[0, 2], [1, 3]],
        ),
        "all": ("{}", [[0, 1, 2, 3]]),
    }.values(),
)
def test_every_form_of_groups_is_read(groups, expected):
    line = f"%g = bf16[2048,512]{{1,0}} all-gather(%a), replica_groups={groups}"
    found = replica_groups(instruction(line + ", dimensions={0}"), 4)
    assert found == expected


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ([[0, 1], [2, 3], [4, 5], [6, 7]], ("c",)),
        ([[0, 4], [1, 5], [2, 6], [3, 7]], ("a",)),
        ([[0, 1, 4, 5], [2, 3, 6, 7]], ("a", "c")),
        ([[0, 1, 2, 3, 4, 5, 6, 7]], ("a", "b", "c")),
        ([[0]], ()),
    ],
)
def test_axes_are_those_along_which_members_differ(groups, axes):
    assert mesh_axes(groups, {"a": 2, "b": 2, "c": 2}) == axes


def test_a_part_of_an_axis_is_named_with_its_size():
    groups = [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert mesh_axes(groups, {"data": 1, "fsdp": 8}) == ("fsdp:4",)


@pytest.mark.parametrize(
    ("torus", "tpu", "closes"),
    [
        ((4, 4, 4), V5P, (True, True, True)),
        # Half a cube has no faces at which the links could close.
        ((2, 4, 4), V5P, (False, False, False)),
        ((8, 16, 1), V6E, (False, True, False)),
    ],
)
def test_only_axes_with_wrap_around_links_close(torus, tpu, closes):
    size = torus[0] * torus[1] * torus[2]
    assert placed({"fsdp": size}, torus, tpu=tpu).closes() == closes


@pytest.mark.parametrize(
    ("torus", "links"),
    # Both ways along each of three axes, or one way where the axis is a line.
    [((4, 4, 4), 6), ((2, 4, 4), 3)],
)
def test_an_all_reduce_uses_all_axes_that_the_compiler_names(torus, links):
    size = torus[0] * torus[1] * torus[2]
    line = (
        "%r = bf16[8192,8192]{1,0} all-reduce(%a), "
        f"replica_groups=[1,{size}]<=[{size}], backend_config={RING_3D}"
    )
    found = collective(line, placed({"fsdp": size}, torus))
    assert found.axes == ("fsdp",)
    assert found.wire_bytes == 2 * OPERAND_BYTES * (size - 1) // size
    seconds = found.wire_bytes / (links * V5P.link_bytes_per_second)
    assert found.seconds == pytest.approx(seconds)


def test_a_one_dimensional_all_gather_goes_round_a_ring_of_neighbours():
    mesh = placed({"fsdp": 8}, (2, 4, 1))
    line = (
        "%g = bf16[8192,512]{1,0} all-gather(%a), replica_groups=[1,8]<=[8], "
        f"dimensions={{0}}, backend_config={RING_1D}"
    )
    found = collective(line, mesh)
    assert found.wire_bytes == 7 * OPERAND_BYTES
    seconds = found.wire_bytes / (2 * V5P.link_bytes_per_second)
    assert found.seconds == pytest.approx(seconds)


def test_a_collective_over_a_part_of_a_torus_axis_runs_on_a_line():
    # Groups of two neighbours along z: one link one way each.
    mesh = placed({"data": 32, "expert": 2}, (4, 4, 4))
    line = "%r = bf16[512,512]{1,0} reduce-scatter(%a), replica_groups=[32,2]<=[64]"
    found = collective(line + ", dimensions={0}", mesh)
    assert found.axes == ("expert",)
    assert found.wire_bytes == OPERAND_BYTES // 2
    seconds = found.wire_bytes / V5P.link_bytes_per_second
    assert found.seconds == pytest.approx(seconds)


def test_a_collective_over_slices_waits_for_the_network():
    # Four chips a slice: each carries a quarter of the reduced array between slices.
    mesh = placed({"slice": 2, "fsdp": 4}, (2, 2, 1), num_slices=2)
    line = "%r = bf16[8192,8192]{1,0} all-reduce(%a), replica_groups=[1,8]<=[8]"
    found = collective(line, mesh)
    assert found.is_over_network
    assert found.axes == ("slice", "fsdp")
    network = OPERAND_BYTES / 4 / V5P.network_bytes_per_second
    inside = 2 * 3 / 4 * OPERAND_BYTES / (2 * V5P.link_bytes_per_second)
    assert found.seconds == pytest.approx(network + inside)


def test_an_all_to_all_is_bound_by_the_links_across_the_middle():
    mesh = placed({"expert": 16}, (1, 16, 1), tpu=V6E)
    line = "%t = bf16[8192,8192]{1,0} all-to-all(%a), replica_groups=[1,16]<=[16]"
    found = collective(line, mesh)
    # Half of 16 devices send half their bytes across; two cuts of two ways each.
    crossing = 16 / 2 * OPERAND_BYTES / 2
    seconds = crossing / (2 * V6E.link_bytes_per_second)
    assert found.seconds == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("pairs", "load"),
    {
        # Each to its right neighbour, the last one home over the unused way back.
        "shift of a line": ([(0, 1), (1, 2), (2, 3), (3, 0)], 1),
        # Both cross the middle link the same way.
        "shift by two": ([(0, 2), (1, 3)], 2),
    }.values(),
)
def test_a_permutation_takes_as_long_as_its_busiest_link(pairs, load):
    text = ",".join(f"{{{a},{b}}}" for a, b in pairs)
    line = (
        "%p = (bf16[8192,8192]{1,0}, bf16[8192,8192]{1,0}) collective-permute-start"
        f"(%a), source_target_pairs={{{text}}}"
    )
    found = collective(line, placed({"context": 4}, (4, 1, 1)))
    assert found.kind == "collective-permute"
    assert found.axes == ("context",)
    seconds = load * OPERAND_BYTES / V5P.link_bytes_per_second
    assert found.seconds == pytest.approx(seconds)


def test_a_small_collective_takes_the_time_of_its_hops():
    line = "%r = f32[8]{0} all-reduce(%small), replica_groups=[1,16]<=[16]"
    mesh = placed({"fsdp": 16}, (1, 16, 1), tpu=V6E)
    text = (
        "HloModule m, is_scheduled=true\n\nENTRY %main () -> f32[] {\n"
        f"  %small = f32[8]{{0}} parameter(0)\n  ROOT {line}\n}}\n"
    )
    module = parse_module(text)
    found = read_collective(module.entry.root, module.entry, mesh)
    assert found is not None
    # Half way round the ring of 16.
    assert found.seconds == pytest.approx(8 * HOP_SECONDS)


def shift(step: int) -> str:
    pairs = ",".join(f"{{{i},{(i + step) % 4}}}" for i in range(4))
    return (
        "%p = (bf16[8192,8192]{1,0}, bf16[8192,8192]{1,0}) collective-permute-start"
        f"(%a), source_target_pairs={{{pairs}}}"
    )


def test_shifts_both_ways_use_different_links_of_a_ring_and_the_same_of_a_line():
    ring = placed({"context": 4, "data": 16}, (4, 4, 4))
    # The first four places are a line along z.
    ring_pairs = PlacedMesh({"context": 4}, ring.coordinates[:4], V5P)
    assert ring.closes() == (True, True, True)
    right, left = (collective(shift(step), ring) for step in (1, -1))
    assert (right.links, left.links) == (("z+",), ("z-",))
    line = [collective(shift(step), ring_pairs).links for step in (1, -1)]
    assert line == [("z+", "z-"), ("z+", "z-")]


def test_other_instructions_are_no_collectives():
    add = instruction("%b = bf16[8192,8192]{1,0} add(%a, %a)")
    module = parse_module(
        "HloModule m, is_scheduled=true\n\nENTRY %m () -> f32[] {\n"
        "  ROOT %a = f32[] constant(1)\n}\n"
    )
    assert read_collective(add, module.entry, placed({"fsdp": 4}, (4, 1, 1))) is None
