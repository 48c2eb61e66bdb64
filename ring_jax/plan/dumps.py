# SPDX-License-Identifier: Apache-2.0
"""The compiler's final bundles of a step's operations, and how long each runs.

libtpu dumps one file for each piece of code, named after the instruction it was
generated for. Instructions that are equal but for names share one piece, so that an
instruction without a file of its own is timed by that of its twin.

The time is that of `pallas_kernels/schedule`: the scalar program is executed, a bundle
a cycle, on the slowest core. Scalar operands that nobody knows (offsets of slices) are
0: they move addresses and change no path.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pallas_kernels.hardware import Tpu
from pallas_kernels.schedule import UnknownValueError, timeline
from pallas_kernels.schedule.blocks import Blocks
from pallas_kernels.schedule.bundles import Program, read_program
from ring_jax.plan.hlo import Computation, Instruction, Module

NOISE = (
    "metadata",
    "frontend_attributes",
    "backend_config",
    "sharding",
    "calls",
    "to_apply",
    "called_computations",
    "channel_id",
    "control-predecessors",
)
"""Attributes in which twins may differ."""

_FILE = re.compile(r"^\d+-(.*)-\d+-final_bundles\.txt$")
_KERNEL_BODY = re.compile(r'"body":"([^"]*)"')


class Dumps:
    """A folder of dumps, read file by file as operations ask for them."""

    def __init__(self, module: Module, folder: Path, tpu: Tpu):
        self._module = module
        self._tpu = tpu
        self._files = {
            match.group(1): path
            for path in sorted(folder.iterdir())
            if (match := _FILE.match(path.name))
        }
        self._shapes: dict[str, tuple] = {}
        self._twins = self._index_twins()
        self._outcomes: dict[tuple, float | UnknownValueError] = {}

    def find(self, instruction: Instruction, computation: Computation) -> Path | None:
        """Returns the dump of an instruction, or of its twin."""
        if instruction.name in self._files:
            return self._files[instruction.name]
        return self._twins.get(self._signature(instruction, computation))

    def seconds(
        self, path: Path, scalars: Mapping[int, np.ndarray] | None = None
    ) -> float:
        """Returns how long a dumped operation runs, on the slowest core that is known.

        Args:
          path: of `find`.
          scalars: operand number -> i32 values; None: all are 0.

        Raises:
          UnknownValueError: the first core's path depends on more than `scalars`.
        """
        given = () if scalars is None else scalars.items()
        key = path, *((number, values.tobytes()) for number, values in given)
        if key not in self._outcomes:
            self._outcomes[key] = self._run(read_program(path), scalars)
        outcome = self._outcomes[key]
        if isinstance(outcome, UnknownValueError):
            raise outcome
        return outcome

    def _run(
        self, program: Program, scalars: Mapping[int, np.ndarray] | None
    ) -> float | UnknownValueError:
        if scalars is None:
            sizes = program.scalar_sizes.items()
            scalars = {number: np.zeros(size, int) for number, size in sizes}
        blocks = Blocks(
            program,
            cycles_per_matmul=self._tpu.cycles_per_matmul,
            num_delay_slots=self._tpu.num_delay_slots,
        )
        slowest = 0.0
        for core in range(self._tpu.num_cores):
            try:
                line = timeline.run(blocks, scalars, tpu=self._tpu, core=core)
            except UnknownValueError as error:
                # Where the first core fetches for all, the others cannot be run alone.
                return error if core == 0 else slowest
            slowest = max(slowest, line.seconds)
        return slowest

    def _index_twins(self) -> dict[tuple, Path]:
        twins = {}
        for computation in self._module.computations.values():
            for instruction in computation.instructions:
                if path := self._files.get(instruction.name):
                    twins.setdefault(self._signature(instruction, computation), path)
        return twins

    def _signature(self, instruction: Instruction, computation: Computation) -> tuple:
        operands = tuple(
            computation.by_name[name].result for name in instruction.operands
        )
        called = tuple(self._shape_of(name) for name in instruction.called)
        body = _KERNEL_BODY.search(instruction.attributes)
        return (
            instruction.opcode,
            instruction.result,
            operands,
            _essence(instruction),
            body.group(1) if body else "",
            called,
        )

    def _shape_of(self, name: str) -> tuple:
        """Returns a computation without its names."""
        if name not in self._shapes:
            self._shapes[name] = self._work_out_shape(name)
        return self._shapes[name]

    def _work_out_shape(self, name: str) -> tuple:
        computation = self._module.computations[name]
        place = {i.name: n for n, i in enumerate(computation.instructions)}
        return tuple(
            (
                instruction.opcode,
                instruction.result,
                tuple(place[operand] for operand in instruction.operands)
                or instruction.operand_text,
                _essence(instruction),
                tuple(self._shape_of(called) for called in instruction.called),
            )
            for instruction in computation.instructions
        )


def _essence(instruction: Instruction) -> tuple[tuple[str, str], ...]:
    """Returns the attributes that change what is computed."""
    return tuple(
        (name, text)
        for name, text in instruction.attribute_texts.items()
        if name not in NOISE
    )
