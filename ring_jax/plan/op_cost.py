# SPDX-License-Identifier: Apache-2.0
"""How long one operation of a step keeps its core busy, and how that is known.

In order of preference:

    bundles      the compiler's own code of it, executed (`dumps.py`)
    roofline     max(FLOPs / peak, bytes / HBM's bandwidth): no code was dumped, or its
                 path depends on data
    cycles       the compiler's "estimated_cycles": only for what takes under
                 `SMALL_SECONDS` a step, since it is 2 to 3 times too high for
                 operations that HBM bounds
    unknown      its bytes / HBM's bandwidth: a kernel whose scalar operands nobody
                 knows, or whose path depends on more

An operation that the compiler folds into its neighbours' code (bitcasts, scalars)
costs nothing.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from pallas_kernels.hardware import Tpu
from pallas_kernels.schedule import UnknownValueError
from ring_jax.plan.dumps import Dumps
from ring_jax.plan.hlo import HBM, Computation, Instruction, Module, Shape

SMALL_SECONDS = 1e-4
"""Per step; below it an operation's dump is not read."""
SCALAR_BYTES = 1024
"""Results up to this size live in registers or scalar memory."""
NO_WORK = (
    "parameter",
    "constant",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "add-dependency",
)
_WINDOW = re.compile(r"\b(\w+)=(-?\d[-\dx_]*)")
_DIM_LABELS = re.compile(r"^(\w+)_(\w+)->(\w+)$")

Source = Literal["bundles", "roofline", "cycles", "unknown", "nothing"]
KernelScalars = Callable[[Instruction, Computation], Mapping[int, np.ndarray] | None]
"""(Pallas kernel, where it stands) -> its scalar operands by number; None: unknown."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds of one run of an operation."""

    seconds: float
    source: Source
    reason: str = ""
    """Why the code of an operation of weight could not be executed."""


FREE = Cost(0.0, "nothing")


class OpCosts:
    """Costs of a module's operations on a chip."""

    def __init__(
        self,
        module: Module,
        tpu: Tpu,
        dumps: Dumps | None,
        kernel_scalars: KernelScalars,
    ):
        self._module = module
        self._tpu = tpu
        self._dumps = dumps
        self._kernel_scalars = kernel_scalars

    def cost(
        self, instruction: Instruction, computation: Computation, *, times: float
    ) -> Cost:
        """Returns what an operation costs that runs so many times a step."""
        if instruction.opcode in NO_WORK:
            return FREE
        if instruction.custom_call_target == "AllocateBuffer":
            return FREE
        if instruction.is_pallas:
            return self._kernel_cost(instruction, computation)
        roofline = self.roofline_seconds(instruction, computation)
        cycles = instruction.estimated_cycles or 0
        compiler_seconds = cycles / self._tpu.clock_hz
        if times * max(roofline, compiler_seconds) < SMALL_SECONDS:
            return self._small_cost(instruction, roofline, compiler_seconds)
        try:
            return Cost(self._dumped_seconds(instruction, computation), "bundles")
        except UnknownValueError as error:
            return Cost(roofline, "roofline", str(error))

    def roofline_seconds(
        self, instruction: Instruction, computation: Computation
    ) -> float:
        """Returns max(FLOPs / peak, bytes / bandwidth of HBM)."""
        return max(
            num_flops(instruction, computation, self._module)
            / self._tpu.flops_per_second,
            hbm_bytes(instruction, computation, self._module)
            / self._tpu.hbm_bytes_per_second,
        )

    @staticmethod
    def _small_cost(
        instruction: Instruction, roofline: float, compiler_seconds: float
    ) -> Cost:
        if instruction.num_bytes <= SCALAR_BYTES and not compiler_seconds:
            return FREE
        if compiler_seconds:
            return Cost(compiler_seconds, "cycles")
        return Cost(roofline, "roofline")

    def _dumped_seconds(
        self,
        instruction: Instruction,
        computation: Computation,
        scalars: Mapping[int, np.ndarray] | None = None,
    ) -> float:
        """Runs the code of an operation.

        Raises:
          UnknownValueError: there is none, or its path depends on more than `scalars`.
        """
        if self._dumps is not None:
            path = self._dumps.find(instruction, computation)
            if path is not None:
                return self._dumps.seconds(path, scalars)
        raise UnknownValueError(f"{instruction.name}: its code was not dumped.")

    def _kernel_cost(self, instruction: Instruction, computation: Computation) -> Cost:
        scalars = self._kernel_scalars(instruction, computation)
        if scalars is None:
            reason = f"{instruction.name}: nobody says what its scalar operands are."
        else:
            try:
                seconds = self._dumped_seconds(instruction, computation, scalars)
                return Cost(seconds, "bundles")
            except UnknownValueError as error:
                reason = str(error)
        num_bytes = hbm_bytes(instruction, computation, self._module)
        return Cost(num_bytes / self._tpu.hbm_bytes_per_second, "unknown", reason)


def num_flops(
    instruction: Instruction, computation: Computation, module: Module
) -> float:
    """Returns the FLOPs of the matrix products in an operation."""
    if instruction.opcode == "dot":
        return _dot_flops(instruction, computation)
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction, computation)
    if instruction.opcode not in ("fusion", "call"):
        return 0.0
    return sum(
        num_flops(inner, called, module)
        for called in module.called(instruction)
        for inner in called.instructions
    )


def _dot_flops(instruction: Instruction, computation: Computation) -> float:
    shape = computation.by_name[instruction.operands[0]].shapes[0]
    dims = instruction.attribute_texts.get("lhs_contracting_dims", "{}")
    contracted = (shape.dims[int(n)] for n in re.findall(r"\d+", dims))
    return 2.0 * instruction.shapes[0].num_elements * math.prod(contracted)


def _convolution_flops(instruction: Instruction, computation: Computation) -> float:
    """Two for each product; one with padding, or a hole of a dilated operand, is none.

    The compiler writes products of more than two dimensions as convolutions.
    """
    data, kernel = (
        computation.by_name[name].shapes[0] for name in instruction.operands
    )
    labels = _DIM_LABELS.match(instruction.attribute_texts.get("dim_labels", ""))
    if labels is None:
        return 0.0
    data_labels, kernel_labels, labels = labels.groups()
    result, window = (
        instruction.shapes[0],
        instruction.attribute_texts.get("window", ""),
    )
    products = result.num_elements * kernel.dims[kernel_labels.index("i")]
    for label in filter(str.isdigit, labels):
        places = result.dims[labels.index(label)]
        met = _pairs_met(
            places, data.dims[data_labels.index(label)], _along(window, int(label))
        )
        products = products // places * met
    return 2.0 * products


def _along(window: str, number: int) -> dict[str, list[int]]:
    """Reads what a window says of one dimension: name -> numbers."""
    found = {name: values.split("x") for name, values in _WINDOW.findall(window)}
    return {
        name: [int(n) for n in values[number].split("_")]
        for name, values in found.items()
    }


def _pairs_met(places: int, length: int, window: dict[str, list[int]]) -> int:
    """Returns how many pairs of a place and a step of the window meet an element."""
    (size,), (stride,), (hole,), (step,) = (
        window.get(name, [1]) for name in ("size", "stride", "lhs_dilate", "rhs_dilate")
    )
    before = window.get("pad", [0])[0]
    at = np.arange(places)[:, None] * stride + np.arange(size) * step - before
    return int(np.sum((at >= 0) & (at <= (length - 1) * hole) & (at % hole == 0)))


def hbm_bytes(
    instruction: Instruction, computation: Computation, module: Module
) -> int:
    """Returns the bytes that an operation reads from HBM and writes there.

    What a fusion takes a slice of counts as the slice; what it updates in place, as
    the update.
    """
    operands = [computation.by_name[name] for name in instruction.operands]
    if instruction.opcode == "dynamic-update-slice":
        return 2 * operands[1].num_bytes
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * _in_hbm(instruction.shapes)
    if instruction.opcode != "fusion":
        read = sum(_in_hbm(operand.shapes) for operand in operands)
        return read + _in_hbm(instruction.shapes)
    (called,) = module.called(instruction)
    read = sum(
        min(_in_hbm(operand.shapes), _read_bytes(called, number))
        for number, operand in enumerate(operands)
    )
    return read + min(_in_hbm(instruction.shapes), _written_bytes(called))


def _in_hbm(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.num_bytes for shape in shapes if shape.memory_space == HBM)


def _read_bytes(called: Computation, number: int) -> int:
    parameter = called.parameter(number)
    total = 0
    for user in called.users(parameter.name):
        if user.opcode in ("dynamic-slice", "slice", "gather"):
            total += user.num_bytes
        elif user.opcode == "dynamic-update-slice":
            is_target = user.operands[0] == parameter.name
            total += 0 if is_target else parameter.num_bytes
        else:
            return parameter.num_bytes
    return total


def _written_bytes(called: Computation) -> int:
    root = called.root
    results = [root]
    if root.opcode == "tuple":
        results = [called.by_name[name] for name in root.operands]
    return sum(
        called.by_name[result.operands[1]].num_bytes
        if result.opcode == "dynamic-update-slice"
        else result.num_bytes
        for result in results
    )
