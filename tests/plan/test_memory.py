# SPDX-License-Identifier: Apache-2.0
"""Memory by category, from texts as libtpu writes them."""

import dataclasses
import pathlib

import pytest

from ring_jax.plan.memory import (
    ATTRIBUTED,
    EXACT,
    PROGRAM,
    read_arguments,
    read_memory,
    undonated,
)

SAMPLES = pathlib.Path(__file__).with_name("samples")
HLO = (SAMPLES / "step.hlo").read_text("utf-8")
ASSIGNMENT = (SAMPLES / "buffer_assignment.txt").read_text("utf-8")
# The backward pass begins at 20, and the heap is fullest at 30.
LIVE_RANGES = (SAMPLES / "live_ranges.txt").read_text("utf-8")


@pytest.fixture
def memory():
    return read_memory(HLO, ASSIGNMENT, LIVE_RANGES, program_bytes=100, limit=10**6)


def test_what_has_an_allocation_of_its_own_is_counted_with_its_padding(memory):
    sizes = [memory.categories[name] for name in EXACT]
    assert sizes == [8192, 8192, 512, 4096, 1024, 512]
    assert memory.categories[PROGRAM] == 100


def test_the_heap_is_attributed_and_nothing_of_it_is_lost(memory):
    # kept is made before the backward pass and used in it; the loop carries g.1 on.
    assert memory.categories["activations"] == 16384
    assert memory.categories["gradients"] == 8192
    assert sum(memory.categories[name] for name in ATTRIBUTED) == 65536


def test_the_total_is_that_of_the_allocations_in_hbm(memory):
    allocated = 2 * 8192 + 512 + 4096 + 512 + 1024 + 65536
    assert memory.total == allocated + 100
    assert memory.spare_share == pytest.approx(1 - memory.total / 10**6)


def test_the_largest_buffers_come_first_with_their_source(memory):
    first, second, *_ = memory.largest
    assert (first.num_bytes, first.shape) == (32768, "bf16[128,128]")
    assert (second.category, second.source) == (
        "activations",
        "jit(train_step)/jvp()/while",
    )
    sizes = [buffer.num_bytes for buffer in memory.largest]
    assert sizes == sorted(sizes, reverse=True)


def test_an_activation_that_the_backward_pass_does_not_use_is_temporary():
    forward_only = LIVE_RANGES.replace("kept{}:5-40", "kept{}:5-19")
    found = read_memory(HLO, ASSIGNMENT, forward_only, program_bytes=0, limit=1)
    # Then the heap is fullest in the forward pass, with the logits.
    assert found.categories["activations"] == 0
    assert found.categories["gradients"] == 0
    assert found.categories["temporaries"] == 65536


def test_an_activation_that_a_loop_hands_on_is_one_at_every_moment():
    handed_on = ASSIGNMENT.replace(
        "\nTotal",
        " value: <13 loop{1} (phi) @0> (size=16384,offset=0): bf16[4,16,128]\n\nTotal",
    )
    # The heap is fullest in the forward pass now.
    ranges = LIVE_RANGES.replace("kept{}:5-40", "kept{}:5-15")
    ranges = ranges.replace("rest{}:30-31", "rest{}:11-12\n    loop{1}:16-40")
    found = read_memory(HLO, handed_on, ranges, program_bytes=0, limit=1)
    assert found.categories["activations"] == 16384


def test_an_operation_that_was_hoisted_does_not_begin_the_backward_pass():
    hoisted = ASSIGNMENT.replace(
        "\nTotal", " value: <13 g.2 @0> (size=512,offset=65024): f32[9]{0}\n\nTotal"
    )
    early = LIVE_RANGES.replace("    kept{}:5-40", "    g.2{}:2-3\n    kept{}:5-40")
    hlo = HLO.replace(
        "  %loop =",
        '  %g.2 = f32[9]{0} fusion(%w), metadata={op_name="jit/transpose(jvp())"}\n'
        "  %loop =",
    )
    found = read_memory(hlo, hoisted, early, program_bytes=0, limit=1)
    assert found.categories["activations"] == 16384


def test_arguments_are_named_and_sorted_into_parts():
    found = [(a.number, a.category, a.dims) for a in read_arguments(HLO)]
    assert found == [
        (0, "weights", (2, 8, 128)),
        (1, "moments", (2, 8, 128)),
        (2, "other state", ()),
        (3, "batch", (4, 16)),
    ]


def test_state_without_a_result_in_its_place_was_not_donated():
    assert undonated(HLO) == ["state.step"]
    assert undonated(HLO.replace("{1}: (1", "{1}: (2")) == [
        "state.opt_state[1].mu.up_DF.value"
    ]


def test_memory_survives_the_way_through_json(memory):
    tree = dataclasses.asdict(memory)
    assert tree["categories"] == memory.categories
    assert tree["largest"][0]["num_bytes"] == memory.largest[0].num_bytes
