# SPDX-License-Identifier: Apache-2.0
"""Reads a scheduled HLO module: the program of one device, in the order it runs.

    module = parse_module(compiled.as_text())
    for instruction in module.entry.instructions: ...

Only what time depends on is read: shapes and where they live, who calls whom, the named
scope, and the attributes of collectives (`collectives.py`) and loops (`loops.py`).
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

HBM = 0
"""Memory space of an array whose layout names none; VMEM is 1."""

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.<>-]+) \(.*\{$")
_HEAD = re.compile(r"^\s+(ROOT )?%([\w.<>-]+) = ")
_LEAF = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.<>-]+)")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_CALLS = re.compile(r"\b(?:calls|to_apply|body|condition|\w+_computation)=%([\w.<>-]+)")
_CALL_LISTS = re.compile(r"\b(?:branch|called)_computations=\{([^}]*)\}")
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[(){}\[\],]')
_ESTIMATED_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array: its type, and the memory it lives in."""

    dtype: str
    dims: tuple[int, ...]
    memory_space: int

    @property
    def num_elements(self) -> int:
        """The product of `dims`."""
        return math.prod(self.dims)

    @property
    def num_bytes(self) -> int:
        """Of the elements, without the padding of tiles."""
        bits = _BITS.get(self.dtype)
        if bits is None:
            found = re.search(r"\d+", self.dtype)
            bits = int(found.group()) if found else 8
        return math.ceil(self.num_elements * bits / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    result: str
    """Its type with layout, as written."""
    operands: tuple[str, ...]
    """Names of instructions of the same computation."""
    operand_text: str
    """The same as written: a constant's value, a parameter's number."""
    attributes: str
    """The rest of the line."""
    is_root: bool

    @functools.cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """The leaves of the result, in order."""
        return _parse_shapes(self.result)

    @functools.cached_property
    def op_name(self) -> str:
        """Path of named scopes and primitives, as jax wrote it; "" if it wrote none."""
        match = _OP_NAME.search(self.attributes)
        return match.group(1) if match else ""

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Computations that it calls, applies, or loops over."""
        names = _CALLS.findall(self.attributes)
        if several := _CALL_LISTS.search(self.attributes):
            names += _NAME.findall(several.group(1))
        return tuple(names)

    @property
    def num_bytes(self) -> int:
        """Of the result, all leaves."""
        return sum(shape.num_bytes for shape in self.shapes)

    @property
    def estimated_cycles(self) -> int | None:
        """The compiler's own figure, which is no time (see docs/parallelism.md)."""
        match = _ESTIMATED_CYCLES.search(self.attributes)
        return int(match.group(1)) if match else None

    @property
    def custom_call_target(self) -> str | None:
        """What a custom call calls: "tpu_custom_call" is a Pallas kernel."""
        match = _TARGET.search(self.attributes)
        return match.group(1) if match else None

    @property
    def is_pallas(self) -> bool:
        """Whether it is a Pallas kernel."""
        return self.custom_call_target == "tpu_custom_call"

    @functools.cached_property
    def attribute_texts(self) -> dict[str, str]:
        """The text of each attribute, with its brackets."""
        texts, start = {}, 0
        for end in _top_level_commas(self.attributes):
            name, _, text = self.attributes[start:end].strip(" ,").partition("=")
            if name:
                texts[name] = text
            start = end
        return texts


@dataclasses.dataclass(frozen=True)
class Computation:
    """A list of instructions in the order in which the device runs them."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Instruction of each name."""
        return {instruction.name: instruction for instruction in self.instructions}

    @property
    def root(self) -> Instruction:
        """The instruction whose result the computation returns."""
        return next(i for i in self.instructions if i.is_root)

    def parameter(self, number: int) -> Instruction:
        """Returns the instruction that is the parameter of a number."""
        text = str(number)
        return next(
            instruction
            for instruction in self.instructions
            if instruction.opcode == "parameter" and instruction.operand_text == text
        )

    def users(self, name: str) -> Iterator[Instruction]:
        """Yields the instructions that read another's result."""
        return (i for i in self.instructions if name in i.operands)


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program."""

    computations: dict[str, Computation]
    entry: Computation

    def called(self, instruction: Instruction) -> list[Computation]:
        """Returns the computations that an instruction calls."""
        return [self.computations[name] for name in instruction.called]


def parse_module(text: str) -> Module:
    """Parses the text of `jax.stages.Compiled.as_text()`.

    Raises:
      ValueError: the text has no entry computation, or is not scheduled: its order
        would say nothing of time.
    """
    if "is_scheduled=true" not in text.partition("\n")[0]:
        raise ValueError(
            "hlo: the module is not scheduled; take `compiled.as_text()` of a compiled "
            "step, not the lowered one."
        )
    computations: dict[str, Computation] = {}
    name, entry, lines = None, None, []
    for line in text.splitlines():
        if name is None:
            if match := _COMPUTATION.match(line):
                name, lines = match.group(2), []
                entry = name if match.group(1) else entry
        elif line == "}" or line.startswith("}, execution_thread="):
            instructions = tuple(_parse_instruction(whole) for whole in lines)
            computations[name] = Computation(name, instructions)
            name = None
        elif _HEAD.match(line):
            lines.append(line)
        elif lines:
            # Attributes of kernels may have line breaks.
            lines[-1] += line
    if entry is None:
        raise ValueError("hlo: the module has no entry computation; is it complete?")
    return Module(computations, computations[entry])


def _parse_instruction(line: str) -> Instruction:
    head = _HEAD.match(line)
    assert head is not None
    start = head.end()
    is_tuple = line[start] == "("
    end = _closing(line, start) + 1 if is_tuple else line.index(" ", start)
    opening = line.index("(", end)
    closing = _closing(line, opening)
    operand_text = line[opening + 1 : closing]
    return Instruction(
        name=head.group(2),
        opcode=line[end:opening].strip(),
        result=line[start:end],
        operands=tuple(_NAME.findall(operand_text)),
        operand_text=operand_text,
        attributes=line[closing + 1 :],
        is_root=head.group(1) is not None,
    )


def _parse_shapes(text: str) -> tuple[Shape, ...]:
    shapes = []
    for dtype, lengths, layout in _LEAF.findall(text):
        # A bounded dynamic dimension prints as `<=8`: it takes that much room.
        dims = tuple(int(n.lstrip("<=")) for n in lengths.split(",") if n)
        space = _SPACE.search(layout)
        shapes.append(Shape(dtype, dims, int(space.group(1)) if space else HBM))
    return tuple(shapes)


def _closing(text: str, opening: int) -> int:
    """Returns the place of the bracket that closes the one at `opening`."""
    depth = 0
    for place, character in _unquoted(text, opening):
        if character in "({[":
            depth += 1
        elif character in ")}]":
            depth -= 1
            if depth == 0:
                return place
    raise ValueError(f"hlo: unbalanced brackets in {text[:80]!r}")


def _top_level_commas(text: str) -> Iterator[int]:
    """Yields the places of commas outside all brackets, and the end."""
    depth = 0
    for place, character in _unquoted(text, 0):
        if character in "({[":
            depth += 1
        elif character in ")}]":
            depth -= 1
        elif character == "," and depth == 0:
            yield place
    yield len(text)


def _unquoted(text: str, start: int) -> Iterator[tuple[int, str]]:
    """Yields the brackets and commas outside quotes, with their places."""
    for match in _STRING_OR_BRACKET.finditer(text, start):
        if len(match.group()) == 1:
            yield match.start(), match.group()
