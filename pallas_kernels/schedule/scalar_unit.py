# SPDX-License-Identifier: Apache-2.0
"""Executes a kernel's scalar instructions: registers, scalar memory, arithmetic.

A value that the operands given do not determine is None and stays None; whoever needs
it (a branch, a DMA's size) refuses.
"""

import functools
import operator
from collections.abc import Callable, Mapping

import numpy as np

from pallas_kernels.schedule.bundles import Instruction

# Addresses are numbers, so that the program can calculate with them: operands and
# allocations get room of their own, that of operands for a shift by 4 bits as well.
OPERAND_ROOM, ALLOCATION_START, ALLOCATION_ROOM = 2**20, 2**29, 2**17
# A DMA that signals semaphores of several cores names them in 16 bits each, the upper
# ones with a mask of cores in bits 13 and 14: numbers of semaphores must fit below.
SEMAPHORE_ROOM, SEMAPHORE_BITS = 2**6, 13


class ScalarUnit:
    """The scalar state of one core."""

    def __init__(
        self,
        scalars: Mapping[int, np.ndarray],
        *,
        core: int,
        semaphores: frozenset[str] = frozenset(),
    ):
        self._core = core
        self._semaphores = {
            name: (number + 1) * SEMAPHORE_ROOM
            for number, name in enumerate(sorted(semaphores))
        }
        self._values: dict[str, int | None] = {}
        self._defined: dict[str, int] = {}
        self._clock = 0
        self._memory: dict[int | None, int | None] = {}
        self._quotients: dict[str | None, list[int]] = {}
        self._operands = {
            (number + 1) * OPERAND_ROOM: np.asarray(values).reshape(-1)
            for number, values in scalars.items()
        }
        self._allocations: dict[str, int] = {}
        self._special = {
            "operand.address": self._operand_address,
            "operand.value": self._operand_value,
            "sld": self._load,
            "sphi": self._merge,
            "smov": self._choose,
            "scalar_select": self._select,
            "sdivrem.u32": self._divide,
            "spop.drf": self._pop_quotient,
        }

    def execute(self, instruction: Instruction) -> None:
        """Executes a scalar instruction; one without a result changes nothing."""
        if instruction.opcode == "sst":
            address, value = instruction.operands[:2]
            self._memory[self._address(address)] = self.value(value)
        elif instruction.result is not None:
            self._clock += 1
            self._values[instruction.result] = self._evaluate(instruction)
            self._defined[instruction.result] = self._clock

    def value(self, text: str) -> int | None:
        """Returns a register's value, an address, or a number."""
        if text in self._values:
            return self._values[text]
        text = text.strip().rstrip(")")
        if text.startswith("%"):
            return self._values.get(text)
        return self._address(text) if text.startswith("[") else _number(text)

    def fill_memory(self, *, source: int | None, target: int | None) -> None:
        """Copies an operand to scalar memory."""
        for shift in (0, 4):
            values = self._operands.get((source or 0) >> shift)
            if values is not None and target is not None:
                for offset, value in enumerate(values):
                    self._memory[target + offset] = int(value)
                return

    def _evaluate(self, instruction: Instruction) -> int | None:
        if instruction.opcode in self._special:
            return self._special[instruction.opcode](instruction)
        values = [self.value(operand) for operand in instruction.operands]
        return _calculate(instruction.opcode, values)

    def _operand_address(self, instruction: Instruction) -> int:
        return (int(instruction.operands[0]) + 1) * OPERAND_ROOM

    def _operand_value(self, instruction: Instruction) -> int | None:
        values = self._operands.get(self._operand_address(instruction))
        return None if values is None else int(values[0])

    def _load(self, instruction: Instruction) -> int | None:
        if "core id" in instruction.text:
            return self._core
        address = self._address(instruction.operands[0])
        return None if address is None else self._memory.get(address)

    def _merge(self, instruction: Instruction) -> int | None:
        # The definition that was executed last is that of the edge just taken.
        known = [name for name in instruction.operands if name in self._defined]
        if not known:
            return None
        return self._values[max(known, key=self._defined.__getitem__)]

    def _choose(self, instruction: Instruction) -> int | None:
        if len(instruction.operands) == 1:
            return self.value(instruction.operands[0])
        predicate, if_false, if_true = instruction.operands
        value = self.value(predicate.strip("(!)"))
        if value is None:
            return None
        is_negated = predicate.startswith("(!")
        return self.value(if_true if bool(value) != is_negated else if_false)

    def _select(self, instruction: Instruction) -> int | None:
        predicate, if_true, if_false = map(self.value, instruction.operands)
        if predicate is None:
            return None
        return if_true if predicate else if_false

    def _divide(self, instruction: Instruction) -> None:
        """Puts one result or two into a queue; the next pops name the division."""
        a, b = map(self.value, instruction.operands)
        if a is None or not b:
            return
        both = divmod(_unsigned(a), _unsigned(b))
        wants_both = "DivAndRem" in instruction.text
        wanted = both if wants_both else [both["kRem" in instruction.text]]
        self._quotients[instruction.result] = list(wanted)

    def _pop_quotient(self, instruction: Instruction) -> int | None:
        queue = self._quotients.get(instruction.operands[0])
        return queue.pop(0) if queue else None

    def _address(self, text: str) -> int | None:
        total = 0
        for part in text.strip().strip("[]").removeprefix("smem:").split("+"):
            part = part.strip().strip("[]")
            if part.startswith("#allocation"):
                total += self._allocation(part)
                continue
            value = self.value(part)
            if value is None:
                return None
            total += value
        return total

    def _allocation(self, name: str) -> int:
        if name in self._semaphores:
            return self._semaphores[name]
        number = self._allocations.setdefault(name, len(self._allocations))
        return ALLOCATION_START + number * ALLOCATION_ROOM


def semaphore(value: int) -> tuple[int, bool]:
    """Returns a semaphore of this core, and whether other cores have it signalled."""
    if value >> 16 and value % 2**16 >= SEMAPHORE_ROOM:
        return value % 2**SEMAPHORE_BITS, True
    return value, False


def signed(value: int) -> int:
    """Returns the low 32 bits as a signed number."""
    value &= 0xFFFFFFFF
    return value - 2**32 if value >= 2**31 else value


def _unsigned(value: int) -> int:
    return value & 0xFFFFFFFF


# One operand that is this value decides the result.
_DECISIVE = {"pand": (False, False), "pnand": (False, True), "por": (True, True)}


def _calculate(opcode: str, values: list[int | None]) -> int | None:
    if opcode in _DECISIVE:
        # The other operand may come from a path that was not taken.
        decisive, result = _DECISIVE[opcode]
        if any(value is not None and bool(value) is decisive for value in values):
            return result
    function = _FUNCTIONS.get(opcode.removesuffix(".totalorder"))
    known = [value for value in values if value is not None]
    if function is None or len(known) < len(values):
        return None
    return function(*known)


@functools.cache
def _number(text: str) -> int | None:
    try:
        return int(text.split()[0].lstrip("$"), 0) if text else None
    except ValueError:
        return None


def _of_signed(function: Callable, a: int, b: int) -> int:
    return function(signed(a), signed(b))


def _of_unsigned(function: Callable, a: int, b: int) -> int:
    return function(_unsigned(a), _unsigned(b))


def _wrapped(function: Callable, a: int, b: int) -> int:
    return signed(function(a, b))


def _first(a: int) -> int:
    return a


def _shift_right(a: int, b: int) -> int:
    return _unsigned(a) >> b


def _shift_right_arithmetic(a: int, b: int) -> int:
    return signed(a) >> b


def _multiply_high(a: int, b: int) -> int:
    return signed(_unsigned(a) * _unsigned(b) >> 32)


def _min_unsigned(a: int, b: int) -> int:
    return signed(min(_unsigned(a), _unsigned(b)))


def _max_unsigned(a: int, b: int) -> int:
    return signed(max(_unsigned(a), _unsigned(b)))


def _both(a: int, b: int) -> bool:
    return bool(a and b)


def _not_both(a: int, b: int) -> bool:
    return not (a and b)


def _either(a: int, b: int) -> bool:
    return bool(a or b)


def _one_of(a: int, b: int) -> bool:
    return bool(a) != bool(b)


_FUNCTIONS: dict[str, Callable[..., int]] = {
    "sadd.s32": functools.partial(_wrapped, operator.add),
    "ssub.s32": functools.partial(_wrapped, operator.sub),
    "smul.u32": functools.partial(_wrapped, operator.mul),
    "smulhi.u32": _multiply_high,
    "sand.u32": functools.partial(_wrapped, operator.and_),
    "sor.u32": functools.partial(_wrapped, operator.or_),
    "sxor.u32": functools.partial(_wrapped, operator.xor),
    "sshll.u32": functools.partial(_wrapped, operator.lshift),
    "sshrl.u32": _shift_right,
    "sshra.s32": _shift_right_arithmetic,
    "smin.u32": _min_unsigned,
    "smax.u32": _max_unsigned,
    "smin.s32": functools.partial(_of_signed, min),
    "smax.s32": functools.partial(_of_signed, max),
    "scalar_lea.hbm": operator.add,
    "scalar_lea.vmem": operator.add,
    "scalar_lea.smem": operator.add,
    "scalar_lea.sflag": operator.add,
    "int_to_ptr.hbm": _first,
    "int_to_ptr.vmem": _first,
    "int_to_ptr.smem": _first,
    "int_to_ptr.sflag": _first,
    "pand": _both,
    "pnand": _not_both,
    "por": _either,
    "pxor": _one_of,
    "pneg": operator.not_,
    "pmov": _first,
    **{
        f"scmp.{name}.{kind}": functools.partial(of, function)
        for name, function in (
            ("eq", operator.eq),
            ("ne", operator.ne),
            ("lt", operator.lt),
            ("le", operator.le),
            ("gt", operator.gt),
            ("ge", operator.ge),
        )
        for kind, of in (("s32", _of_signed), ("u32", _of_unsigned))
    },
}
