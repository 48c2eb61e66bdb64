# SPDX-License-Identifier: Apache-2.0
"""The collectives of a step: over which mesh axes, how many bytes, how long.

Kind, groups and bytes are those of the compiled program; the time is an estimate from
the bandwidth of the links (`links.py`).
"""

import dataclasses
import re
from typing import Literal

from ring_jax.plan.device_groups import (
    mesh_axes,
    permutation_pairs,
    replica_groups,
)
from ring_jax.plan.hlo import Computation, Instruction, Module
from ring_jax.plan.links import (
    NETWORK,
    PlacedMesh,
    carry_group,
    carry_pairs,
    wire_bytes,
)

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "ragged-all-to-all",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)

_CHAIN = re.compile(r'chain_id="\w+"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction."""

    name: str
    kind: str
    axes: tuple[str, ...]
    """Mesh axes that it runs over; "a:2" is a part of 2 of axis a."""
    group_size: int
    operand_bytes: int
    """Of one device."""
    wire_bytes: int
    """That one device sends: to all others of its group, or to its targets."""
    seconds: float
    """If nothing else uses the links."""
    links: tuple[str, ...]
    """What carries it: see `links.Carriage`."""
    op_name: str

    @property
    def is_over_network(self) -> bool:
        """Whether its groups span slices."""
        return NETWORK in self.links

    @property
    def label(self) -> str:
        """Its axes as one word."""
        return "x".join(self.axes) or "none"


def read_collective(
    instruction: Instruction, computation: Computation, mesh: PlacedMesh
) -> Collective | None:
    """Reads a collective, or the start of one; None: the instruction is another.

    Args:
      instruction: any instruction.
      computation: the one that it stands in.
      mesh: what the program was compiled for.
    """
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    operand_bytes = sum(
        computation.by_name[name].num_bytes for name in instruction.operands
    )
    if kind == "ragged-all-to-all":
        # The other operands are the result's buffer, offsets and sizes.
        operand_bytes = computation.by_name[instruction.operands[0]].num_bytes
    if kind == "collective-permute":
        groups = permutation_pairs(instruction)
        carriage = carry_pairs(operand_bytes, groups, mesh)
    else:
        groups = replica_groups(instruction, mesh.num_devices)
        carriage = carry_group(
            kind, operand_bytes, groups[0], mesh, algorithm=instruction.attributes
        )
    return Collective(
        name=instruction.name,
        kind=kind,
        axes=mesh_axes(groups, mesh.mesh_shape),
        group_size=len(groups[0]),
        operand_bytes=operand_bytes,
        wire_bytes=wire_bytes(kind, operand_bytes, len(groups[0])),
        seconds=carriage.seconds,
        links=carriage.links,
        op_name=instruction.op_name,
    )


def inner_collective(
    instruction: Instruction, module: Module, mesh: PlacedMesh
) -> Collective | None:
    """Reads the collective inside an asynchronous call or fusion; None: there is none.

    The compiler wraps some of them, to run beside other work.
    """
    for called in module.called(instruction):
        for inner in called.instructions:
            if collective := read_collective(inner, called, mesh):
                return dataclasses.replace(collective, name=instruction.name)
    return None


def part_of_chain(
    instruction: Instruction, module: Module
) -> tuple[str, Literal["start", "step", "done"]] | None:
    """Returns which chain of fusions one belongs to, and as what; None: it is of none.

    On v5e the compiler cuts a collective into fusions that all name it: one starts it,
    others drive it beside a computation of their own, the last one awaits it.
    """
    for called in module.called(instruction):
        for inner in called.instructions:
            if chain := _CHAIN.search(inner.attributes):
                root = next(i for i in called.instructions if i.is_root)
                match root.custom_call_target:
                    case "AsyncCollectiveStart":
                        return chain.group(), "start"
                    case "AsyncCollectiveDone":
                        return chain.group(), "done"
                return chain.group(), "step"
    return None
