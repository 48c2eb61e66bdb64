# SPDX-License-Identifier: Apache-2.0
"""Runs a kernel's scalar program and adds up the time of what it issues.

The model, of one TensorCore:

- Blocks of bundles take the cycles that `blocks.py` gives them.
- Cores run alike: what another core fetches for this one arrives when this core's own
  share of it does.
- The core's DMAs share one queue to HBM at the chip's bandwidth (a core's share of it)
  and arrive `DMA_LATENCY_SECONDS` after their last byte; a wait waits for what its
  semaphore still lacks.

Not modelled: conflicts of VMEM banks, strided or short DMAs, HBM refresh, the fetching
of instructions, throttling. All make real time longer: the estimate is a lower bound.
"""

import collections
import dataclasses
from collections.abc import Mapping

import numpy as np

from pallas_kernels.hardware import Tpu
from pallas_kernels.schedule.blocks import Block, Blocks
from pallas_kernels.schedule.bundles import Instruction
from pallas_kernels.schedule.scalar_unit import ScalarUnit, semaphore, signed

DMA_LATENCY_SECONDS = 0.6e-6
"""An assumption; of weight only where transfers are small."""
GRANULE_BYTES = 32
MAX_BLOCKS_RUN = 5_000_000
"""More are taken for a loop without end. Blocks, since bundles say nothing of how often
a loop turns: attention on long rows runs 23 million of them in 62,000 blocks."""


class UnknownValueError(RuntimeError):
    """A branch, a wait or a size depends on a value that the timeline cannot know."""


@dataclasses.dataclass
class Timeline:
    """What one core did."""

    seconds: float = 0.0
    compute_seconds: float = 0.0
    """Without the waits for DMAs."""
    num_matmuls: int = 0
    hbm_bytes: int = 0
    hbm_seconds: float = 0.0
    num_dmas: int = 0


def run(
    blocks: Blocks, scalars: Mapping[int, np.ndarray], *, tpu: Tpu, core: int = 0
) -> Timeline:
    """Estimates the time of one core.

    Args:
      blocks: of the kernel's program, timed for the same chip.
      scalars: operand number -> its values, i32, of those in scalar memory.
      tpu: the chip that the kernel was compiled for.
      core: which of the chip's cores.

    Raises:
      UnknownValueError: the path depends on data that is not in `scalars`.
    """
    return _Core(blocks, scalars, tpu=tpu, core=core).run()


@dataclasses.dataclass
class _Arrival:
    """What a semaphore gets, and when."""

    seconds: float
    amount: int


class _Core:
    def __init__(
        self, blocks: Blocks, scalars: Mapping[int, np.ndarray], *, tpu: Tpu, core: int
    ):
        self._blocks, self._program = blocks, blocks.program
        self._tpu = tpu
        self._bandwidth = tpu.hbm_bytes_per_second / tpu.num_cores
        self._scalars = ScalarUnit(
            scalars, core=core, semaphores=self._program.semaphores
        )
        self._shared: set[int] = set()
        self._arrivals: dict[int, collections.deque[_Arrival]] = (
            collections.defaultdict(collections.deque)
        )
        self._queue_free = 0.0
        self._executed: dict[int, list[tuple[tuple[Instruction, ...], int]]] = {}
        self._line = Timeline()

    def run(self) -> Timeline:
        index, num_run = 0, 0
        while index < len(self._program.bundles):
            block = self._blocks.at(index)
            branch_to = self._run_block(block)
            index = block.last + 1 if branch_to is None else branch_to
            num_run += 1
            if num_run > MAX_BLOCKS_RUN:
                raise UnknownValueError(
                    f"{self._program.name}: no end after {num_run:,} blocks; a loop's "
                    "bound is not what the kernel expects. Check `scalars`."
                )
        return self._line

    def _run_block(self, block: Block) -> int | None:
        """Returns the bundle that a branch taken leads to."""
        start, branch_to = self._line.seconds, None
        for instructions, cycle in self._instructions(block):
            at = start + cycle / self._tpu.clock_hz
            waited_until = start
            for instruction in instructions:
                if not self._is_active(instruction):
                    continue
                if instruction.opcode == "sbr.rel":
                    branch_to = self._target(instruction)
                elif instruction.opcode == "dma.done.wait":
                    waited_until = max(waited_until, self._wait(instruction, at))
                else:
                    self._execute(instruction, at)
            # A wait is in the first bundle of its block: it delays all of it.
            start = waited_until
        elapsed = block.cycles / self._tpu.clock_hz
        self._line.seconds = start + elapsed
        self._line.compute_seconds += elapsed
        self._line.num_matmuls += block.num_matmuls
        return branch_to

    def _instructions(self, block: Block) -> list[tuple[tuple[Instruction, ...], int]]:
        """Returns what a block's bundles execute, and when, of those that do."""
        if block.first not in self._executed:
            bundles = self._program.bundles[block.first : block.last + 1]
            self._executed[block.first] = [
                (bundle.instructions, cycle)
                for bundle, cycle in zip(bundles, block.issue_cycle, strict=True)
                if bundle.instructions
            ]
        return self._executed[block.first]

    def _target(self, instruction: Instruction) -> int:
        region = instruction.target_region
        if region not in self._program.regions:
            raise UnknownValueError(
                f"{self._program.name}: the dump does not say where region {region} "
                "starts, and a branch leads there. Other kernels of it can be run."
            )
        return self._program.regions[region]

    def _is_active(self, instruction: Instruction) -> bool:
        if instruction.predicate is None:
            return True
        value = self._scalars.value(instruction.predicate)
        if value is None:
            if instruction.opcode.startswith(("sbr", "dma")):
                raise self._unknown(instruction)
            return False
        return bool(value) != instruction.is_negated

    def _unknown(self, instruction: Instruction) -> UnknownValueError:
        return UnknownValueError(
            f"{self._program.name}: the scalar operands given do not determine "
            f"`{instruction.text[:120]}`; it may depend on vector data."
        )

    def _execute(self, instruction: Instruction, at: float) -> None:
        if instruction.opcode.startswith("dma."):
            self._start_dma(instruction, at)
        elif instruction.opcode == "vsyncadd":
            self._add_to_flag(instruction, at)
        else:
            self._scalars.execute(instruction)

    def _start_dma(self, instruction: Instruction, at: float) -> None:
        source, size, target, flag = map(self._scalars.value, instruction.operands[:4])
        if size is None or flag is None:
            raise self._unknown(instruction)
        flag, is_shared = semaphore(flag)
        if is_shared:
            self._shared.add(flag)
        if instruction.opcode.endswith("to_smem"):
            self._scalars.fill_memory(source=source, target=target)
            self._arrivals[flag].append(_Arrival(at, size))
            return
        num_bytes = size * GRANULE_BYTES
        self._queue_free = max(at, self._queue_free) + num_bytes / self._bandwidth
        self._line.hbm_bytes += num_bytes
        self._line.hbm_seconds += num_bytes / self._bandwidth
        self._line.num_dmas += 1
        arrival = _Arrival(self._queue_free + DMA_LATENCY_SECONDS, size)
        self._arrivals[flag].append(arrival)

    def _wait(self, instruction: Instruction, at: float) -> float:
        flag, amount = map(self._scalars.value, instruction.operands[:2])
        if flag is None or amount is None:
            raise self._unknown(instruction)
        total = 0
        for arrival in self._arrivals[flag]:
            if total >= amount:
                break
            at = max(at, arrival.seconds)
            total += arrival.amount
        if total < amount and flag not in self._shared:
            raise UnknownValueError(
                f"{self._program.name}: `{instruction.text[:120]}` waits for {amount}, "
                f"and DMAs bring {total}: it would wait for ever. Check `scalars`."
            )
        return at

    def _add_to_flag(self, instruction: Instruction, at: float) -> None:
        """Counts a semaphore up by hand, or down by what was waited for."""
        flag, amount = map(self._scalars.value, instruction.operands[:2])
        if flag is None or amount is None:
            raise self._unknown(instruction)
        arrivals, amount = self._arrivals[flag], signed(amount)
        if amount > 0:
            arrivals.append(_Arrival(at, amount))
        while amount < 0 and arrivals:
            taken = min(-amount, arrivals[0].amount)
            amount += taken
            arrivals[0].amount -= taken
            if arrivals[0].amount == 0:
                arrivals.popleft()
