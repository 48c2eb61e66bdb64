# SPDX-License-Identifier: Apache-2.0
"""How often the body of a loop runs: the compiler's own count, or the loop's bounds.

A scan becomes a loop over i with a constant start, a constant bound and a constant
stride; all three are read from the module. A loop whose bounds depend on data has no
count here, and its caller says so.
"""

import re

from ring_jax.plan.hlo import Computation, Instruction, Module

_KNOWN = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_INDEX = re.compile(r"\bindex=(\d+)")
_SAME_VALUE = ("copy", "bitcast", "convert", "copy-done")


def trip_count(module: Module, loop: Instruction, caller: Computation) -> int | None:
    """Returns how often a loop's body runs; None: the module does not say.

    Args:
      module: the whole program.
      loop: an instruction `while`.
      caller: the computation that it stands in.
    """
    if known := _KNOWN.search(loop.attributes):
        return int(known.group(1))
    body, condition = (_called(module, loop, role) for role in ("body", "condition"))
    values = _LoopValues(module, loop, caller, body)
    bound = values.bound(condition)
    if bound is None:
        return None
    counter, limit, is_inclusive = bound
    start, stride = values.start(counter), values.stride(counter)
    if start is None or not stride or stride < 0:
        return None
    return max(0, -(-(limit + is_inclusive - start) // stride))


def _called(module: Module, loop: Instruction, role: str) -> Computation:
    name = re.search(rf"\b{role}=%([\w.<>-]+)", loop.attributes)
    assert name is not None, f"{loop.name} has no {role}"
    return module.computations[name.group(1)]


class _LoopValues:
    """What is constant in a loop's state: starts, strides and what never changes."""

    def __init__(
        self,
        module: Module,
        loop: Instruction,
        caller: Computation,
        body: Computation,
    ):
        self._module = module
        self._caller = caller
        self._body = body
        self._state = caller.by_name.get(loop.operands[0])

    def bound(self, condition: Computation) -> tuple[int, int, bool] | None:
        """Returns (place of the counter, limit, whether the limit itself runs)."""
        root, scope, arguments = condition.root, condition, None
        if root.opcode == "fusion":
            arguments = root.operands
            scope = self._module.called(root)[0]
            root = scope.root
        direction = re.search(r"direction=(\w+)", root.attributes)
        if root.opcode != "compare" or direction is None:
            return None
        sides = [
            self._side(condition, scope, name, arguments) for name in root.operands
        ]
        match (direction.group(1), sides):
            case ("LT" | "LE" as kind, [("counter", counter), ("value", limit)]):
                return counter, limit, kind == "LE"
            case ("GT" | "GE" as kind, [("value", limit), ("counter", counter)]):
                return counter, limit, kind == "GE"
        return None

    def _side(
        self,
        condition: Computation,
        scope: Computation,
        name: str,
        arguments: tuple[str, ...] | None,
    ) -> tuple[str, int] | None:
        instruction = _origin(scope, name)
        if arguments is not None and instruction.opcode == "parameter":
            number = int(instruction.operand_text)
            instruction = _origin(condition, arguments[number])
        if instruction.opcode == "constant":
            value = _integer(instruction)
            return None if value is None else ("value", value)
        if (place := _place(instruction)) is None:
            return None
        if self._is_unchanged(place):
            value = self.start(place)
            return None if value is None else ("value", value)
        return "counter", place

    def start(self, place: int) -> int | None:
        """Returns the value of an element of the state before the loop."""
        if self._state is None or self._state.opcode != "tuple":
            return None
        return _integer(_origin(self._caller, self._state.operands[place]))

    def stride(self, place: int) -> int | None:
        """Returns what the body adds to an element of the state."""
        step = _origin(self._body, self._body.root.operands[place])
        if step.opcode != "add":
            return None
        stride, counters = None, 0
        for operand in step.operands:
            part = _origin(self._body, operand)
            if part.opcode == "constant":
                stride = _integer(part)
            elif (index := _place(part)) is not None and index != place:
                # A constant that the compiler moved into the loop's state.
                stride = self.start(index) if self._is_unchanged(index) else None
            elif index == place:
                counters += 1
        return stride if counters == 1 else None

    def _is_unchanged(self, place: int) -> bool:
        root = self._body.root
        if root.opcode != "tuple" or place >= len(root.operands):
            return False
        return _place(_origin(self._body, root.operands[place])) == place


def _origin(computation: Computation, name: str) -> Instruction:
    """Follows a value back through instructions that do not change it."""
    instruction = computation.by_name[name]
    while instruction.opcode in _SAME_VALUE:
        instruction = computation.by_name[instruction.operands[0]]
    return instruction


def _place(instruction: Instruction) -> int | None:
    index = _INDEX.search(instruction.attributes)
    if instruction.opcode != "get-tuple-element" or index is None:
        return None
    return int(index.group(1))


def _integer(instruction: Instruction) -> int | None:
    is_number = re.fullmatch(r"-?\d+", instruction.operand_text)
    if instruction.opcode != "constant" or is_number is None:
        return None
    return int(instruction.operand_text)
