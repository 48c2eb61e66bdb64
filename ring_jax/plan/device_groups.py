# SPDX-License-Identifier: Apache-2.0
"""Which devices a collective joins, and along which axes of the mesh they lie.

A device is its place in the flattened mesh: the partition number of the program.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ring_jax.plan.hlo import Instruction

_MESH_GROUPS = re.compile(r"mesh\[(.*?)\](?:, ?device_ids=\((.*?)\))? ?\{(.*?)\}")
_IOTA_GROUPS = re.compile(r"\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH_AXIS = re.compile(r"'([^']+)'=(\d+)")
_MESH_PART = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")
_IOTA_IDS = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")
_PAIRS = re.compile(r"\{(\d+),(\d+)\}")


def replica_groups(instruction: Instruction, num_devices: int) -> list[list[int]]:
    """Returns the groups as lists of places in the flattened mesh.

    Groups are written out, or as an iota [groups,size]<=[dims]T(order), or by axes of a
    mesh.
    """
    # Anything longer than the groups would do: only the first match is read.
    _, found, text = instruction.attributes.partition("replica_groups=")
    if not found:
        return [list(range(num_devices))]
    if match := _MESH_GROUPS.match(text):
        return _groups_by_axes(*match.groups())
    if match := _IOTA_GROUPS.match(text):
        rows, columns, dims, order = match.groups()
        ids = _iota(dims, order)
        return ids.reshape(int(rows), int(columns)).tolist()
    written = re.match(r"\{((?:\{[\d,]*\},?)*)\}", text)
    groups = re.findall(r"\{([\d,]+)\}", written.group(1)) if written else []
    if not groups:
        return [list(range(num_devices))]
    return [[int(i) for i in group.split(",")] for group in groups]


def permutation_pairs(instruction: Instruction) -> list[list[int]]:
    """Returns [source, target] of each transfer of a permutation."""
    text = instruction.attribute_texts.get("source_target_pairs", "")
    return [[int(a), int(b)] for a, b in _PAIRS.findall(text)]


def mesh_axes(
    groups: Iterable[Sequence[int]], mesh_shape: Mapping[str, int]
) -> tuple[str, ...]:
    """Returns the axes of a mesh along which the members of groups differ.

    Groups that hold a part of an axis only are named with their size: "fsdp:4".
    """
    shape = tuple(mesh_shape.values())
    if not (groups := list(groups)):
        return ()
    widths = np.ones(len(shape), int)
    for group in groups:
        places = np.array(np.unravel_index(np.asarray(group), shape))
        differ = [len(set(row)) for row in places.tolist()]
        widths = np.maximum(widths, differ)
    # Pairs of a permutation may lie along any part of an axis.
    is_whole = math.prod(widths.tolist()) == len(groups[0]) > 2
    found = []
    for (name, size), width in zip(mesh_shape.items(), widths.tolist(), strict=True):
        if width > 1:
            is_part = is_whole and width < size
            found.append(f"{name}:{width}" if is_part else name)
    return tuple(found)


def _groups_by_axes(axes: str, ids: str | None, chosen: str) -> list[list[int]]:
    sizes = [(name, int(size)) for name, size in _MESH_AXIS.findall(axes)]
    total = math.prod(size for _, size in sizes)
    places = np.arange(total)
    if ids and (match := _IOTA_IDS.search(ids)):
        places = _iota(*match.groups()).reshape(-1)
    dims, inside = [], []
    parts = {name: (pre, size) for name, pre, size in _MESH_PART.findall(chosen)}
    for name, size in sizes:
        before, width = parts.get(name, ("", ""))
        if name not in parts:
            dims.append(size)
        elif not width:
            inside.append(len(dims))
            dims.append(size)
        else:
            # An axis in three: what is left of the part, the part, what is right.
            inside.append(len(dims) + 1)
            dims += [int(before), int(width), size // (int(before) * int(width))]
    outside = [i for i in range(len(dims)) if i not in inside]
    size = math.prod(dims[i] for i in inside)
    return places.reshape(dims).transpose(outside + inside).reshape(-1, size).tolist()


def _iota(dims: str, order: str | None) -> np.ndarray:
    shape = [int(n) for n in dims.split(",")]
    ids = np.arange(math.prod(shape)).reshape(shape)
    return ids.transpose([int(n) for n in order.split(",")]) if order else ids
