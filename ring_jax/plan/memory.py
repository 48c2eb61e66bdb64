# SPDX-License-Identifier: Apache-2.0
"""What fills a device's HBM during a step, read from the compiler's own reports.

    report = read_memory(hlo, assignment, live_ranges, program_bytes=..., limit=...)

libtpu assigns every buffer an address before the program runs. Its sum, the arguments
and the heap of temporaries are exact, to the byte. What fills the heap at its fullest
moment is also the compiler's: which buffers, how large, alive when. To which category a
buffer of the heap belongs is attributed here, by three rules:

- gradients: float32 of the shape of a parameter's block, or of one layer of it;
- activations: made by the forward pass, and still alive when the backward pass begins;
- temporaries: the rest (gathered weights, recomputed layers, logits of a chunk), with
  the gaps between buffers.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping

EXACT = ("weights", "moments", "other state", "batch", "results", "constants")
"""Categories outside the heap; the compiler gives each an allocation of its own."""
ATTRIBUTED = ("gradients", "activations", "temporaries")
"""Categories of the heap; their sum is exact."""
PROGRAM = "program"
"""The code, exact; known only of a step that was compiled to the end."""

NUM_LARGEST = 12
HANDOVER = 8
"""Places in the schedule between a loop's last value and the loop's result."""
_ALLOCATION = re.compile(
    r"^allocation \d+: size (\d+),(?: color (\d+),)? page \d+, (.*):$"
)
_VALUE = re.compile(
    r"^ value: <\d+ ([\w.<>-]+(?:\{[\d,]*\})?) .*?\(size=(\d+),offset=(\d+)\): (.*)$"
)
_RANGE = re.compile(r"^    ([\w.<>-]+\{[\d,]*\}):(\d+)-(\d+)$", re.MULTILINE)
_INSTRUCTION = re.compile(
    r'^\s+(?:ROOT )?%([\w.<>-]+) = .*?metadata=\{.*?op_name="([^"]*)"', re.MULTILINE
)
_PARAMETER = re.compile(r'= (\w+)\[([\d,]*)\].* parameter\((\d+)\).*op_name="([^"]*)"')
_LEAF = re.compile(r"^(\w+)\[([\d,]*)\]")
_PARTS = {
    "state.model": "weights",
    "state.opt_state": "moments",
    "state.": "other state",
    "batch.": "batch",
}


@dataclasses.dataclass(frozen=True)
class Buffer:
    """A large buffer at the fullest moment."""

    category: str
    num_bytes: int
    shape: str
    source: str
    """A parameter's path, or the named scopes that made it."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """HBM of one device at the fullest moment of a step, in bytes."""

    categories: Mapping[str, int]
    """Category -> bytes."""
    limit: int
    """What the compiler lets a program have."""
    largest: tuple[Buffer, ...]

    @property
    def total(self) -> int:
        """All categories; with the program, where it is known."""
        return sum(self.categories.values())

    @property
    def spare_share(self) -> float:
        """Share of the limit that is left; negative: so much is lacking."""
        return 1.0 - self.total / self.limit


@dataclasses.dataclass(frozen=True)
class Argument:
    """An argument of the compiled step, as one device holds it."""

    number: int
    path: str
    """Such as state.model.embed_VD.value."""
    dtype: str
    dims: tuple[int, ...]

    @property
    def category(self) -> str:
        """By the part of the step's arguments that it belongs to."""
        for prefix, category in _PARTS.items():
            if self.path.startswith(prefix):
                return category
        return "constants"


@dataclasses.dataclass(frozen=True)
class _Value:
    """A buffer of the heap."""

    name: str
    size: int
    offset: int
    shape: str
    first: int
    """Place in the schedule."""
    last: int


def read_memory(
    hlo: str, assignment: str, live_ranges: str, *, program_bytes: int, limit: int
) -> Memory:
    """Reads a device's memory.

    Args:
      hlo: the scheduled module.
      assignment: libtpu's dump `buffer-assignment`.
      live_ranges: libtpu's dump `live-range`.
      program_bytes: size of the code; 0 where it was not compiled.
      limit: bytes that a program may have.
    """
    arguments = {argument.number: argument for argument in read_arguments(hlo)}
    categories: dict[str, int] = dict.fromkeys((*EXACT, *ATTRIBUTED), 0)
    buffers, heap = [], []
    for size, kind, values in _allocations(assignment):
        if "preallocated-temp" in kind:
            heap += _read_values(values, live_ranges)
            category = "temporaries"
        elif kind.startswith("parameter "):
            buffers.append(_argument_buffer(size, kind, arguments))
            category = buffers[-1].category
        else:
            category = "results" if "maybe-live-out" in kind else "constants"
        categories[category] += size
    for buffer in _at_fullest(heap, hlo, arguments.values()):
        buffers.append(buffer)
        categories["temporaries"] -= buffer.num_bytes
        categories[buffer.category] += buffer.num_bytes
    buffers.sort(key=_num_bytes, reverse=True)
    categories[PROGRAM] = program_bytes
    return Memory(categories, limit, tuple(buffers[:NUM_LARGEST]))


def read_arguments(hlo: str) -> list[Argument]:
    """Returns the arguments of a compiled step; those that it does not use are gone."""
    entry = hlo.partition("\nENTRY ")[2].partition("\n}")[0]
    found = []
    for line in entry.splitlines():
        match = _PARAMETER.search(line)
        if match is not None:
            dtype, dims, number, path = match.groups()
            found.append(Argument(int(number), path, dtype, _sizes(dims)))
    return found


def undonated(hlo: str) -> list[str]:
    """Returns the paths of state that the step holds twice: the donation did not hold.

    The module's `input_output_alias` says which result takes the place of which
    argument; all of the state should have one.
    """
    header = hlo.partition("\n")[0]
    aliases = header.partition("input_output_alias={")[2].partition(" }, ")[0]
    kept = {int(number) for number in re.findall(r": \((\d+), \{", aliases)}
    return [
        argument.path
        for argument in read_arguments(hlo)
        if argument.path.startswith("state.") and argument.number not in kept
    ]


def _argument_buffer(size: int, kind: str, arguments: Mapping[int, Argument]) -> Buffer:
    """Reads "parameter 12, shape |f32[8,64]| at ShapeIndex {}"; the size is padded."""
    number = int(kind.removeprefix("parameter ").partition(",")[0])
    shape = kind.partition("|")[2].partition("|")[0]
    argument = arguments.get(number)
    if argument is None:
        return Buffer("constants", size, shape, kind)
    return Buffer(argument.category, size, shape, argument.path)


def _num_bytes(buffer: Buffer) -> int:
    return buffer.num_bytes


def _allocations(assignment: str) -> Iterable[tuple[int, str, list[str]]]:
    """Yields size, description and values of the allocations in HBM."""
    current = None
    for line in assignment.splitlines():
        match = _ALLOCATION.match(line)
        if match is not None:
            if current is not None:
                yield current
            size, color, kind = match.groups()
            current = (int(size), kind, []) if color is None else None
        elif line.startswith(" value: ") and current is not None:
            current[2].append(line)
        elif not line.startswith(" "):
            # The listing of allocations ends with a blank line or a summary.
            if current is not None:
                yield current
            current = None
    if current is not None:
        yield current


def _read_values(lines: list[str], live_ranges: str) -> list[_Value]:
    ranges = {
        name: (int(first), int(last))
        for name, first, last in _RANGE.findall(live_ranges)
    }
    values = []
    for line in lines:
        match = _VALUE.match(line)
        if match is None:
            continue
        name, size, offset, shape = match.groups()
        name = name if "{" in name else f"{name}{{}}"
        if name in ranges:
            values.append(_Value(name, int(size), int(offset), shape, *ranges[name]))
    return values


def _at_fullest(
    values: list[_Value], hlo: str, arguments: Iterable[Argument]
) -> list[Buffer]:
    """Returns what the heap holds at its fullest moment, each address once."""
    live = max(
        (_live(values, moment) for moment in {value.first for value in values}),
        key=lambda live: sum(value.size for value in live),
        default=[],
    )
    sources = dict(_INSTRUCTION.findall(hlo))
    blocks = _blocks(arguments)
    backward = _backward_begins(values, sources)
    places, found = _by_place(values), []
    for value in live:
        at_place = places[_place(value)]
        history = _history(value, at_place)
        source = next((s for v in history if (s := _source(v, sources))), "")
        category = "temporaries"
        if _is_block(value, blocks):
            category = "gradients"
        elif _is_forward(source):
            is_kept = history[-1].first < backward <= _end(value, at_place)
            category = "activations" if is_kept else "temporaries"
        found.append(Buffer(category, value.size, _array(value.shape), source))
    return found


def _live(values: list[_Value], moment: int) -> list[_Value]:
    """Returns the values alive at a moment; of those that share memory, the largest."""
    alive = [value for value in values if value.first <= moment <= value.last]
    alive.sort(key=lambda value: (value.offset, -value.size))
    apart, end = [], 0
    for value in alive:
        if value.offset >= end:
            apart.append(value)
            end = value.offset + value.size
    return apart


def _history(value: _Value, at_place: list[_Value]) -> list[_Value]:
    """Returns a value and those whose place it took over without a gap, back in time.

    A loop's state has the addresses of what went into the loop, under other names.
    """
    history = [value]
    for other in reversed(at_place):
        if other.first < value.first and other.last >= history[-1].first - HANDOVER:
            history.append(other)
    return history


def _end(value: _Value, at_place: list[_Value]) -> int:
    """Returns when the last value ends that takes over a value's place."""
    end = value.last
    for other in at_place:
        if value.first < other.first <= end + HANDOVER:
            end = max(end, other.last)
    return end


def _by_place(values: list[_Value]) -> dict[tuple[int, int], list[_Value]]:
    """Groups values by address and size, each group in the order of the schedule."""
    groups = collections.defaultdict(list)
    for value in sorted(values, key=_first):
        groups[_place(value)].append(value)
    return groups


def _place(value: _Value) -> tuple[int, int]:
    return value.offset, value.size


def _source(value: _Value, sources: Mapping[str, str]) -> str:
    return sources.get(value.name.partition("{")[0], "")


def _is_forward(source: str) -> bool:
    return "jvp(" in source and "transpose(" not in source


def _backward_begins(values: list[_Value], sources: Mapping[str, str]) -> int:
    """Returns the place in the schedule that best parts forward from backward buffers.

    The scheduler moves a few operations of either pass to the other side.
    """
    cost = best_cost = begins = 0
    for value in sorted(values, key=_first):
        source = _source(value, sources)
        if "transpose(" in source:
            if cost < best_cost:
                best_cost, begins = cost, value.first
            cost += value.size
        elif _is_forward(source):
            cost -= value.size
    return begins


def _first(value: _Value) -> int:
    return value.first


def _blocks(arguments: Iterable[Argument]) -> set[tuple[int, ...]]:
    """Returns the sorted sizes of parameters' blocks, whole and of one layer."""
    blocks = set()
    for argument in arguments:
        if argument.category == "weights" and len(argument.dims) > 1:
            blocks |= {
                tuple(sorted(argument.dims)),
                tuple(sorted((1, *argument.dims[1:]))),
                tuple(sorted(argument.dims[1:])),
            }
    return blocks


def _is_block(value: _Value, blocks: set[tuple[int, ...]]) -> bool:
    leaf = _LEAF.match(value.shape)
    if leaf is None or leaf.group(1) != "f32":
        return False
    return tuple(sorted(_sizes(leaf.group(2)))) in blocks


def _array(shape: str) -> str:
    return shape.partition("{")[0]


def _sizes(dims: str) -> tuple[int, ...]:
    return tuple(int(size) for size in dims.split(",") if size)
