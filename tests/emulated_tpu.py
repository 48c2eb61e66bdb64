# SPDX-License-Identifier: Apache-2.0
"""A TPU that is not there: its kernels run in Pallas's interpreter."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import hardware

CHIPS = {"one_core": "TPU v6 lite", "two_cores": "TPU v5p"}


def cases(values: Iterable[Any], *, slow: Sequence[str] = ("one_core",)) -> list[Any]:
    """Returns parameters of tests; those that name what is `slow` are marked so.

    A kernel on one core does what each of two does: the default run emulates the two.
    """
    return [
        pytest.param(
            value,
            marks=[pytest.mark.slow]
            if any(name in str(value) for name in slow)
            else [],
        )
        for value in values
    ]


@contextlib.contextmanager
def emulated(chip: str, *, detect_races: bool = True) -> Iterator[hardware.Tpu]:
    """Emulates a chip of `hardware.TPUS` with all its cores.

    Memory that nobody wrote is NaN; a read outside an array is an error.
    """
    with hardware.pretend(chip) as found:
        params = pltpu.InterpretParams(
            detect_races=detect_races,
            num_cores_or_threads=found.num_cores,
            uninitialized_memory="nan",
            out_of_bounds_reads="raise",
        )
        with pltpu.force_tpu_interpret_mode(params):
            yield found
    pltpu.reset_tpu_interpret_mode_state()
