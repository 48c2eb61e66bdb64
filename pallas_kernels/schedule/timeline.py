# SPDX-License-Identifier: Apache-2.0
"""Runs a kernel's scalar program and adds up the time of what it issues.

The model, of one TensorCore:

- A bundle takes a cycle.
- A matrix unit serves its matmuls in order, each in `cycles_per_matmul`; taking a result
  out waits for its matmul.
- The core's DMAs share one queue to HBM at the chip's bandwidth (a core's share of it)
  and arrive `DMA_LATENCY_SECONDS` after their last byte; a wait waits for what its
  semaphore still lacks.

Not modelled: conflicts of VMEM banks, stridden or short DMAs, HBM refresh, the fetching
of instructions, throttling. All make real time longer: the estimate is a lower bound.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping

import numpy as np

from pallas_kernels.hardware import Tpu
from pallas_kernels.schedule.bundles import Instruction, Program

DMA_LATENCY_SECONDS = 0.6e-6
"""An assumption; of weight only where transfers are small."""
GRANULE_BYTES = 32
# Addresses are numbers, so that the program can calculate with them: operands and
# allocations get room of their own, that of operands for a shift by 4 bits as well.
OPERAND_ROOM, ALLOCATION_START, ALLOCATION_ROOM = 2**20, 2**29, 2**17
MAX_BUNDLES_RUN = 20_000_000


class UnknownValueError(RuntimeError):
    """A branch, a wait or a size depends on a value that the timeline cannot know."""


@dataclasses.dataclass
class Timeline:
    """What one core did."""

    seconds: float = 0.0
    compute_seconds: float = 0.0
    """Without the waits for DMAs."""
    matmuls: int = 0
    hbm_bytes: int = 0
    hbm_seconds: float = 0.0
    num_dmas: int = 0


def run(
    program: Program, scalars: Mapping[int, np.ndarray], *, tpu: Tpu, core: int = 0
) -> Timeline:
    """Estimates the time of one core.

    Args:
      program: the kernel's bundles.
      scalars: operand number -> its values, i32, of those in scalar memory.
      tpu: the chip that the kernel was compiled for.
      core: which of the chip's cores.

    Raises:
      UnknownValueError: the path depends on data that is not in `scalars`.
    """
    return _Core(program, scalars, tpu, core).run()


@dataclasses.dataclass(frozen=True)
class _Block:
    """Bundles that run one after the other: a branch or a wait begins the next."""

    first: int
    last: int
    cycles: int
    issue_cycle: tuple[int, ...]
    """Cycle of each bundle, from the block's first, with the waits for matmuls."""
    matmuls: int


class _Core:
    def __init__(self, program, scalars, tpu, core):
        self.program, self.tpu, self.core = program, tpu, core
        self.values: dict[str, int | None] = {}
        self.defined: dict[str, int] = {}
        self.memory: dict[int, int | None] = {}
        self.operands = {
            (number + 1) * OPERAND_ROOM: np.asarray(values).reshape(-1)
            for number, values in scalars.items()
        }
        self.allocations: dict[str, int] = {}
        self.arrivals: dict[int, collections.deque] = collections.defaultdict(
            collections.deque
        )
        self.queue_free = 0.0
        self.clock = 0
        self.line = Timeline()
        self.bandwidth = tpu.hbm_bytes_per_second / tpu.num_cores

    def run(self) -> Timeline:
        bundles, index, now, num_run = self.program.bundles, 0, 0.0, 0
        while index < len(bundles):
            block = _block(self.program, index, self.tpu.cycles_per_matmul)
            start, branch_to = now, None
            for place in range(block.first, block.last + 1):
                bundle = bundles[place]
                if not bundle.instructions:
                    continue
                at = start + block.issue_cycle[place - block.first] / self.tpu.clock_hz
                for instruction in bundle.instructions:
                    if not self._is_active(instruction):
                        continue
                    if instruction.opcode == "sbr.rel":
                        branch_to = self._target(instruction)
                    elif instruction.opcode == "dma.done.wait":
                        now = max(now, self._wait(instruction, at))
                    else:
                        self._execute(instruction, at)
                # A wait is in the first bundle of its block: it delays all of it.
                start = max(start, now)
            elapsed = block.cycles / self.tpu.clock_hz
            now = start + elapsed
            self.line.compute_seconds += elapsed
            self.line.matmuls += block.matmuls
            num_run += block.last + 1 - block.first
            if num_run > MAX_BUNDLES_RUN:
                raise UnknownValueError(f"{self.program.name}: it does not end")
            index = block.last + 1 if branch_to is None else branch_to
        self.line.seconds = now
        return self.line

    def _target(self, instruction: Instruction) -> int:
        region = int(instruction.operands[-1].rsplit("$region", 1)[1])
        return self.program.regions[region]

    def _is_active(self, instruction: Instruction) -> bool:
        if instruction.predicate is None:
            return True
        value = self._value(instruction.predicate)
        if value is None:
            if instruction.opcode.startswith(("sbr", "dma")):
                raise UnknownValueError(f"{self.program.name}: {instruction.text}")
            return False
        return bool(value) != instruction.is_negated

    def _execute(self, instruction: Instruction, at: float) -> None:
        opcode, operands = instruction.opcode, instruction.operands
        if opcode.startswith("dma."):
            self._start_dma(opcode, operands, at, instruction)
        elif opcode == "vsyncadd":
            self._add_to_flag(instruction, at)
        elif opcode == "sst":
            address = self._address(operands[0])
            self.memory[address] = self._value(operands[1])
        elif instruction.result is not None:
            self.clock += 1
            self.values[instruction.result] = self._evaluate(instruction)
            self.defined[instruction.result] = self.clock

    def _evaluate(self, instruction: Instruction) -> int | None:
        opcode, operands = instruction.opcode, instruction.operands
        if opcode.startswith("operand"):
            return self._operand(opcode, int(operands[0]))
        if opcode == "sld":
            if "core id" in instruction.text:
                return self.core
            address = self._address(operands[0])
            return None if address is None else self.memory.get(address)
        if opcode == "sphi":
            # The definition that was executed last is that of the edge just taken.
            known = [name for name in operands if name in self.defined]
            return self.values[max(known, key=self.defined.__getitem__)]
        if opcode == "smov":
            return self._choose(operands)
        if opcode == "scalar_select":
            predicate, if_true, if_false = map(self._value, operands)
            return None if predicate is None else if_true if predicate else if_false
        if opcode in ("sdivrem.u32", "spop.drf"):
            return self._divide(instruction)
        return _calculate(opcode, [self._value(operand) for operand in operands])

    def _choose(self, operands: tuple[str, ...]) -> int | None:
        if len(operands) == 1:
            return self._value(operands[0])
        predicate, kept, replaced = operands
        is_negated = predicate.startswith("(!")
        value = self._value(predicate.strip("(!)"))
        if value is None:
            return None
        return self._value(replaced if bool(value) != is_negated else kept)

    def _divide(self, instruction: Instruction) -> int | tuple | None:
        """A division puts two results into a queue; the next pops name the division."""
        opcode, operands = instruction.opcode, instruction.operands
        if opcode == "sdivrem.u32":
            a, b = map(self._value, operands)
            if a is None or not b:
                return None
            a, b = a & 0xFFFFFFFF, b & 0xFFFFFFFF
            kinds = instruction.text
            both = (a // b, a % b)
            self.memory[("division", instruction.result)] = (
                list(both) if "DivAndRem" in kinds else [both["kRem" in kinds]]
            )
            return None
        results = self.memory.get(("division", operands[0]))
        return results.pop(0) if results else None

    def _operand(self, opcode: str, number: int) -> int | None:
        base = (number + 1) * OPERAND_ROOM
        if opcode == "operand.address":
            return base
        values = self.operands.get(base)
        return None if values is None else int(values[0])

    def _value(self, text: str) -> int | None:
        text = text.strip().rstrip(")")
        if text.startswith("%"):
            return self.values.get(text)
        if text.startswith("["):
            return self._address(text)
        try:
            return int(text.split()[0].lstrip("$"), 0) if text else None
        except ValueError:
            return None

    def _address(self, text: str) -> int | None:
        total = 0
        for part in text.strip().strip("[]").removeprefix("smem:").split("+"):
            part = part.strip().strip("[]")
            if part.startswith("#allocation"):
                total += self._allocation(part)
                continue
            value = self._value(part)
            if value is None:
                return None
            total += value
        return total

    def _allocation(self, name: str) -> int:
        number = self.allocations.setdefault(name, len(self.allocations))
        return ALLOCATION_START + number * ALLOCATION_ROOM

    def _start_dma(self, opcode, operands, at, instruction) -> None:
        source, size, target, flag = (self._value(part) for part in operands[:4])
        if size is None or flag is None:
            raise UnknownValueError(f"{self.program.name}: {instruction.text}")
        num_bytes = size * GRANULE_BYTES
        if opcode.endswith("to_smem"):
            self._fill_smem(source, target)
            self.arrivals[flag].append([at, size])
            return
        begin = max(at, self.queue_free)
        self.queue_free = begin + num_bytes / self.bandwidth
        self.line.hbm_bytes += num_bytes
        self.line.hbm_seconds += num_bytes / self.bandwidth
        self.line.num_dmas += 1
        self.arrivals[flag].append([self.queue_free + DMA_LATENCY_SECONDS, size])

    def _fill_smem(self, source: int | None, target: int | None) -> None:
        for shift in (0, 4):
            values = self.operands.get((source or 0) >> shift)
            if values is not None and target is not None:
                for offset, value in enumerate(values):
                    self.memory[target + offset] = int(value)
                return

    def _wait(self, instruction: Instruction, at: float) -> float:
        flag, amount = (self._value(part) for part in instruction.operands[:2])
        if flag is None or amount is None:
            raise UnknownValueError(f"{self.program.name}: {instruction.text}")
        total = 0
        for arrived, size in self.arrivals[flag]:
            if total >= amount:
                break
            at = max(at, arrived)
            total += size
        if total < amount:
            raise UnknownValueError(
                f"{self.program.name}: a wait without its DMA: {instruction.text}"
            )
        return at

    def _add_to_flag(self, instruction: Instruction, at: float) -> None:
        """Counts a semaphore up by hand, or down by what was waited for."""
        flag, amount = (self._value(part) for part in instruction.operands[:2])
        if flag is None or amount is None:
            raise UnknownValueError(f"{self.program.name}: {instruction.text}")
        arrivals, amount = self.arrivals[flag], _signed(amount)
        if amount > 0:
            arrivals.append([at, amount])
        while amount < 0 and arrivals:
            taken = min(-amount, arrivals[0][1])
            amount += taken
            arrivals[0][1] -= taken
            if arrivals[0][1] == 0:
                arrivals.popleft()


def _calculate(opcode: str, values: list[int | None]) -> int | None:
    # One operand decides these; the other may come from a path that was not taken.
    for decisive, opcodes, result in (
        (False, ("pand", "pnand"), opcode == "pnand"),
        (True, ("por",), True),
    ):
        if opcode in opcodes and any(
            value is not None and bool(value) is decisive for value in values
        ):
            return result
    function = _FUNCTIONS.get(opcode.removesuffix(".totalorder"))
    if function is None or any(value is None for value in values):
        return None
    return function(*values)


def _signed(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - 2**32 if value >= 2**31 else value


def _unsigned(value: int) -> int:
    return value & 0xFFFFFFFF


_FUNCTIONS: dict[str, Callable[..., int]] = {
    "sadd.s32": lambda a, b: _signed(a + b),
    "ssub.s32": lambda a, b: _signed(a - b),
    "smul.u32": lambda a, b: _signed(a * b),
    "sand.u32": lambda a, b: _signed(a & b),
    "sor.u32": lambda a, b: _signed(a | b),
    "sxor.u32": lambda a, b: _signed(a ^ b),
    "sshll.u32": lambda a, b: _signed(a << b),
    "sshrl.u32": lambda a, b: _unsigned(a) >> b,
    "sshra.s32": lambda a, b: _signed(a) >> b,
    "smin.u32": lambda a, b: _signed(min(_unsigned(a), _unsigned(b))),
    "smax.u32": lambda a, b: _signed(max(_unsigned(a), _unsigned(b))),
    "smin.s32": lambda a, b: min(_signed(a), _signed(b)),
    "smax.s32": lambda a, b: max(_signed(a), _signed(b)),
    "scalar_lea.hbm": lambda a, b: a + b,
    "scalar_lea.vmem": lambda a, b: a + b,
    "scalar_lea.smem": lambda a, b: a + b,
    "scalar_lea.sflag": lambda a, b: a + b,
    "int_to_ptr.hbm": lambda a: a,
    "int_to_ptr.vmem": lambda a: a,
    "int_to_ptr.smem": lambda a: a,
    "pnand": lambda a, b: not (a and b),
    "pand": lambda a, b: bool(a and b),
    "por": lambda a, b: bool(a or b),
    "pxor": lambda a, b: bool(a) != bool(b),
    "pneg": lambda a: not a,
    "pmov": lambda a: a,
    "scmp.eq.s32": lambda a, b: _signed(a) == _signed(b),
    "scmp.ne.s32": lambda a, b: _signed(a) != _signed(b),
    "scmp.lt.s32": lambda a, b: _signed(a) < _signed(b),
    "scmp.le.s32": lambda a, b: _signed(a) <= _signed(b),
    "scmp.gt.s32": lambda a, b: _signed(a) > _signed(b),
    "scmp.ge.s32": lambda a, b: _signed(a) >= _signed(b),
    "scmp.lt.u32": lambda a, b: _unsigned(a) < _unsigned(b),
    "scmp.le.u32": lambda a, b: _unsigned(a) <= _unsigned(b),
    "scmp.gt.u32": lambda a, b: _unsigned(a) > _unsigned(b),
    "scmp.ge.u32": lambda a, b: _unsigned(a) >= _unsigned(b),
}


@functools.cache
def _block(program: Program, first: int, cycles_per_matmul: int) -> _Block:
    last = _last_of_block(program, first)
    issue_cycle, matmuls = [], 0
    cycle = 0
    unit_free: dict[str, int] = collections.defaultdict(int)
    unfinished: dict[str, collections.deque] = collections.defaultdict(collections.deque)
    ratio = _pops_per_matmul(program)
    popped: dict[str, int] = collections.Counter()
    for index in range(first, last + 1):
        bundle = program.bundles[index]
        for place in bundle.pops:
            if "." in place:
                if unfinished[place]:
                    cycle = max(cycle, unfinished[place][-1])
                continue
            popped[place] += 1
            if unfinished[place]:
                cycle = max(cycle, unfinished[place][0])
                if popped[place] % ratio == 0:
                    unfinished[place].popleft()
        issue_cycle.append(cycle)
        for place in bundle.matmuls:
            unit = place.split(".")[0]
            unit_free[unit] = max(unit_free[unit], cycle) + cycles_per_matmul
            queue = unfinished[place]
            if "." in place:
                queue.clear()
            queue.append(unit_free[unit])
            matmuls += 1
        cycle += 1
    return _Block(first, last, cycle, tuple(issue_cycle), matmuls)


@functools.cache
def _pops_per_matmul(program: Program) -> int:
    matmuls = sum(len(bundle.matmuls) for bundle in program.bundles)
    pops = sum(len(bundle.pops) for bundle in program.bundles)
    return max(1, round(pops / matmuls)) if matmuls else 1


def _last_of_block(program: Program, first: int) -> int:
    leaders = _leaders(program)
    index = first
    while True:
        is_branch = any(
            instruction.opcode == "sbr.rel"
            for instruction in program.bundles[index].instructions
        )
        if is_branch:
            return program.last_delay_slot(index)
        if index + 1 >= len(program.bundles) or index + 1 in leaders:
            return index
        index += 1


@functools.cache
def _leaders(program: Program) -> frozenset[int]:
    """Bundles that begin a block: where branches lead, and waits."""
    targets, waits = set(), set()
    for index, bundle in enumerate(program.bundles):
        for instruction in bundle.instructions:
            if instruction.opcode == "sbr.rel":
                region = int(instruction.operands[-1].rsplit("$region", 1)[1])
                targets.add(program.regions[region])
            if instruction.opcode == "dma.done.wait":
                waits.add(index)
    return frozenset(targets | waits)
