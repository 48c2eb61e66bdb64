# SPDX-License-Identifier: Apache-2.0
"""What a run says of its devices and its compiler before it begins."""

from ring_jax.cli.train import _compiler_flags
from ring_jax.cluster import find_preset


def test_the_preset_s_flags_and_the_user_s_own_are_told_apart():
    flags = " ".join(find_preset("v5p").flags)
    (line,) = _compiler_flags(
        {"RING_XLA_PRESET": "v5p", "LIBTPU_INIT_ARGS": f"{flags} --own=1"}
    )
    assert line == f"LIBTPU_INIT_ARGS: preset v5p: {flags} and --own=1"


def test_flags_without_a_preset_are_named_and_none_are_silent():
    assert _compiler_flags({"XLA_FLAGS": "--a=1 --b"}) == ["XLA_FLAGS: --a=1 --b"]
    assert _compiler_flags({"RING_XLA_PRESET": "none"}) == []
