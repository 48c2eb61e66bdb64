# SPDX-License-Identifier: Apache-2.0
"""What each basic block of a kernel costs by itself, in cycles.

A bundle takes a cycle. A matrix unit serves its matmuls in order, each in
`cycles_per_matmul`, those of half the rows in half of it; taking a result out waits
for its matmul. A block ends with idle
matrix units.
"""

import collections
import dataclasses

from pallas_kernels.schedule.bundles import Bundle, Matmul, Program


@dataclasses.dataclass(frozen=True)
class Block:
    """Bundles that run one after the other: a branch or a wait begins the next."""

    first: int
    last: int
    cycles: int
    issue_cycle: tuple[int, ...]
    """Cycle of each bundle, from the block's first, with the waits for matmuls."""
    num_matmuls: int
    num_spills: int

    @property
    def num_bundles(self) -> int:
        """Issue slots, without the waits."""
        return self.last + 1 - self.first


class Blocks:
    """A program's blocks, each worked out when it is first asked for."""

    def __init__(
        self, program: Program, *, cycles_per_matmul: int, num_delay_slots: int
    ):
        self.program = program
        self.num_delay_slots = num_delay_slots
        self.cycles_per_matmul = cycles_per_matmul
        self._starts = frozenset(program.regions.values())
        self._leaders = _leaders(program)
        self._pops_per_matmul = _pops_per_matmul(program)
        self._blocks: dict[int, Block] = {}

    def at(self, first: int) -> Block:
        """Returns the block that begins with a bundle."""
        if first not in self._blocks:
            self._blocks[first] = self._time(first, self._last(first))
        return self._blocks[first]

    def hottest(self) -> Block:
        """Returns the block with the most matmuls: the body of the main loop."""
        blocks, first = [], 0
        while first < len(self.program.bundles):
            blocks.append(self.at(first))
            first = blocks[-1].last + 1
        return max(blocks, key=lambda block: (block.num_matmuls, block.num_bundles))

    def _last(self, first: int) -> int:
        index, bundles = first, self.program.bundles
        while not _branches(bundles[index]):
            if index + 1 >= len(bundles) or index + 1 in self._leaders:
                return index
            index += 1
        return self._last_delay_slot(index)

    def _last_delay_slot(self, branch: int) -> int:
        """Returns the last bundle after a branch that is executed in any case.

        A chip may have a delay in place of its slots: the next region begins sooner.
        """
        end = min(branch + self.num_delay_slots, len(self.program.bundles) - 1)
        for last in range(branch, end):
            if last + 1 in self._starts or _branches(self.program.bundles[last + 1]):
                return last
        return end

    def _time(self, first: int, last: int) -> Block:
        bundles = self.program.bundles[first : last + 1]
        units = _MatrixUnits(self.cycles_per_matmul, self._pops_per_matmul)
        issue_cycle, cycle = [], 0
        for bundle in bundles:
            for place in bundle.pops:
                cycle = max(cycle, units.pop(place))
            issue_cycle.append(cycle)
            for matmul in bundle.matmuls:
                units.issue(matmul, cycle)
            cycle += 1
        return Block(
            first,
            last,
            max(cycle, units.idle_from()),
            tuple(issue_cycle),
            num_matmuls=sum(len(bundle.matmuls) for bundle in bundles),
            num_spills=sum(bundle.num_spills for bundle in bundles),
        )


class _MatrixUnits:
    """When results are there; they wait in a queue, or where the dump says.

    A matmul's result is popped in several parts.
    """

    def __init__(self, cycles_per_matmul: int, pops_per_matmul: int):
        self._cycles_per_matmul = cycles_per_matmul
        self._pops_per_matmul = pops_per_matmul
        self._free: dict[str, int] = collections.defaultdict(int)
        self._ready: dict[str, collections.deque[_Result]] = collections.defaultdict(
            collections.deque
        )

    def issue(self, matmul: Matmul, cycle: int) -> None:
        """Queues a matmul."""
        unit, _, buffer = matmul.place.partition(".")
        cycles = self._cycles_per_matmul
        if matmul.form == "latched":
            cycles //= 2
        self._free[unit] = max(self._free[unit], cycle) + cycles
        if buffer:
            self._ready[matmul.place].clear()
        num_pops = self._pops_per_matmul if matmul.form == "packed" else 1
        self._ready[matmul.place].append(_Result(self._free[unit], num_pops))

    def idle_from(self) -> int:
        """Returns the cycle from which no matmul is left to do."""
        return max(self._free.values(), default=0)

    def pop(self, place: str) -> int:
        """Takes a part of a result out; returns the cycle from which that can be."""
        ready = self._ready[place]
        if not ready:
            return 0
        result = ready[0]
        result.num_pops -= 1
        if "." not in place and result.num_pops == 0:
            ready.popleft()
        return result.cycle


@dataclasses.dataclass
class _Result:
    cycle: int
    """From which it is there."""
    num_pops: int
    """In which it is still taken out."""


def _branches(bundle: Bundle) -> bool:
    return any(instruction.opcode == "sbr.rel" for instruction in bundle.instructions)


def _leaders(program: Program) -> frozenset[int]:
    """Bundles that begin a block: where branches lead, and waits."""
    leaders = set()
    for index, bundle in enumerate(program.bundles):
        for instruction in bundle.instructions:
            if instruction.opcode == "sbr.rel":
                # The timeline refuses a region without a start, if it is led there.
                leaders.add(program.regions.get(instruction.target_region))
            elif instruction.opcode == "dma.done.wait":
                leaders.add(index)
    return frozenset(leaders)


def _pops_per_matmul(program: Program) -> int:
    """Returns the pops of a packed matmul: as many as are left to each of them."""
    forms = collections.Counter(
        matmul.form for bundle in program.bundles for matmul in bundle.matmuls
    )
    if not forms["packed"]:
        return 1
    num_pops = sum(len(bundle.pops) for bundle in program.bundles)
    others = forms["float32"] + forms["latched"]
    return max(1, round((num_pops - others) / forms["packed"]))
