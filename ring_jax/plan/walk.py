# SPDX-License-Identifier: Apache-2.0
"""Walks the schedule of a step, with a clock for the core and one for each queue.

The TensorCore runs the schedule in order: operations one after the other
(`op_cost.py`), the body of a loop as often as its trip count. What the schedule starts
and awaits later runs beside that, in a queue for each resource:

    links       one queue for those along each torus axis, each way: collectives that
                need the same links share them
    hbm         copies between HBM and VMEM
    sparsecore  gathers and scatters that the SparseCores do

and costs only what is left of it where its result is awaited.
"""

import collections
import dataclasses

from ring_jax.plan.categories import Category, categorize
from ring_jax.plan.collectives import (
    Collective,
    inner_collective,
    part_of_chain,
    read_collective,
)
from ring_jax.plan.hlo import Computation, Instruction, Module
from ring_jax.plan.links import PlacedMesh
from ring_jax.plan.loops import trip_count
from ring_jax.plan.op_cost import FREE, OpCosts

EXPOSED = "exposed collectives"
COPIES = "exposed copies"


@dataclasses.dataclass(frozen=True)
class Use:
    """A collective in a step."""

    collective: Collective
    times: float
    """Per step."""
    is_async: bool
    exposed_seconds: float
    """Per step, in which the core waits for it."""

    @property
    def seconds(self) -> float:
        """Per step, hidden or not."""
        return self.times * self.collective.seconds


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation of the core in a step."""

    name: str
    op_name: str
    category: str
    times: float
    seconds: float
    """Of one run."""
    source: str
    reason: str = ""
    """Why its code could not be executed, where that was wanted."""


@dataclasses.dataclass(frozen=True)
class Pace:
    """Factors on all durations."""

    core: float = 1.0
    links: float = 1.0


@dataclasses.dataclass
class _Pending:
    """What was started and not yet awaited."""

    end: float
    label: str
    """The line of the breakdown that a wait for it goes to."""
    links: frozenset[str] = frozenset()


class Walk:
    """One pass over a module; its clock and queues are in seconds."""

    def __init__(
        self,
        module: Module,
        mesh: PlacedMesh,
        costs: OpCosts,
        categories: tuple[Category, ...],
        default_trip_count: int,
        pace: Pace,
    ):
        self._module, self._mesh, self._costs = module, mesh, costs
        self._categories, self._pace = categories, pace
        self._default_trip_count = default_trip_count
        self.now = 0.0
        self._queues: dict[str, float] = collections.defaultdict(float)
        self._pending: dict[str, _Pending] = {}
        self.breakdown: dict[str, float] = collections.defaultdict(float)
        self.sources: dict[str, float] = collections.defaultdict(float)
        self.operations: list[Operation] = []
        self.loops: dict[str, int | None] = {}
        self._collectives: dict[str, tuple[Collective, float, bool]] = {}
        self._exposed: dict[str, float] = collections.defaultdict(float)

    def run_step(self) -> "Walk":
        """Runs the entry computation once."""
        self._run(self._module.entry, 1.0)
        return self

    def uses(self) -> tuple[Use, ...]:
        """Returns the collectives in the order of the schedule."""
        return tuple(
            Use(collective, times, is_async, self._exposed[name])
            for name, (collective, times, is_async) in self._collectives.items()
        )

    def _run(self, computation: Computation, times: float) -> None:
        for instruction in computation.instructions:
            match instruction.opcode:
                case "while":
                    self._run_loop(instruction, computation, times)
                case "conditional":
                    self._run_longest_branch(instruction, times)
                case "call":
                    self._run(self._module.called(instruction)[0], times)
                case opcode if opcode.endswith("-start"):
                    self._start(instruction, computation, times)
                case opcode if opcode.endswith("-update"):
                    self._update(instruction, computation)
                case opcode if opcode.endswith("-done"):
                    self._await(instruction.operands[0], times)
                case "fusion":
                    self._fusion(instruction, computation, times)
                case _:
                    self._compute(instruction, computation, times)

    def _run_loop(
        self, loop: Instruction, computation: Computation, times: float
    ) -> None:
        count = trip_count(self._module, loop, computation)
        self.loops[loop.name] = count
        count = self._default_trip_count if count is None else count
        if not count:
            return
        body = next(
            called
            for called in self._module.called(loop)
            if f"body=%{called.name}" in loop.attributes
        )
        start = self.now
        self._run(body, times * count)
        # All turns are alike; the queues move on with the clock.
        rest = (count - 1) * (self.now - start)
        self.now += rest
        for queue in self._queues:
            self._queues[queue] += rest

    def _run_longest_branch(self, branches: Instruction, times: float) -> None:
        """Runs the branch of most instructions: which is taken depends on data."""
        called = self._module.called(branches)
        self._run(max(called, key=lambda c: len(c.instructions)), times)

    def _fusion(
        self, fusion: Instruction, computation: Computation, times: float
    ) -> None:
        match part_of_chain(fusion, self._module):
            case chain, "start":
                collective = inner_collective(fusion, self._module, self._mesh)
                assert collective is not None, fusion.name
                self._begin(chain, collective, times)
            case chain, "done":
                self._await(chain, times)
            case _, "step":
                self._run_operation(fusion, computation, times)
            case None:
                self._compute(fusion, computation, times)

    def _compute(
        self, instruction: Instruction, computation: Computation, times: float
    ) -> None:
        if collective := self._collective(instruction, computation):
            self._run_collective(instruction, collective, times)
        else:
            self._run_operation(instruction, computation, times)

    def _run_operation(
        self, instruction: Instruction, computation: Computation, times: float
    ) -> None:
        cost = self._costs.cost(instruction, computation, times=times)
        if cost is FREE:
            return
        seconds = cost.seconds * self._pace.core
        self.now += seconds
        name = categorize(instruction, self._module, self._categories)
        self.breakdown[name] += times * seconds
        self.sources[cost.source] += times * seconds
        self.operations.append(
            Operation(
                instruction.name,
                instruction.op_name,
                name,
                times,
                seconds,
                cost.source,
                cost.reason,
            )
        )

    def _run_collective(
        self, instruction: Instruction, collective: Collective, times: float
    ) -> None:
        """Runs a collective that nothing else runs beside."""
        end = self._enqueue(collective)
        self._collectives[instruction.name] = (collective, times, False)
        self._wait(end, f"{EXPOSED} over {collective.label}", times)
        self._exposed[instruction.name] += times * (end - self.now)
        self.now = end

    def _start(
        self, instruction: Instruction, computation: Computation, times: float
    ) -> None:
        if collective := self._collective(instruction, computation):
            self._begin(instruction.name, collective, times)
        elif instruction.opcode in ("copy-start", "slice-start"):
            end = self._enqueue_bytes("hbm", instruction.shapes[-2].num_bytes)
            self._pending[instruction.name] = _Pending(end, COPIES)
        else:
            # Its operands come with an update, or its result tells the bytes.
            end = self._enqueue_bytes("sparsecore", _moved(instruction, computation))
            self._pending[instruction.name] = _Pending(end, COPIES)

    def _begin(self, name: str, collective: Collective, times: float) -> None:
        """Starts a collective beside the core, to be awaited by that name."""
        self._collectives[name] = (collective, times, True)
        label = f"{EXPOSED} over {collective.label}"
        links = frozenset(collective.links)
        self._pending[name] = _Pending(self._enqueue(collective), label, links)

    def _update(self, instruction: Instruction, computation: Computation) -> None:
        """Gives work to what was started: it begins here."""
        del computation
        self._pending[instruction.name] = self._pending[instruction.operands[0]]

    def _await(self, started: str, times: float) -> None:
        pending = self._pending.pop(started, None)
        if pending is None or pending.end <= self.now:
            return
        self._wait(pending.end, pending.label, times)
        self._exposed[started] += times * (pending.end - self.now)
        self.now = pending.end

    def _wait(self, end: float, label: str, times: float) -> None:
        self.breakdown[label] += times * (end - self.now)

    def _collective(
        self, instruction: Instruction, computation: Computation
    ) -> Collective | None:
        if collective := read_collective(instruction, computation, self._mesh):
            return collective
        if instruction.opcode in ("async-start", "call-start", "fusion"):
            return inner_collective(instruction, self._module, self._mesh)
        return None

    def _enqueue(self, collective: Collective) -> float:
        """Returns when a collective ends that shares its links with those under way.

        Packets of all of them take turns: a short one need not wait for a long one to
        end, and delays it by its own length.
        """
        seconds = collective.seconds * self._pace.links
        links = frozenset(collective.links)
        behind = max((self._queues[link] - self.now for link in links), default=0.0)
        shared = 0.0
        for pending in self._pending.values():
            left = pending.end - self.now
            if left > 0 and links & pending.links:
                shared += min(seconds, left)
                pending.end += min(seconds, left)
        for link in links:
            self._queues[link] = max(self.now, self._queues[link]) + seconds
        return self.now + seconds + min(shared, max(behind, 0.0))

    def _enqueue_bytes(self, queue: str, num_bytes: int) -> float:
        seconds = num_bytes / self._mesh.tpu.hbm_bytes_per_second * self._pace.core
        self._queues[queue] = max(self.now, self._queues[queue]) + seconds
        return self._queues[queue]


def _moved(start: Instruction, computation: Computation) -> int:
    """Returns the bytes read and written by a call that runs beside the core."""
    name = start.name
    while (user := next(computation.users(name), None)) is not None:
        if user.opcode.endswith("-done"):
            return 2 * user.num_bytes
        name = user.name
    return 2 * start.num_bytes
